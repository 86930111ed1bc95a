"""Accuracy against data and against time: what results/runs.csv has, in the form in which the page draws it."""

from collections.abc import Callable, Iterable
from typing import Any

from attnconv.report.data_size import accuracies, studies
from attnconv.report.page.command import command_of
from attnconv.report.stats import t_interval
from attnconv.runs.status import collected_folder, read_config

POINT = ("run", "model", "scale", "recipe", "precision", "fraction", "train_images", "seed", "epochs", "test_acc")
FEWEST = 3  # seeds for which an interval is shown


def points(rows: Iterable[dict[str, Any]], results: Any, link: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return every published run as a point: what it was, its accuracy, its minutes, its command, and where it is.

    Minutes are those of all CPU cores together, or on the clock (`clock`) where a run did not record that.
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
    """Return every protocol of experiment=data_size: curves of mean accuracy with 95% intervals, and the runs."""
    found = []
    for (name, scale, recipe, precision), of_study in sorted(studies(rows).items()):
        images = {row["fraction"]: int(row["train_images"]) for row in of_study}
        curves = [
            {"model": model, "points": [_point(images[fraction], seeds) for fraction, seeds in by_fraction.items()]}
            for model, by_fraction in accuracies(of_study).items()
        ]
        example = of_study[0]
        steps = f"{int(example['epochs'])} epochs over the images used"
        if example["equal"] != "epochs":
            steps = f"as many steps as {int(example['epochs'])} epochs over all images"
        title = f"{steps}, {scale} scale, {recipe} recipe, {precision}"
        found.append({"name": name, "title": title, "curves": curves, "runs": [row["run"] for row in of_study]})
    return found


def _point(images: int, by_seed: dict[int, float]) -> dict[str, Any]:
    values = list(by_seed.values())
    point: dict[str, Any] = {"x": images, "y": round(sum(values) / len(values), 5), "n": len(values)}
    interval = t_interval(values) if len(values) >= FEWEST else None
    return point if interval is None else point | {"low": round(interval.low, 5), "high": round(interval.high, 5)}
