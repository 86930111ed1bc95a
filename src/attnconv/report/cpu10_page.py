"""The table of results/cpu10.md, from results/cpu10.jsonl and results/external/NAME/cpu10.jsonl."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnconv.files import read_json_lines, reading
from attnconv.report.runs_table import sources
from attnconv.report.tables import markdown
from attnconv.runs.bounds import SHARE

FILE = "cpu10.jsonl"
LIMIT_SECONDS = 600.0
KEYS = (
    "entry", "seed", "mixing", "limit_seconds", "train_seconds", "epochs", "test_acc", "seconds_to_80", "matmul_gflops",
    "parameters", "device", "precision", "dirty",
)  # fmt: skip
CLASSES = {"attention": "attention only", "convolution": "convolution only", "both": "anything"}
HEADER = [
    "class", "entry", "runs", "test accuracy, mean (range)", "80% after", "passes over the images", "parameters",
    "minutes of training", "GFLOP/s of a matmul", "hardware",
]  # fmt: skip


def cpu10_lines(results: Path) -> list[dict[str, Any]]:
    """Return the entries that count, each with its `source`: empty for this project, else who made it.

    An entry with uncommitted changes or with another limit does not count.

    Raises:
        FileError: a file cannot be read.
    """
    lines = []
    for source in sources(results):
        path = results / "external" / source / FILE if source else results / FILE
        if path.exists() or not source:
            with reading(path):
                found = read_json_lines(path, KEYS, needed=not source)
                lines += [_checked(line) | {"source": source} for line in found]
    return [line for line in lines if line["dirty"] is False and line["limit_seconds"] == LIMIT_SECONDS]


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """Return an entry.

    Raises:
        ValueError: a number is impossible.
    """
    SHARE.check("test_acc is", line["test_acc"])
    if not 0 < line["train_seconds"] < math.inf:
        raise ValueError(f"train_seconds {line['train_seconds']} is not a time")
    return line


def cpu10_table(lines: Iterable[dict[str, Any]]) -> str:
    """Return one row per entry and machine, by class, the most accurate first; entries over the limit are marked.

    Runs of our entries with another number of epochs have their own row; the clock ends the epochs of a peer.
    """
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for line in lines:
        over = line["train_seconds"] > LIMIT_SECONDS
        epochs = line["epochs"] if isinstance(line["epochs"], int) else None
        key = (line["mixing"], line["entry"], line["source"], line["device"], line["precision"], over, epochs)
        groups.setdefault(key, {})[line["seed"]] = line  # of repeated seeds, the last one counts
    ranked = sorted(
        groups.items(), key=lambda group: (list(CLASSES).index(group[0][0]), -_mean(group[1].values(), "test_acc"))
    )
    return markdown(HEADER, [_row(key, list(runs.values())) for key, runs in ranked])


def _row(key: tuple[Any, ...], runs: list[dict[str, Any]]) -> list[str]:
    mixing, entry, source, device, precision, over, _ = key
    accuracies = [run["test_acc"] for run in runs]
    reached = [run["seconds_to_80"] for run in runs]
    rates = [rate for run in runs for rate in run["matmul_gflops"]]
    return [
        CLASSES[mixing],
        f"`{entry}`" + (f" by {source}" if source else "") + (", over ten minutes" if over else ""),
        str(len(runs)),
        f"{statistics.mean(accuracies):.1%}"
        + (f" ({min(accuracies):.1%} to {max(accuracies):.1%})" if len(runs) > 1 else ""),
        _mean_time(reached),
        f"{_mean(runs, 'epochs'):.2g}",
        f"{runs[0]['parameters']:,}",
        f"{_mean(runs, 'train_seconds') / 60:.1f}",
        f"{min(rates):.0f} to {max(rates):.0f}",
        f"{device}, {precision}",
    ]


def _mean_time(seconds: list[float | None]) -> str:
    """Return the mean of the times that are known, and how many are."""
    known = [value for value in seconds if value is not None]
    if not known:
        return "not reached"
    some = f"{len(known)} of {len(seconds)}: " if len(known) < len(seconds) else ""
    return f"{some}{statistics.mean(known) / 60:.1f} min"


def _mean(runs: Iterable[dict[str, Any]], key: str) -> float:
    return statistics.mean(run[key] for run in runs)
