"""The evidence for claims: pairs of runs of named experiments, and probe results of single runs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from attnconv.files import reading
from attnconv.report.collect import LABELS
from attnconv.report.comparisons import ByBlock, Cell, Gap, Row, block, by_block, distinct, gap, is_of, spread_of
from attnconv.report.examined import PROBE, read_examined
from attnconv.report.stats import mcnemar
from attnconv.runs.records import right_answers

PRECISIONS = ("bf16", "fp32")
OF_STUDY = ("table1", "encodings", "data_size_epochs_20", "quarter")  # their networks decide what training does
SIXTEEN_HEADS = {"mini": "encodings_16_heads", "small": "small_16_heads", "paper": "many_heads"}  # by scale
UNDER_A_POINT = 1.0  # McNemar's test is shown only for differences below this


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
        of_one = any(is_of(row, name) for name in self.experiments)
        return of_one and row["precision"] == precision and self._alike(row)

    def _alike(self, row: Row) -> bool:
        return (row["scale"], row["recipe"], row["data"], row["holdout"]) == (self.scale, self.recipe, "cifar10", 0)


@dataclass(frozen=True)
class Contrast:
    """One model compared with another in one precision.

    Args:
        seeds: number of different seeds among the pairs; external pairs may repeat one.
        mcnemar: p value of McNemar's test, for small differences between runs that kept their predictions.
        other: the same comparison in the other precision, if it has pairs.
    """

    precision: str
    gap: Gap
    seeds: int
    folders: tuple[str, ...]
    mcnemar: float | None
    other: "Contrast | None" = None

    def __str__(self) -> str:
        text = f"{self.gap} ({self.precision})"
        if self.mcnemar is not None:
            text += f", McNemar p = {self.mcnemar:.2g}"
        return f"{text}; also {self.other}" if self.other else text


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
        """Return the runs of an arm, by block; those of its first experiment count before those of the next.

        Raises:
            RunFolderError: see `by_block`.
        """
        found: ByBlock = {}
        alike = [row for row in self.rows if (row["model"], row["fraction"]) == (arm.model, arm.fraction)]
        for name in arm.experiments:
            of_one = replace(arm, experiments=(name,))
            runs = distinct(row for row in alike if of_one.holds(row, precision))
            found = by_block(runs) | found
        return found

    def contrast(self, ours: Arm, theirs: Arm, precisions: Iterable[str] = PRECISIONS) -> Contrast | None:
        """Compare two arms in the precision with more pairs of runs; return None if there are no pairs.

        The standard deviation is pooled over all models and fractions of the experiments.
        """
        both = [self._contrast(ours, theirs, precision) for precision in precisions]
        found = sorted((one for one in both if one is not None), key=lambda one: -one.gap.estimate.n)
        return replace(found[0], other=next(iter(found[1:]), None)) if found else None

    def _contrast(self, ours: Arm, theirs: Arm, precision: str) -> Contrast | None:
        a, b = self.runs(ours, precision), self.runs(theirs, precision)
        found = gap(a, b, spread_of(self._cells([ours, theirs], precision)))
        if found is None:
            return None
        shared = [key for key in a if key in b]
        folders = dict.fromkeys(runs[key]["run"].rpartition("/frac")[0] for runs in (a, b) for key in shared)
        close = abs(found.value) < UNDER_A_POINT
        seeds = len({a[key]["seed"] for key in shared})
        return Contrast(precision, found, seeds, tuple(folders), self._mcnemar(a, b, shared) if close else None)

    def _cells(self, arms: list[Arm], precision: str) -> Iterable[Cell]:
        """Return the runs of the experiments by fraction; a model counts once for each of its experiments."""
        found: dict[float, Cell] = {}
        for row in distinct(row for row in self.rows if any(arm.holds(row, precision) for arm in arms)):
            experiment = row["name"].removesuffix(f"_{precision}")
            of_model = found.setdefault(row["fraction"], {}).setdefault(f"{experiment}/{row['model']}", {})
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
        return right_answers(path, self.labels, row["test_acc"]) if path.exists() else None

    def probes(
        self, arm: Arm, usable: Callable[[dict[str, Any]], bool] = lambda probe: True
    ) -> list[tuple[Row, dict[str, Any]]]:
        """Return the largest group of probed runs of an arm that differ only in the seed, with their probe results.

        These are our own runs, with any fraction: among groups of equal size, it is that with the largest one. Results
        with uncommitted changes are left out.

        Args:
            usable: whether a result counts.

        Raises:
            FileError: a probe.json is damaged.
            RunFolderError: runs of one experiment differ in other settings than the seed.
        """
        groups = []
        fractions = {row["fraction"] for row in self.rows}
        for name, precision, fraction in product(arm.experiments, PRECISIONS, sorted(fractions)):
            runs = self.runs(replace(arm, experiments=(name,), fraction=fraction), precision)
            own = [row for row in runs.values() if row["source"] is None]
            groups.append([found for found in read_examined(self.results, own, PROBE) if usable(found[1])])
        return max(groups, key=lambda group: (len(group), group[0][0]["fraction"] if group else 0), default=[])
