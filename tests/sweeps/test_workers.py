"""The worker processes of a study that fails."""

import os

import pytest

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
