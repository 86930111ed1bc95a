"""Read everything that a run has recorded in its folder, over all of its starts."""

from typing import Any

from attnconv.runs.folder import RunFolder
from attnconv.runs.records import ACCURACIES, read_lines


def recorded_epochs(folder: RunFolder, images: int) -> list[tuple[int, dict[str, float]]]:
    """Return epochs and their metrics, including those of earlier starts, for a dashboard.

    Args:
        images: number of images shown in an epoch.
    """
    timings = {record["epoch"]: record["train_seconds"] for record in read_lines(folder.path, "timing.jsonl")}
    history = []
    for record in read_lines(folder.path, "metrics.jsonl"):
        epoch = record.pop("epoch")
        history.append((epoch, record | {"images_per_second": images / timings[epoch]}))
    return history


def final_numbers(folder: RunFolder, images: int) -> dict[str, Any]:
    """Return the accuracies of the last epoch, and the total times over all starts of the run.

    `cpu_seconds` is missing if an older version trained part of the run without recording it.
    """
    last, timings = read_lines(folder.path, "metrics.jsonl")[-1], read_lines(folder.path, "timing.jsonl")
    train_seconds = sum(timing["train_seconds"] for timing in timings)
    cpu = [timing.get(key) for timing in timings for key in ("train_cpu_seconds", "eval_cpu_seconds")]
    return {
        **{name.replace("/", "_"): last[name] for name in ACCURACIES if name in last},
        "train_seconds": train_seconds,
        "seconds": train_seconds + sum(timing["eval_seconds"] for timing in timings),
        **({} if None in cpu else {"cpu_seconds": sum(cpu)}),
        "images_per_second": images * len(timings) / train_seconds,
    }
