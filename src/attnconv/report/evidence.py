"""The evidence for claims: pairs of runs of named experiments, and probe results of single runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from attnconv.files import FileError, reading
from attnconv.report.comparisons import ByBlock, Cell, Gap, Row, block, distinct, gap, spread_of
from attnconv.report.examined import PROBE, read_examined
from attnconv.report.stats import mcnemar

PRECISIONS = ("bf16", "fp32")
UNDER_A_POINT = 1.0  # McNemar's test is shown only for differences below this
LABELS = "test_labels.npy"  # of CIFAR-10, in the order of predictions.npy


@dataclass(frozen=True)
class Arm:
    """The runs of one model in one or several experiments.

    Args:
        experiments: names without their precision.
    """

    experiments: tuple[str, ...]
    model: str
    fraction: float = 1.0
    scale: str = "mini"
    recipe: str = "modern"

    @classmethod
    def parse(cls, text: str, **where: Any) -> "Arm":
        """Parse EXPERIMENT[,EXPERIMENT]/MODEL.

        Raises:
            ValueError: the text does not have this form.
        """
        experiments, slash, model = text.partition("/")
        if not (experiments and slash and model):
            raise ValueError(f"{text!r} is not EXPERIMENT/MODEL")
        return cls(tuple(experiments.split(",")), model, **where)

    def holds(self, row: Row, precision: str) -> bool:
        """Return whether a run belongs to one of the experiments, with any model and fraction."""
        names = {f"{name}_{precision}" for name in self.experiments}
        names |= set(self.experiments) if precision == "bf16" else set()  # the names of bf16 runs before fp32 was added
        return row["name"] in names and row["precision"] == precision and self._alike(row)

    def _alike(self, row: Row) -> bool:
        return (row["scale"], row["recipe"], row["data"], row["holdout"]) == (self.scale, self.recipe, "cifar10", 0)


@dataclass(frozen=True)
class Contrast:
    """One model compared with another in one precision.

    Args:
        seeds: number of different seeds among the pairs; external pairs may repeat one.
        mcnemar: p value of McNemar's test, for small differences between runs that kept their predictions.
    """

    precision: str
    gap: Gap
    seeds: int
    folders: tuple[str, ...]
    mcnemar: float | None

    def __str__(self) -> str:
        text = f"{self.gap} ({self.precision})"
        if self.mcnemar is not None:
            text += f", McNemar p = {self.mcnemar:.2g}"
        return text


@dataclass(frozen=True)
class Evidence:
    """The published runs, and the folder with their other results.

    Args:
        results: results/.
        rows: of runs.csv.
    """

    results: Path
    rows: list[Row]

    def runs(self, arm: Arm, precision: str) -> ByBlock:
        """Return the runs of an arm, by block."""
        return {
            block(row): row
            for row in distinct(row for row in self.rows if arm.holds(row, precision))
            if row["model"] == arm.model and row["fraction"] == arm.fraction
        }

    def contrast(self, ours: Arm, theirs: Arm, precisions: Iterable[str] = PRECISIONS) -> Contrast | None:
        """Compare two arms in the precision with more pairs of runs; return None if there are no pairs.

        The standard deviation is pooled over all models and fractions of the experiments.
        """
        best: tuple[int, str, ByBlock, ByBlock] | None = None
        for precision in precisions:
            a, b = self.runs(ours, precision), self.runs(theirs, precision)
            count = len(a.keys() & b.keys())
            if count and (best is None or count > best[0]):
                best = count, precision, a, b
        if best is None:
            return None
        _, precision, a, b = best
        found = gap(a, b, spread_of(self._cells([ours, theirs], precision)))
        assert found is not None
        shared = [key for key in a if key in b]
        folders = dict.fromkeys(runs[key]["run"].rpartition("/frac")[0] for runs in (a, b) for key in shared)
        close = abs(found.value) < UNDER_A_POINT
        seeds = len({a[key]["seed"] for key in shared})
        return Contrast(precision, found, seeds, tuple(folders), self._mcnemar(a, b, shared) if close else None)

    def _cells(self, arms: list[Arm], precision: str) -> Iterable[Cell]:
        """Return the runs of the experiments by fraction; a model counts once for each of its experiments."""
        found: dict[float, Cell] = {}
        for row in distinct(row for row in self.rows if any(arm.holds(row, precision) for arm in arms)):
            of_model = found.setdefault(row["fraction"], {}).setdefault(f"{row['name']}/{row['model']}", {})
            of_model[block(row)] = row
        return found.values()

    def _mcnemar(self, ours: ByBlock, theirs: ByBlock, shared: list[Any]) -> float | None:
        right = [[self.right(runs[key]) for key in shared] for runs in (ours, theirs)]
        if any(one is None for side in right for one in side):
            return None  # older runs did not keep predictions
        return mcnemar(*(np.stack(side) for side in right))  # type: ignore[arg-type]

    @cached_property
    def labels(self) -> "np.ndarray[Any, Any]":
        """Return the classes of CIFAR-10's test images."""
        with reading(self.results / LABELS):
            return np.load(self.results / LABELS, allow_pickle=False)

    def right(self, row: Row) -> "np.ndarray[Any, Any] | None":
        """Return which test images a run classified correctly, or None if its predictions were not kept.

        Raises:
            FileError: the predictions contradict the run's test accuracy.
        """
        path = self.results / "runs" / row["run"] / "predictions.npy"
        if not path.exists():
            return None
        with reading(path):
            predicted = np.load(path, allow_pickle=False)
            right = predicted == self.labels
            accuracy = round(float(right.mean()), 6)
        if accuracy != round(row["test_acc"], 6):
            raise FileError(f"{path} has accuracy {accuracy}, result.json {row['test_acc']}")
        return np.asarray(right)

    def probes(self, model: str, scale: str = "mini") -> list[tuple[Row, dict[str, Any]]]:
        """Return the largest group of probed runs of a model that differ only in the seed, with their probe results.

        These are runs on CIFAR-10 without a validation set. Among groups of equal size, it is that with the largest
        fraction. Results with uncommitted changes are left out.

        Raises:
            FileError: a probe.json is damaged.
        """
        groups: dict[tuple[float, str, str, str, int], list[tuple[Row, dict[str, Any]]]] = {}
        wanted = {"model": model, "scale": scale, "data": "cifar10", "holdout": 0, "source": None}
        alike = [row for row in self.rows if wanted.items() <= row.items()]
        for row, found in read_examined(self.results, alike, PROBE):
            kind = row["fraction"], row["name"], row["precision"], row["recipe"], row["epochs"]
            groups.setdefault(kind, []).append((row, found))
        return max(groups.items(), key=lambda group: (len(group[1]), group[0]))[1] if groups else []
