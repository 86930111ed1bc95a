"""The contents of results/, for loaders: groups of runs, curves, heads and maps.

This module does not import matplotlib.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnconv.files import FileError, read_json, read_json_lines, reading
from attnconv.report.comparisons import check_alike, distinct, is_of
from attnconv.report.runs_table import read_runs
from attnconv.runs.folder import PREPROCESSING_FILE
from attnconv.runs.status import collected_folder

Row = dict[str, Any]


@dataclass
class Results:
    """A results/ folder; each of its files is read once."""

    path: Path

    @cached_property
    def runs(self) -> list[Row]:
        """Return the rows of runs.csv that figures may show."""
        return read_runs(self.path / "runs.csv")

    def epochs(self, run: Row) -> list[Row]:
        """Return the records of all epochs of a run, times included.

        Raises:
            FileError: the records are damaged.
        """
        folder = self.folder(run)
        clock = {line["epoch"]: line for line in read_json_lines(folder / "timing.jsonl", ("epoch",))}
        lines = read_json_lines(folder / "metrics.jsonl", ("epoch",))
        return [{**clock.get(line["epoch"], {}), **line} for line in lines]

    def folder(self, run: Row) -> Path:
        """Return the folder of a run."""
        return collected_folder(self.path, run["run"])

    def of_study(self, study: str, **wanted: Any) -> list[Row]:
        """Return the runs named study or study_<precision>, in the precision with most runs.

        Args:
            wanted: columns of runs.csv and their required values.
        """
        named = [run for run in self.runs if is_of(run, study)]
        found = [run for run in named if all(run.get(key) == value for key, value in wanted.items())]
        kinds = {(run["name"], run["precision"]) for run in found}
        if not kinds:
            return []
        counts = {kind: sum((run["name"], run["precision"]) == kind for run in found) for kind in kinds}
        most = min(kinds, key=lambda kind: (-counts[kind], kind))
        return [run for run in found if (run["name"], run["precision"]) == most]

    def best_run(self, studies: tuple[str, ...], file: str, **wanted: Any) -> Row | None:
        """Return the run with this file in the first study that has one: of most images, then of the lowest seed.

        Runs of others count only if there is none of our own.
        """
        for study in studies:
            found = [run for run in self.of_study(study, **wanted) if (self.folder(run) / file).exists()]
            if found:
                return min(found, key=lambda run: (run["source"] or "", -run["train_images"], run["seed"]))
        return None


def by_seed(runs: Iterable[Row]) -> dict[Hashable, float]:
    """Return test accuracies by seed, and those of external runs by source and seed, without repetitions.

    Raises:
        RunFolderError: the runs of one model differ in other settings than the seed.
    """
    found = {(run["source"], run["seed"]) if run["source"] else run["seed"]: run for run in distinct(runs)}
    return {key: run["test_acc"] for key, run in check_alike(found).items()}


def title_of(run: Row) -> str:
    """Return a run as text for a figure's title."""
    return (
        f"{run['model']}, scale={run['scale']}, {run['train_images']:,} images, {run['epochs']} epochs, "
        f"test accuracy {run['test_acc']:.1%}"
    )


def read_heads(folder: Path) -> list[Row]:
    """Return the lines of a run's heads.jsonl, one per epoch.

    Raises:
        FileError: it is missing or damaged, or has no Gaussian heads.
    """
    lines = read_json_lines(folder / "heads.jsonl", ("epoch", "centers", "spreads"))
    if not lines:
        raise FileError(f"{folder / 'heads.jsonl'} is empty")
    return lines


def read_maps(folder: Path) -> NDArray[Any]:
    """Return a run's attention_maps.npy, (L, N, H, W).

    Raises:
        FileError: it is missing or damaged.
    """
    path = folder / "attention_maps.npy"
    with reading(path):
        maps: NDArray[Any] = np.load(path, allow_pickle=False)
        if maps.ndim != 4:
            raise ValueError(f"found an array of {maps.ndim} axes instead of 4")
    return maps


def grid_of(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Return the map of a run with Gaussian heads, in positions; older and collected runs have images of 32 pixels."""
    if (folder / "attention_maps.npy").exists():
        height, width = read_maps(folder).shape[2:]
        return height, width
    path, patch = folder / PREPROCESSING_FILE, config["model"]["patch"]
    _, height, width = read_json(path, ["image_shape"])["image_shape"] if path.exists() else (3, 32, 32)
    return height // patch, width // patch
