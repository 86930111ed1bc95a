"""The progress bar of a run."""

import io

import torch

from attnconv.runs.checkpoint import Position
from attnconv.training.console import Console
from attnconv.training.metrics import Tally


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_continues_where_the_run_resumes_and_counts_the_images_of_all_processes(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    console = Console(epochs=2, position=Position(epochs_done=1, steps_in_epoch=2, images=32), images=40)
    assert console._bar.n == 72
    console.step(2, Tally.on(torch.device("cpu"), images=36), images=40)
    assert console._bar.n == console._bar.total == 80
    console.close()
