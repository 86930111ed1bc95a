"""The lines and the progress bar of a run."""

import io
import re

import torch

from attnconv.runs.checkpoint import Progress
from attnconv.training.console import Console
from attnconv.training.metrics import Score, Tally


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_continues_where_the_run_resumes_and_counts_the_images_of_all_processes(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    console = Console(epochs=2, progress=Progress(epochs_done=1, steps_in_epoch=2, images=32), images=40)
    assert console._bar.n == 72
    console.step(2, Tally.on(torch.device("cpu"), images=36), images=40)
    assert console._bar.n == console._bar.total == 80
    console.close()


def test_the_scores_of_every_epoch_stay_in_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    console = Console(epochs=2, progress=Progress(), images=40)
    for epoch, accuracy in ((1, 0.25), (2, 0.5)):
        console.step(epoch, Tally.on(torch.device("cpu"), images=40), images=40)
        console.epoch(epoch, Score(1.5, 0.1), {"test": Score(1.25, accuracy)}, images_per_second=7)
    console.close()
    lines = [line.strip() for line in re.split(r"[\r\n]", terminal.getvalue())]
    assert "epoch 1/2  train loss 1.500 acc 10.0% | test acc 25.0%  7 img/s" in lines
    assert "epoch 2/2  train loss 1.500 acc 10.0% | test acc 50.0%  7 img/s" in lines
    assert "25.0%" not in lines[-1], "the bar does not show the scores of an earlier epoch"
