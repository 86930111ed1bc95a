"""Shared fixtures and helpers: tiny data sets, tiny configurations, and scripts run in this process."""

import functools
import hashlib
import itertools
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

import composed_once
from attnconv.config import Config, freeze
from attnconv.settings.composition import composed
from attnconv.settings.contradictions import require_effect
from attnconv.settings.overrides import check_overrides

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TINY_SCALE = ["scale=mini", "scale.layers=2", "scale.heads=3", "scale.width=8", "scale.hidden=8", "scale.cnn_width=2"]

# If a script starts the tests in the background, they and their child processes would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Fixtures that train a model or start a command. `make fast` skips the tests that use them.
RUN_FIXTURES = {"tiny", "command"}

# The environment of processes that a test starts.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": ""}

Finished = subprocess.CompletedProcess


# The longest files come first, so that no process is left with one of them at the end.
LONGEST = [
    REPOSITORY / "tests" / name
    for name in (
        "sweeps/test_study.py",
        "sweeps/test_plan.py",
        "training/test_distributed.py",
        "test_notebooks.py",
        "test_readme.py",
        "test_command.py",
        "test_survival.py",
        "test_run.py",
    )
]
assert all(path.is_file() for path in LONGEST), LONGEST


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path not in LONGEST)
    for item in items:
        if RUN_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose like attnconv.config.compose, but accept data.root even where it has no effect."""
    check_overrides(overrides)
    frozen = freeze(composed(overrides))
    require_effect([(frozen, [key for key in overrides if not key.startswith("data.root=")])])
    return frozen


def write_arrays(root: Path, train: int = 40, test: int = 20, side: int = 8, classes: int = 4, seed: int = 0) -> None:
    """Write a data set of noise around one color per class, as four .npy files."""
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
    """Restore environment variables after every test, because commands run in this process set some."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed PyTorch, whose first seed differs from process to process, so that a test fails always or never."""
    if "torch" in sys.modules:  # some tests avoid it
        sys.modules["torch"].default_generator.manual_seed(0)


# The same cache for each use of one function: what runs of all tests find out again and again.
once = functools.cache(functools.cache)


@functools.cache
def counted_once(count: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that counts the FLOPs of each network of ours once; refusals are not kept."""
    found: dict[Any, Any] = {}

    def forward_once(node: dict[str, Any], shape: Any, classes: int, image: Any = None) -> Any:
        from attnconv.settings.limits import from_elsewhere

        if from_elsewhere(node) or "start" in node:
            return count(node, shape, classes, image)
        key = json.dumps(node, sort_keys=True), shape, classes
        if key not in found:
            found[key] = count(node, shape, classes, image)
        return found[key]

    return forward_once


@pytest.fixture(autouse=True)
def quick_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run look at the repository and count FLOPs once for all tests, and draw no heads except in tests of them.

    Drawing them takes half of the time of a tiny run; tests marked `draws` look at the picture. Without a GPU, seeding
    those of each kind is left out: PyTorch would note the stack of every call, for when they are first used.
    """
    if not RUN_FIXTURES & set(request.fixturenames):
        return
    import torch  # some tests avoid it

    from attnconv.runs import provenance
    from attnconv.training import checks

    if not torch.cuda.is_available():
        for kind in (torch.cuda, torch.mtia, torch.xpu):
            monkeypatch.setattr(kind, "manual_seed_all", lambda seed: None)
    monkeypatch.setattr(provenance, "_git", once(provenance._git))
    monkeypatch.setattr(checks, "forward_once", counted_once(checks.forward_once))
    if request.node.get_closest_marker("draws"):
        return
    monkeypatch.setattr("attnconv.analysis.heads.HeadWatcher.figure", empty_figure)


def empty_figure(self: Any, epoch: int, found: np.ndarray | None) -> Any:
    """Draw no heads, in place of attnconv.analysis.heads.HeadWatcher.figure."""
    from matplotlib.figure import Figure

    return None if found is None else Figure((1, 1))


@pytest.fixture(autouse=True, scope="session")
def files_composed_once() -> Iterator[None]:
    """Let Hydra compose each choice of files only once in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "_load_configuration_impl", composed_once.load)
        patch.setattr(OverridesParser, "parse_rule", composed_once.parse_rule)
        patch.setattr(OmegaConf, "load", staticmethod(composed_once.read_yaml))
        patch.setattr("attnconv.runs.estimate.RESULTS", Path("no results"))  # reading all of them takes a while
        yield


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Return a function that runs `python SCRIPT ARGUMENTS` in this process and returns its exit code and output.

    Tests that need a separate process (for signals or imports) start one themselves.
    """
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the script sets it; monkeypatch unsets it after the test
    Plugins.instance()  # discover plugins once, not in every command
    before = Singleton.get_state()
    # A new process has no handlers, and those of an earlier test may write to a closed stream.
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
    """Return a function that composes overrides into a very short run that writes below tmp_path.

    The model is conv3x3 unless an override sets it: plotting a network's heads takes longer than the training itself.
    """

    return functools.partial(tiny_below, tmp_path)


def tiny_below(folder: Path, *overrides: str) -> Config:
    """Compose overrides into a very short run that reads folder/arrays and writes to folder/outputs."""
    fixed = ["data=arrays", f"data.root={folder}/arrays", f"output={folder}/outputs", "logger=none", "device=cpu"]
    return compose([*TINY_SCALE, *fixed, "epochs=2", "recipe.batch_size=16", *with_model(overrides)])


def own_predictions(folder: Path) -> tuple[list[int], Any]:
    """Return a finished run's predictions for the test images, one image at a time and in order, and the labels."""
    import torch  # some tests avoid it

    from attnconv import load

    found = load(folder)
    with torch.no_grad():
        return [int(found.model(images).argmax()) for images, _ in found.data.test.batches(1)], found.data.test.labels


def with_model(overrides: Sequence[object]) -> Sequence[object]:
    """Add model=conv3x3 unless an override sets the model, or a setting of it."""
    texts = [str(override).lstrip("+") for override in overrides]
    return overrides if any(text.startswith("model") for text in texts) else ["model=conv3x3", *overrides]


def script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, *arguments: object
) -> tuple[Any, str, str]:
    """Run scripts/NAME.py in this process, and return its exit code, stdout and stderr."""
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
    """Return a function that runs a configuration and interrupts it in epoch `epoch` (from 1)."""

    def start(config, epoch=2):
        from attnconv.run import run  # imports torch, which some tests avoid
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
def interrupted_at_step(monkeypatch):
    """Return a function that runs a configuration and interrupts it after this number of steps."""

    def start(config, step):
        from attnconv.run import run  # imports torch, which some tests avoid
        from attnconv.training.trainer import Trainer

        steps, real = itertools.count(1), Trainer._after_step

        def after_step(self, steps_in_epoch):
            real(self, steps_in_epoch)
            if next(steps) == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_after_step", after_step)
            with pytest.raises(KeyboardInterrupt):
                run(config)

    return start


@pytest.fixture
def start_sweep(tmp_path):
    """Return a function that runs a sweep in this process and returns the seeds that were run."""

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
    """Return a function that runs train.py with overrides in this process and returns exit code, stdout and stderr.

    It trains conv3x3, unless an override sets the model, for one epoch on 40 images of 8 x 8 pixels. It runs in
    tmp_path/here and writes to tmp_path/here/outputs.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fixed = ["data=arrays", "data.root=../arrays", "logger=none", "device=cpu", "recipe.batch_size=16", "epochs=1"]

    def run(*overrides):
        finished = command("train.py", *TINY_SCALE, *fixed, *with_model(overrides))
        return finished.returncode, finished.stdout, finished.stderr

    return run


@pytest.fixture(scope="session")
def own_configs(tmp_path_factory):
    """A folder for the configurations of own models. Hydra composes each of them once."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture
def own_model(own_configs):
    """Return a function: class or function, lines of YAML -> arguments of train.py that select it as the model."""

    def choose(network, lines=""):
        folder = own_configs / hashlib.sha256(lines.encode()).hexdigest()[:8]
        if not folder.exists():
            (folder / "model").mkdir(parents=True)
            (folder / "model/mine.yaml").write_text(f"name: mine\n_target_: torch.nn.Identity\n{lines}\n")
        return "--config-dir", folder, "model=mine", f"model._target_={network.__module__}.{network.__name__}"

    return choose


@pytest.fixture
def refused(train, tmp_path):
    """Return a function that checks that train.py refuses the overrides and writes nothing, and returns the error."""

    def run(*overrides):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = train(*overrides)
        assert (code, out) == (2, ""), err
        (error,) = err.splitlines()
        assert error.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run
