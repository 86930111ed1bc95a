"""What several tests need: tiny data, tiny configurations, and CIFAR-10 where it is."""

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton

from attnconv.config import Config, freeze
from attnconv.settings.composition import composed
from attnconv.settings.contradictions import require_effect
from attnconv.settings.overrides import check_overrides

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TINY_SCALE = ["scale=mini", "scale.layers=2", "scale.heads=3", "scale.width=8", "scale.hidden=8", "scale.cnn_width=2"]

# Fixtures that train a run or start a command. What asks for one is left out of `make fast`.
RUN_FIXTURES = {"tiny", "command"}

Finished = subprocess.CompletedProcess


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if RUN_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def compose(overrides: Sequence[str] = ()) -> Config:
    """Do what attnconv.config.compose does, but let a test give data.root to all data."""
    check_overrides(overrides)
    frozen = freeze(composed(overrides))
    require_effect([(frozen, [key for key in overrides if not key.startswith("data.root=")])])
    return frozen


def write_arrays(root: Path, train: int = 40, test: int = 20, side: int = 8, classes: int = 4, seed: int = 0) -> None:
    """A data set of noise around one color per class, as four .npy files."""
    draw = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    colors = draw.integers(60, 196, size=(classes, 3))
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = draw.integers(-40, 41, size=(count, side, side, 3))
        np.save(root / f"{split}_images.npy", (colors[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8))
        np.save(root / f"{split}_labels.npy", labels)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restore the environment after every test: a command that runs in this process sets variables for its runs."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """A function: script, arguments -> exit code and output of `python SCRIPT ARGUMENTS`, which runs in this process.

    For what only a process of its own has (its signals, its imports, its exit code on a signal), start one.
    """
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the script sets it; monkeypatch unsets it after the test
    Plugins.instance()  # found once, not by every command
    before = Singleton.get_state()
    # A process begins without handlers; an earlier test's may write to a stream that is closed.
    monkeypatch.setattr(logging.root, "handlers", [])

    def run(script: str, *arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            Singleton.set_state(before)
        return Finished(sys.argv, code, *capfd.readouterr())

    return run


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A folder with 40 training and 20 test images of 8 x 8 pixels in 4 classes."""
    write_arrays(tmp_path / "arrays")
    return tmp_path / "arrays"


@pytest.fixture
def tiny(tmp_path: Path, arrays: Path) -> Callable[..., Config]:
    """A function: overrides -> the configuration of a run that takes a moment, writing below tmp_path.

    Its model is conv3x3 unless they say another: the picture of a network's heads takes longer than such a training.
    """

    def build(*overrides: str) -> Config:
        fixed = ["data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "logger=none", "device=cpu"]
        return compose([*TINY_SCALE, *fixed, "epochs=2", "recipe.batch_size=16", *with_model(overrides)])

    return build


def with_model(overrides: Sequence[str]) -> Sequence[str]:
    return overrides if any(override.startswith("model=") for override in overrides) else ["model=conv3x3", *overrides]


def script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, *arguments: object
) -> tuple[Any, str, str]:
    """Run scripts/NAME.py in this process: its exit code, and what it printed to stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    code: Any = 0
    try:
        runpy.run_path(str(REPOSITORY / f"scripts/{name}.py"), run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def interrupted(monkeypatch):
    """A function: run a configuration until it is interrupted, in epoch `epoch` (from 1)."""

    def start(config, epoch=2):
        from attnconv.run import run  # imports torch, which some tests do without
        from attnconv.runs.folder import run_folder_path
        from attnconv.training import loop

        real, seen = loop.train_epoch, []

        def train_epoch(*arguments, **options):
            seen.append(1)
            if len(seen) == epoch:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr("attnconv.training.trainer.train_epoch", train_epoch)
            with pytest.raises(KeyboardInterrupt):
                run(config)
        return run_folder_path(config)

    return start


@pytest.fixture
def start_sweep(tmp_path):
    """A function: run a sweep, in this process, and return the seeds of the runs that it made."""

    def start(*configs):
        from attnconv.run import run
        from attnconv.sweeps.grid import Cell, run_cells

        cells, ran = [Cell([str(number)], config) for number, config in enumerate(configs)], []

        def launch(overrides):
            for (number,) in overrides:
                ran.append(configs[int(number)].seed)
                run(configs[int(number)])
            return [None] * len(overrides)

        run_cells(cells, launch, tmp_path / "record")
        return ran

    return start


@pytest.fixture
def train(tmp_path, arrays, monkeypatch, command):
    """A function: overrides -> exit code, output and errors of train.py, in this process.

    It runs in tmp_path/here, one epoch on 40 training images of 8 x 8 pixels, and writes to tmp_path/here/outputs.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fixed = ["data=arrays", "data.root=../arrays", "logger=none", "device=cpu", "recipe.batch_size=16", "epochs=1"]

    def run(*overrides):
        finished = command("train.py", *TINY_SCALE, *fixed, *overrides)
        return finished.returncode, finished.stdout, finished.stderr

    return run


@pytest.fixture
def refused(train, tmp_path):
    """A function: overrides -> the one line with which `python train.py` refuses them, writing nothing."""

    def run(*overrides):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = train(*overrides)
        assert (code, out) == (2, ""), err
        (error,) = err.splitlines()
        assert error.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run
