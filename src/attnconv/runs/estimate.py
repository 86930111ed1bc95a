"""How long runs take, from how long others took. Needs no torch, so that looking at a study is quick.

What is counted is the time of one core; a study has several runs at once, one on each.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from attnconv.config import Config
from attnconv.files import reading
from attnconv.runs.records import Damaged, read_result
from attnconv.runs.status import State, find_folders

AT_ONCE = 2  # runs of a study at a time, one thread each

# Seconds per training image of a network that was never timed, on one core with bf16; without, it is slower.
ASSUMED = {"mini": 0.0026, "small": 0.008}
FP32_SLOWER = 3.0

TRAINING_IMAGES = {"cifar10": 50_000, "digits": 1_437}
THREADS = re.compile(r", (\d+) threads?$")  # of a CPU, in the description of a device
TIMED = {"status", "model", "scale", "precision", "device", "seconds", "epochs", "train_images", "fraction"}


@dataclass(frozen=True)
class Work:
    """What decides how long a run takes.

    Args:
        images: training images that it sees in all.
    """

    model: str
    scale: str
    precision: str
    images: float


def work_of(config: Config) -> Work:
    """Say what a run has to do.

    Raises:
        FileError: its labels cannot be read.
    """
    data = config.data
    images = _training_images(config) * (1 - data.holdout) * (1.0 if data.equal == "steps" else data.fraction)
    return Work(config.model["name"], config.scale.name, config.precision, images * config.epochs)


class Rates:
    """Core seconds per training image, by model, scale and precision.

    Args:
        measured: of finished runs; where several have the same key, their median counts.
    """

    def __init__(self, measured: dict[tuple[str, str, str], list[float]] | None = None):
        self._rates = {key: median(rates) for key, rates in (measured or {}).items()}

    @classmethod
    def measured(cls, folders: Iterable[Path]) -> "Rates":
        """From the finished runs below some folders; those of several threads say nothing of one."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for run in (run for folder in folders for run in find_folders(folder)):
            try:
                result = read_result(run) or {}
            except Damaged:  # which a study and scripts/status.py say
                continue
            if result.keys() >= TIMED and result["status"] == "done" and (seconds := _seconds(result)) is not None:
                key = result["model"], result["scale"], result["precision"]
                found.setdefault(key, []).append(seconds / _images_seen(result))
        return cls(found)

    def seconds(self, work: Work) -> float:
        """Core seconds of a run from its start."""
        return work.images * self._rate(work)

    def _rate(self, work: Work) -> float:
        """Of the same; else in the other precision; else the median of other models; else assumed."""
        key = work.model, work.scale, work.precision
        if key in self._rates:
            return self._rates[key]
        other = "fp32" if work.precision != "fp32" else "bf16"
        slower = FP32_SLOWER if work.precision == "fp32" else 1 / FP32_SLOWER
        if (work.model, work.scale, other) in self._rates:
            return slower * self._rates[work.model, work.scale, other]
        alike = [rate for (_, *rest), rate in self._rates.items() if rest == [work.scale, work.precision]]
        if alike:
            return median(alike)
        return ASSUMED.get(work.scale, ASSUMED["mini"]) * (FP32_SLOWER if work.precision == "fp32" else 1)


def time_left(states: dict[Path, State], noted: dict[Path, dict[str, Any]], rates: Rates, at_once: int) -> float | None:
    """Seconds until the runs that a sweep noted and that can go on are done; None if there are no such runs.

    Args:
        noted: of a run's folder what cells.json has of it.
        at_once: runs at a time.
    """
    left = [
        rates.seconds(Work(**noted[folder]["work"])) * state.share_left
        for folder, state in states.items()
        if state.status not in ("done", "failed", "damaged") and "work" in noted.get(folder, {})
    ]
    return sum(left) / at_once if left else None


def duration(seconds: float) -> str:
    """A duration such as "4 h 10 min"."""
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _seconds(result: dict[str, Any]) -> float | None:
    """Return seconds of one core, or of the clock where a GPU did the work; None if several cores shared it."""
    threads = THREADS.search(result["device"])
    if threads is None:
        return result["seconds"]
    return result.get("cpu_seconds", result["seconds"]) if threads[1] == "1" else None


def _images_seen(result: dict[str, Any]) -> float:
    share = result["fraction"] if result.get("equal") == "steps" else 1
    return result["epochs"] * result["train_images"] / share


def _training_images(config: Config) -> int:
    """Training images before any are held out or left out."""
    data = config.data
    labels = Path(data.root, "train_labels.npy")
    if data.source == "arrays" and labels.exists():
        import numpy as np  # looking at a study needs none

        with reading(labels):
            return len(np.load(labels, mmap_mode="r"))
    return TRAINING_IMAGES.get(data.source, data.train_images)
