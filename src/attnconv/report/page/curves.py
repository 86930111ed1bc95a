"""Accuracy by data and by time: the contents of results/runs.csv in the page's format."""

from collections.abc import Callable, Iterable
from typing import Any

from attnconv.errors import counted
from attnconv.report.comparisons import REFERENCE
from attnconv.report.data_size import LEVELS
from attnconv.report.page.command import command_of
from attnconv.report.protocols import Protocol, Ratio, protocols
from attnconv.report.stats import mean, shown_interval
from attnconv.runs.records import read_config
from attnconv.runs.status import collected_folder

POINT = ("run", "model", "scale", "recipe", "precision", "fraction", "train_images", "seed", "epochs", "test_acc")


def points(rows: Iterable[dict[str, Any]], results: Any, link: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return each published run as a point: settings, accuracy, minutes, command and folder.

    Minutes are the sum over all CPU cores, or wall-clock minutes (`clock`) if a run did not record that.
    """
    found = []
    for row in rows:
        about = {key: row[key] for key in POINT} | {"link": link(row["run"])}
        seconds = row["cpu_seconds"] or row["seconds"]
        about |= {"minutes": round(seconds / 60, 2), "clock": not row["cpu_seconds"]}
        about["command"] = command_of(read_config(collected_folder(results, row["run"])))
        found.append(about)
    return found


def data_size(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each protocol of experiment=data_size: curves of mean accuracy with 95% intervals, and the runs."""
    found = []
    for protocol in protocols(rows):
        curves: dict[str, list[dict[str, Any]]] = {model: [] for model in protocol.models}
        for cell in protocol.cells.values():
            for model, runs in cell.items():
                curves[model].append(_point(list(runs.values())))
        steps = f"{counted(protocol.epochs, 'epoch')} over the images used"
        if protocol.equal != "epochs":
            steps = f"as many steps as {counted(protocol.epochs, 'epoch')} over all images"
        title = f"{steps}, {protocol.scale} scale, {protocol.recipe} recipe, {protocol.precision}"
        about = {"name": protocol.rows[0]["name"], "title": title, "runs": [row["run"] for row in protocol.rows]}
        listed = [{"model": model, "points": points} for model, points in curves.items()]
        found.append(about | {"curves": listed, "needs": _needs(protocol)})
    return found


def _needs(protocol: Protocol) -> list[dict[str, Any]]:
    """Return the images that each model needs, divided by the control's, by accuracy, and the commands of its runs."""
    fractions = ",".join(f"{fraction:g}" for fraction in protocol.cells)
    fixed = f"scale={protocol.scale} recipe={protocol.recipe} precision={protocol.precision}"
    trained = f"data.equal={protocol.equal} epochs={protocol.epochs} data.fraction={fractions}"
    found = []
    for model in (model for model in protocol.models if model != REFERENCE):
        command = f"python train.py experiment=data_size {fixed} {trained} model={REFERENCE},{model}"
        points = [_need(level, ratio) for level in LEVELS if (ratio := protocol.ratio(model, level)) is not None]
        if points:
            run = next(row["run"] for row in protocol.rows if row["model"] == model)
            found.append({"model": model, "points": points, "command": command, "run": run.rpartition("/frac")[0]})
    return found


def _need(level: float, ratio: Ratio) -> dict[str, Any]:
    point = {"x": level, "y": round(ratio.value, 3), "n": ratio.n}
    return point | ({"low": round(ratio.ends[0], 3), "high": round(ratio.ends[1], 3)} if ratio.ends else {})


def _point(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean accuracy of runs of one model and one number of images."""
    accuracies = [row["test_acc"] for row in runs]
    interval = shown_interval(accuracies)
    point = {"x": int(runs[0]["train_images"]), "y": round(mean(accuracies).value, 5), "n": len(runs)}
    return point if interval is None else point | {"low": round(interval.low, 5), "high": round(interval.high, 5)}
