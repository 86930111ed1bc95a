"""A run in Trackio, a local dashboard that `make dashboard` opens in a browser."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnconv.analysis.evaluation import class_accuracies, confusion_matrix
from attnconv.config import Config, flatten
from attnconv.runs.adapter import History, display_name, displayed, flat_config, group, pixels
from attnconv.runs.folder import run_name
from attnconv.runs.records import name_of, read_config, read_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "attnconv"
COMPARED = ("train/loss", "test/acc")  # an epoch need not have the second


class TrackioRun:
    """A run in Trackio. Trackio has no tags and no summary, so the configuration holds the keys to sort runs by."""

    def __init__(self, config: Config, folder: Path, history: History):
        import trackio

        self._trackio, self._config, self._folder = trackio, config, folder
        self._project = config.logger.project or PROJECT
        forget_other(self._project, run_name(config), history)
        # It continues a run of the same name and keeps its history.
        self._run = trackio.init(
            project=self._project,
            name=display_name(config),
            group=config.logger.group or group(config),
            config=flat_config(config),
            resume="allow",
            embed=False,
        )
        self._log(history)

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        self._log([(epoch, metrics)])

    def _log(self, epochs: History) -> None:
        log_epochs(self._project, run_name(self._config), epochs, run_id=self._run.id)

    def picture(self, epoch: int, figure: "Figure") -> None:
        self._trackio.log({"heads": self._trackio.Image(pixels(figure))}, step=epoch)

    def conclude(self, result: dict[str, Any], truth: np.ndarray, names: tuple[str, ...]) -> None:
        """Log result.json, each class's accuracy and the confusion matrix as tables, and the weights if asked."""
        predictions = np.load(self._folder / "predictions.npy")
        confusion = confusion_matrix(truth, predictions, len(names))
        accuracies = class_accuracies(confusion, names)
        tables: dict[str, tuple[list[str], list[list[Any]]]] = {
            "result": (["key", "value"], [[key, str(value)] for key, value in flatten(result).items()]),
            "class_accuracy": (["class", "accuracy"], [list(row) for row in accuracies.items()]),
            "confusion": (["class", *names], [[own, *row] for own, row in zip(names, confusion.tolist(), strict=True)]),
        }
        table = self._trackio.Table
        shown = {name: table(columns=columns, data=rows) for name, (columns, rows) in tables.items()}
        self._trackio.log(shown, step=self._config.epochs)
        if self._config.logger.weights:
            title = re.sub(r"[^\w.-]+", "-", display_name(self._config))
            self._trackio.log_artifact(self._folder / "weights.safetensors", name=title, type="model")

    def finish(self, status: str) -> None:
        self._trackio.finish()


def import_run(folder: Path, project: str) -> None:
    """Add a recorded run to a project, in place of an older one of the same name.

    Raises:
        Damaged: a file of the run folder cannot be read.
    """
    from trackio import SQLiteStorage

    plain = read_config(folder)
    run = name_of(plain)
    if flatten(plain).get("logger.name") == "trackio" and displayed(run) in SQLiteStorage.get_runs(project):
        return  # it logs there itself
    lines = [line for line in read_lines(folder, "metrics.jsonl") if len(line) > 1]
    epochs = [(line["epoch"], {key: value for key, value in line.items() if key != "epoch"}) for line in lines]
    # The same as for a live run, so that runs of a group are shown together.
    config = flatten(plain) | {"model": plain["model"]["name"], "_Group": run.rpartition("/")[0]}
    forget_other(project, run, epochs)
    log_epochs(project, run, epochs, config=config)


def forget_other(project: str, run: str, epochs: History) -> None:
    """Delete the records of a run of this name from a project, unless it has the same epochs."""
    from trackio import SQLiteStorage

    ours = dict(epochs)
    for log in SQLiteStorage.get_logs(project, displayed(run)):
        if any(ours.get(log["step"], {}).get(key) != log[key] for key in COMPARED if key in log):
            SQLiteStorage.delete_run(project, displayed(run))
            return


def log_epochs(project: str, run: str, epochs: History, **more: Any) -> None:
    """Log epochs of a run, by its name; those that the project has stay as they are.

    Args:
        more: other arguments of trackio.SQLiteStorage.bulk_log.
    """
    from trackio import SQLiteStorage

    steps, metrics = [epoch for epoch, _ in epochs], [numbers for _, numbers in epochs]
    log_ids = [f"{run} {epoch}" for epoch in steps]
    SQLiteStorage.bulk_log(project, displayed(run), metrics, steps=steps, log_ids=log_ids, **more)
