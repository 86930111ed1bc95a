"""The study as a command: it announces its runs, trains them, and continues after a stop."""

import json
import re
import runpy
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from attnconv.config import to_plain
from attnconv.errors import SweepIncomplete
from attnconv.files import read_csv
from attnconv.runs.folder import run_folder_path
from attnconv.runs.status import read_state
from attnconv.sweeps.grid import Cell, run_cells
from attnconv.sweeps.study import plan
from attnconv.sweeps.workers import Workers
from conftest import ENVIRONMENT, PYTHON, REPOSITORY, TINY_SCALE, compose, write_arrays
from processes import Forked, Script

pytestmark = pytest.mark.slow

TWO = ["--only", "learning_rates", *TINY_SCALE[1:], "model=conv3x3", "recipe.lr_scale=0.5,2", "match=null"]
TWO += ["data=arrays", "data.fraction=1", "recipe.batch_size=16"]
EPOCHS = 30  # so that a run takes seconds, and a signal after its first checkpoint reaches it


def study(tmp_path, *arguments):
    write_arrays(tmp_path / "arrays")
    places = [f"data.root={tmp_path}/arrays", f"output={tmp_path}/outputs"]
    return [PYTHON, str(REPOSITORY / "scripts/study.py"), *TWO, *places, *arguments]


@pytest.fixture
def here(monkeypatch, capsys):
    """Return a function that runs a command in this process and returns its stdout."""

    def run(command):
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr("sys.argv", command[1:])
        runpy.run_path(command[1], run_name="__main__")
        return capsys.readouterr().out

    return run


def logs(tmp_path, folder):
    """Return the outputs of all processes of the run in this folder."""
    return set(tmp_path.glob(f"outputs/.sweeps/**/{folder.relative_to(tmp_path / 'outputs')}.log"))


@pytest.fixture
def forked(monkeypatch):
    """Let a study of this process fork its runs from a process that has imported torch."""
    monkeypatch.setattr("attnconv.sweeps.workers.subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Forked}))


def test_a_stopped_study_resumes_and_is_collected(tmp_path, here, forked):
    """The first study starts its runs as new processes, the others fork them."""
    command = study(tmp_path, f"epochs={EPOCHS}", "--precision", "fp32")
    process = Script(*command[1:], cwd=REPOSITORY, env=ENVIRONMENT)
    lines = [process.stdout.readline(), process.stdout.readline()]
    while not (begun := list(tmp_path.glob("outputs/**/seed100/checkpoints/*.pt"))):
        assert process.poll() is None, process.finish()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    finished = process.finish()
    assert finished.returncode == 128 + signal.SIGTERM, finished.stderr
    assert [line.partition(", about ")[0] for line in lines] == ["run 1 of 2", "run 2 of 2"]
    assert "sweep of 2 runs: " in finished.stdout
    assert "failed" not in finished.stdout

    resumed = begun[0].parents[1]
    assert read_state(resumed).status == "interrupted"
    folders = list((tmp_path / "outputs").glob("**/seed100"))
    assert {read_state(folder).status for folder in folders} <= {"interrupted", "waiting"}
    (first_log,) = logs(tmp_path, resumed)
    status = [PYTHON, str(REPOSITORY / "scripts/status.py"), f"{tmp_path}/outputs"]
    assert re.fullmatch(r"about \d+ min left with 2 at once", here(status).splitlines()[-1])
    assert "sweep of 2 runs: 2 done" in here(command)
    (second_log,) = logs(tmp_path, resumed) - {first_log}
    assert "resuming after" in second_log.read_text()
    assert "resuming after" not in first_log.read_text()
    assert here(status).splitlines()[-1] == "2 runs: 2 done"
    assert "sweep of 2 runs: 2 skipped" in here(command)

    results = tmp_path / "results"
    with pytest.raises(SystemExit, match="0"):
        here([PYTHON, str(REPOSITORY / "scripts/collect.py"), f"{tmp_path}/outputs", "--results", str(results)])
    table = read_csv(results / "runs.csv")
    assert [row["name"] for row in table] == ["learning_rates_0.5_fp32", "learning_rates_2.0_fp32"]
    assert {row["precision"] for row in table} == {"fp32"}


def test_a_dry_run_lists_runs_and_estimated_time_and_writes_nothing(tmp_path, here):
    *cells, last = here(study(tmp_path, "--dry-run")).splitlines()
    assert [line.split()[-1].partition("/")[0].rpartition("_")[0] for line in cells] == [
        "learning_rates_0.5",
        "learning_rates_2.0",
    ]
    assert last.startswith("2 runs, 0 done, about ")
    assert not (tmp_path / "outputs").exists()


def test_a_dry_run_counts_a_failed_run_as_left_if_it_is_retried(tmp_path, here):
    command = study(tmp_path, "--dry-run", "epochs=2", "--precision", "fp32")
    overrides = [word for word in command[2:] if "=" in word]
    config = plan("fp32", ["learning_rates"], overrides, tmp_path)["learning_rates"][0].config
    folder = run_folder_path(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
    (folder / "result.json").write_text('{"status": "failed", "reason": "Diverged"}')
    assert len(here(command).splitlines()) == 2, "it is not retried"
    assert here(command).splitlines()[-1].startswith("2 runs, 0 done, about ")
    assert len(here([*command, "retry_failed=true"]).splitlines()) == 3


def test_text_is_kept_as_typed(tmp_path, here):
    listed = here(study(tmp_path, "--dry-run", "name=2026_11_30_${recipe.lr_scale}"))
    assert "2026_11_30_0.5/" in listed


def test_a_run_waits_for_its_donor_and_a_failed_run_does_not_stop_others(tmp_path, arrays, forked, capsys):
    fixed = [*TINY_SCALE, "data=arrays", f"data.root={arrays}", "recipe.batch_size=16"]
    fixed += ["logger=none", f"output={tmp_path}/outputs", "precision=fp32", "epochs=1"]
    donor = tmp_path / "outputs/default/sa_quadratic/mini-modern/frac1/seed1/weights.safetensors"
    several = [
        ["model=sa_quadratic_copied", f"model.start={donor}"],
        ["model=conv3x3", "scale.patch=3"],
        ["model=sa_quadratic", "seed=1"],
        ["model=sa_quadratic_copied", "seed=1", f"model.start={tmp_path}/never"],
    ]
    cells = [Cell([*fixed, *overrides], compose([*fixed, *overrides])) for overrides in several]
    started = []
    with pytest.raises(SweepIncomplete, match="2 of 4 runs are not done"):
        run_cells(cells, Workers(cells, 2, tmp_path / "logs", started.append), tmp_path / "outputs/.sweeps/now")
    assert [cells.index(cell) for cell in started] == [1, 2, 0]
    assert [read_state(cell.folder).status for cell in cells] == ["done", "waiting", "done", "waiting"]
    summary = capsys.readouterr().out
    assert "patch must divide both sides (its output: " in summary
    assert f"needs {tmp_path}/never, which does not exist" in summary
    assert "sweep of 4 runs: 2 done, 2 failed" in summary
    noted = json.loads((tmp_path / "outputs/.sweeps/now/cells.json").read_text())
    assert ["reason" in cell for cell in noted] == [False, True, False, True]


def test_the_budget_is_in_hours(tmp_path, here, monkeypatch):
    ends = []

    class Watched(Workers):
        def __init__(self, *arguments):
            ends.append(arguments[-1])
            raise KeyboardInterrupt

    monkeypatch.setattr("attnconv.sweeps.workers.Workers", Watched)
    with pytest.raises(SystemExit, match="130"):
        here(study(tmp_path, "--precision", "fp32", "--budget-hours", "2"))
    assert ends == [pytest.approx(time.monotonic() + 2 * 3600, abs=600)]
