"""Estimate how long runs take from finished runs, without importing torch.

Times are seconds of one core; a study runs several at once, one per core.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from attnconv.config import RESULTS, Config
from attnconv.files import reading
from attnconv.runs.records import Damaged, read_result
from attnconv.runs.status import BROKEN, CELLS_FILE, State, find_folders, read_state

AT_ONCE = 2  # runs of a study at a time, with one thread each

# Seconds per training image for networks that were never timed, on one core with bf16; without bf16 it is slower.
ASSUMED = {"mini": 0.0026, "small": 0.008}
FP32_SLOWER = 3.0

IMAGES = {"cifar10": {"train": 50_000, "test": 10_000}, "digits": {"train": 1_437, "test": 360}}
EVALUATED = 1 / 3  # the time of an evaluated image, as a share of that of a training image
FEWEST_IMAGES = 5_000  # seen in training; the first steps of a shorter run are most of its time
THREADS = re.compile(r", (\d+) threads?$")  # of a CPU, in the description of a device
Measured = dict[tuple[str, str, str], list[float]]  # core seconds per image of runs, by model, scale and precision
TIMED = {"status", "model", "scale", "precision", "device", "seconds", "epochs", "train_images", "fraction"}


@dataclass(frozen=True)
class Work:
    """The facts that determine how long a run takes.

    Args:
        images: number of training images that it sees in all epochs, and a share of those that it is evaluated on.
    """

    model: str
    scale: str
    precision: str
    images: float


def work_of(config: Config) -> Work:
    """Return the work of a run.

    Raises:
        FileError: its labels cannot be read.
    """
    data, train, test = config.data, _images(config, "train"), _images(config, "test")
    trained = config.epochs * train * (1 - data.holdout) * (1.0 if data.equal == "steps" else data.fraction)
    evaluations = math.ceil(config.epochs / config.eval_every)
    # With a validation set, test is scored only once.
    evaluated = evaluations * train * data.holdout + test if data.holdout else evaluations * test
    share = EVALUATED * (2 if config.eval_mirrored else 1)
    return Work(config.model["name"], config.scale.name, config.precision, trained + share * evaluated)


class Rates:
    """Core seconds per training image, by model, scale and precision.

    Args:
        measured: rates of finished runs; the median of equal keys is used.
    """

    def __init__(self, measured: Measured | None = None):
        self._rates = {key: median(rates) for key, rates in (measured or {}).items()}

    @classmethod
    def measured(cls, folders: Iterable[Path]) -> "Rates":
        """Measure rates from the finished runs in some folders; runs with several threads are ignored.

        Args:
            folders: rates of a later folder replace those of earlier ones, so put this machine's own runs last.
        """
        found: Measured = {}
        for folder in folders:
            found |= _measured(folder)
        return cls(found)

    def seconds(self, work: Work) -> float:
        """Return the core seconds of a run from its start."""
        return work.images * self._rate(work)

    def _rate(self, work: Work) -> float:
        """Return the rate of the same work, else of the other precision, of other models, or an assumed one."""
        if work.precision == "auto":  # of this machine, as are most rates
            of_scale = {key: rate for key, rate in self._rates.items() if key[1] == work.scale}
            of_model = [rate for key, rate in of_scale.items() if key[0] == work.model]
            known = of_model or list(of_scale.values())
            return median(known) if known else ASSUMED.get(work.scale, ASSUMED["mini"])
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


def _measured(folder: Path) -> Measured:
    found: Measured = {}
    for run in find_folders(folder):
        try:
            result = read_result(run) or {}
            if result.keys() >= TIMED and result["status"] == "done" and (seconds := _seconds(result)) is not None:
                key, images = (result["model"], result["scale"], result["precision"]), _images_seen(result)
                if images >= FEWEST_IMAGES:
                    found.setdefault(key, []).append(seconds / images)
        except (Damaged, ZeroDivisionError):  # a study and scripts/status.py report it
            continue
    return found


def time_left(states: dict[Path, State], noted: dict[Path, dict[str, Any]], rates: Rates, at_once: int) -> float | None:
    """Return the seconds until all runs that a sweep recorded and that can continue are done; None if there are none.

    Args:
        noted: the entries of cells.json by run folder.
        at_once: number of runs at a time.
    """
    left = [
        rates.seconds(Work(**noted[folder]["work"])) * state.share_left
        for folder, state in states.items()
        if state.status not in ("done", "failed", *BROKEN) and "work" in noted.get(folder, {})
    ]
    return sum(left) / at_once if left else None


def progress_line(record: Path, outputs: Path) -> str | None:
    """Return how many runs of a sweep are done and the time left, to print before each of its runs.

    None if the sweep recorded no cells.

    Args:
        record: folder of this start of the sweep, with cells.json.
        outputs: the folder of its run folders.
    """
    if not (record / CELLS_FILE).exists():
        return None
    noted = {outputs / cell["folder"]: cell for cell in json.loads((record / CELLS_FILE).read_text("utf-8"))}
    states = {folder: read_state(folder) for folder in noted}
    statuses = [state.status for state in states.values()]
    at_once = statuses.count("running") + 1  # including the one that is about to start
    seconds = time_left(states, noted, Rates.measured([RESULTS / "runs", outputs]), at_once)
    left = f", about {duration(seconds)} left" if seconds else ""
    return f"sweep: {statuses.count('done')} of {len(noted)} runs done{left}"


def duration(seconds: float) -> str:
    """Return a duration as text, such as "4 h 10 min"."""
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _seconds(result: dict[str, Any]) -> float | None:
    """Return the seconds of training on one core, or wall-clock on a GPU; None if several cores shared the run."""
    threads, trained = THREADS.search(result["device"]), result.get("train_seconds", result["seconds"])
    if threads is None:
        return trained
    return result.get("cpu_seconds", result["seconds"]) * trained / result["seconds"] if threads[1] == "1" else None


def _images_seen(result: dict[str, Any]) -> float:
    share = result["fraction"] if result.get("equal") == "steps" else 1
    return result["epochs"] * result["train_images"] / share


def _images(config: Config, split: str) -> int:
    """Return the number of images of a whole split."""
    data = config.data
    labels = Path(data.root, f"{split}_labels.npy")
    if data.source == "arrays" and labels.exists():
        import numpy as np  # not needed for other data sets

        with reading(labels):
            return len(np.load(labels, mmap_mode="r"))
    of_pairs = {"train": data.train_images, "test": data.test_images}
    return IMAGES.get(data.source, of_pairs)[split]
