"""The worker processes of a study that fails."""

import os
import time

import pytest

from attnconv.config import POOL
from attnconv.sweeps import workers
from attnconv.sweeps.grid import Cell
from attnconv.sweeps.workers import Workers
from conftest import compose


def is_running(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_worker_processes_end_if_the_study_fails(tmp_path, monkeypatch):
    waits = tmp_path / "train.py"
    waits.write_text(
        "import os, pathlib, signal, sys\n"
        f"pathlib.Path({str(tmp_path)!r}, 'number.part').write_text(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'number.part')!r}, {str(tmp_path / 'number')!r})\n"
        "signal.pause()\n"
    )
    monkeypatch.setattr(workers, "TRAIN", waits)
    cells = [Cell([f"seed={seed}"], compose([f"seed={seed}", "scale=mini", "recipe=modern"])) for seed in (0, 1)]

    def announce(cell):
        if cell is cells[1]:
            while not (tmp_path / "number").exists():
                pass
            raise OSError("the terminal has gone")

    with pytest.raises(OSError, match="the terminal has gone"):
        Workers(cells, 2, tmp_path / "logs", announce)([cell.overrides for cell in cells])
    assert not is_running(int((tmp_path / "number").read_text()))


@pytest.fixture
def one_worker(tmp_path, monkeypatch):
    """Return a function: Python code in place of train.py, end of the budget -> why its run failed, or None."""

    def start(code, until=None):
        beginning = f"import os, pathlib, signal, time\nhere = pathlib.Path({str(tmp_path)!r})\n"
        (tmp_path / "train.py").write_text(beginning + code)
        monkeypatch.setattr(workers, "TRAIN", tmp_path / "train.py")
        cell = Cell(["seed=0"], compose(["seed=0", "scale=mini", "recipe=modern"]))
        (reason,) = Workers([cell], 1, tmp_path / "logs", lambda cell: None, until)([cell.overrides])
        return reason

    return start


@pytest.mark.slow
def test_a_worker_has_one_thread_and_knows_its_study(one_worker, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("OMP_NUM_THREADS", POOL)
    assert one_worker(f"(here / 'found').write_text(' '.join(map(os.environ.get, {names})))") is None
    assert (tmp_path / "found").read_text() == f"1 {os.getpid()}"


@pytest.mark.slow
def test_workers_are_stopped_when_the_budget_is_spent_and_not_before(one_worker, tmp_path):
    assert one_worker("signal.alarm(60); signal.pause()", until=time.monotonic()) is None, "not the alarm"
    assert one_worker("time.sleep(0.5); (here / 'ended').touch()", until=time.monotonic() + 3600) is None
    assert (tmp_path / "ended").exists()
