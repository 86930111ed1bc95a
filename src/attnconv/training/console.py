"""The output of a run for people: one line per epoch, and in a terminal a progress bar."""

import sys
import time
from typing import Any

from tqdm import tqdm

from attnconv.errors import counted
from attnconv.runs.checkpoint import Progress
from attnconv.runs.folder import RunFolder
from attnconv.training.metrics import Score, Tally

REFRESH_SECONDS = 0.5  # reading a tally waits for the device, so it is not read more often


class Console:
    """Progress of one run on standard error.

    Args:
        epochs: length of the run.
        progress: where the run resumes.
        images: training images per epoch.
        shown: False for all but one of several processes.
        label: prefix of each line of a run that shares its terminal with others; such a run has no bar.
    """

    def __init__(self, epochs: int, progress: Progress, images: int, shown: bool = True, label: str | None = None):
        self._epochs = epochs
        self._images = images
        self._shown = shown
        self._label = f"{label}: " if label else ""
        self._interactive = shown and label is None and sys.stderr.isatty()
        self._last_refresh = 0.0
        self._bar = tqdm(
            total=epochs * images,
            initial=progress.epochs_done * images + progress.images,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self._interactive,
        )

    def step(self, epoch: int, tally: Tally, images: int) -> None:
        """Show the progress after a step.

        Args:
            epoch: counted from 1.
            tally: loss and accuracy so far; with several processes, those of this one since the run resumed.
            images: that all processes have seen in this epoch.
        """
        if not self._interactive:
            return
        now = time.monotonic()
        if now - self._last_refresh >= REFRESH_SECONDS:
            self._last_refresh = now
            score = tally.score()
            self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(f"train loss {score.loss:.3f} acc {score.accuracy:.1%}", refresh=False)
        self._bar.update((epoch - 1) * self._images + images - self._bar.n)

    def epoch(self, epoch: int, train: Score, evaluated: dict[str, Score], images_per_second: float) -> None:
        """Print the scores of an epoch, above the bar."""
        scores = f"train loss {train.loss:.3f} acc {train.accuracy:.1%}"
        scores += "".join(f" | {split} acc {_of_epoch(score)}" for split, score in evaluated.items())
        if self._shown:
            with tqdm.external_write_mode(file=sys.stderr):
                print(
                    f"{self._label}epoch {epoch}/{self._epochs}  {scores}  {images_per_second:.0f} img/s",
                    file=sys.stderr,
                    flush=True,
                )

    def close(self) -> None:
        """Restore the terminal."""
        self._bar.close()


def _of_epoch(score: Score) -> str:
    return f"{score.accuracy:.1%}" + ("" if score.mirrored is None else f" ({score.mirrored:.1%} mirrored)")


def opening_lines(description: dict[str, Any], folder: RunFolder, progress: Progress) -> str:
    """Return the lines to print before the first step: the network, the data, and where the run resumes."""
    matched = ""
    if "match" in description:
        matched = (
            "\nmatched to the {target:,} {budget} of {model}: {achieved:,} ({difference:+.2%}), "
            "at width {width:g}".format_map(description["match"])
        )
    resuming = ""
    if progress != Progress():
        resuming = f", resuming after epoch {progress.epochs_done}"
        if progress.steps_in_epoch:
            resuming += f" and {counted(progress.steps_in_epoch, 'step')}"
    return (
        "{model}: {parameters:,} parameters, recipe={recipe}, scale={scale}, {train_images:,} training images "
        "from {data_origin}\n".format_map(description)
        + counted(description["epochs"], "epoch")
        + " in {precision} on {device}".format_map(description)
        + f"{resuming}, into {folder.path}{matched}"
    )


def closing_line(result: dict[str, Any], folder: RunFolder) -> str:
    """Return the line to print after the last epoch: accuracies, time and the run folder."""
    epochs = counted(result["epochs"], "epoch")
    line = f"test accuracy {_accuracy(result, 'test')} after {epochs} in {result['seconds']:.0f} s"
    if "val_acc" in result:
        line += f"; validation accuracy {_accuracy(result, 'val')}"
    heads = f"; heads: {folder.heads_picture}" if folder.heads_picture.exists() else ""
    return f"{line}; run folder: {folder.path}{heads}"


def _accuracy(result: dict[str, Any], split: str) -> str:
    mirrored = result.get(f"{split}_acc_mirrored")
    return f"{result[f'{split}_acc']:.2%}" + ("" if mirrored is None else f" ({mirrored:.2%} with mirror images)")
