"""What all sittings of a run have recorded in its folder so far."""

from typing import Any

from attnconv.runs.folder import RunFolder
from attnconv.runs.records import ACCURACIES, read_lines


def recorded_epochs(folder: RunFolder, images: int) -> list[tuple[int, dict[str, float]]]:
    """Epochs and their metrics, for a dashboard that must not miss what earlier sittings recorded.

    Args:
        images: shown in an epoch.
    """
    timings = {record["epoch"]: record["train_seconds"] for record in read_lines(folder.path, "timing.jsonl")}
    history = []
    for record in read_lines(folder.path, "metrics.jsonl"):
        epoch = record.pop("epoch")
        history.append((epoch, record | {"images_per_second": images / timings[epoch]}))
    return history


def outcome(folder: RunFolder, images: int) -> dict[str, Any]:
    """Last-epoch accuracies and times, from the run folder, so that an interrupted run counts all of its sittings.

    Without `cpu_seconds` where an older version trained a part of the run and did not record them.
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
