"""Protocols of the data-size study: runs at all fractions train for equal epochs or for equal steps."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

from attnconv.report.comparisons import REFERENCE, SURE, Cell, Gap, Row, block, cells, gap, is_of, logits, spread_of
from attnconv.report.stats import Estimate, Spread, holm, images_ratio, sign, slope


@dataclass(frozen=True)
class Ratio:
    """A ratio with the ends of its 95% interval, if there are repeated runs, and the number of pairs behind it."""

    value: float
    ends: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Protocol:
    """The runs that train on several fractions in the same way.

    Args:
        equal: epochs or steps.
        epochs: passes over the images used, or with equal steps over the number of images of the whole split.
    """

    equal: str
    epochs: int
    scale: str
    recipe: str
    precision: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Return what all its runs have in common, in a few words."""
        if self.equal == "epochs":
            return f"{self.epochs} epochs"
        return f"{int(self.rows[0]['steps'] or 0):,} steps"

    @property
    def heading(self) -> str:
        """Return the title, and what distinguishes it from other protocols."""
        return f"Equal {self.equal}: {self.title} ({self.precision}, scale={self.scale}, recipe={self.recipe})"

    @cached_property
    def cells(self) -> dict[float, Cell]:
        """Return the runs by fraction, model and block."""
        return cells(self.rows)

    @cached_property
    def spread(self) -> Spread | None:
        """Return the pooled standard deviation of one run's logit."""
        return spread_of(self.cells.values())

    @cached_property
    def models(self) -> list[str]:
        """Return the models, with the control first."""
        models = dict.fromkeys(model for cell in self.cells.values() for model in cell)
        return sorted(models, key=lambda model: model != REFERENCE)

    @cached_property
    def gaps(self) -> dict[tuple[str, float], Gap]:
        """Return the difference of each model from the control, by model and fraction."""
        found = {
            (model, fraction): gap(cell.get(model, {}), cell.get(REFERENCE, {}), self.spread)
            for fraction, cell in self.cells.items()
            for model in self.models
            if model != REFERENCE
        }
        return {key: one for key, one in found.items() if one is not None}

    @cached_property
    def sure(self) -> dict[tuple[str, float], bool]:
        """Return whether each difference is significant with Holm's correction over this protocol."""
        tested = {key: one.estimate.p for key, one in self.gaps.items() if one.estimate.p is not None}
        return dict(zip(tested, (p < SURE for p in holm(list(tested.values()))), strict=True))

    def sign(self, key: tuple[str, float]) -> int:
        """Return 1 or -1 if a model is significantly above or below the control, else 0."""
        return sign(self.gaps[key].value) if self.sure.get(key) else 0

    def paired(self, model: str) -> dict[float, list[Row]]:
        """Return the runs of a model that have a pair among the control's, by fraction."""
        return {
            fraction: [row for key, row in cell[model].items() if key in cell[REFERENCE]]
            for fraction, cell in self.cells.items()
            if (model, fraction) in self.gaps
        }

    def slope(self, model: str) -> Estimate | None:
        """Return the growth of the difference of logits per doubling of the images.

        Return None with fewer than two fractions.
        """
        pairs = {
            rows[0]["train_images"]: (logits(self.cells[fraction][model]), logits(self.cells[fraction][REFERENCE]))
            for fraction, rows in self.paired(model).items()
        }
        return slope(pairs, self.spread) if len(pairs) > 1 else None

    def ratio(self, model: str, accuracy: float) -> Ratio | None:
        """Return the images needed, divided by the control's; None if the curves do not reach the accuracy."""
        of_log = images_ratio(self._curves(model), self._curves(REFERENCE), accuracy)
        if of_log is None:
            return None
        interval = of_log.interval()
        ends = (math.exp(interval.low), math.exp(interval.high)) if interval else None
        return Ratio(math.exp(of_log.value), ends, of_log.n)

    def has_curves(self, model: str) -> bool:
        """Return whether a model and the control have runs of one seed at two fractions or more."""
        ours, theirs = self._curves(model), self._curves(REFERENCE)
        return any(min(len(ours[key]), len(theirs[key])) > 1 for key in ours if key in theirs)

    def _curves(self, model: str) -> dict[Hashable, dict[float, float]]:
        curves: dict[Hashable, dict[float, float]] = {}
        for cell in self.cells.values():
            for row in cell.get(model, {}).values():
                curves.setdefault((row["source"], row["seed"]), {})[row["train_images"]] = row["test_acc"]
        return curves


def protocols(rows: Iterable[Row]) -> list[Protocol]:
    """Return the protocols of the study, equal epochs first.

    The runs of table1 count for all images at equal epochs, if the study did not train them itself.
    """
    found: dict[tuple[str, int, str, str, str], list[Row]] = {}
    whole: dict[tuple[str, int, str, str, str], list[Row]] = {}
    for row in (row for row in rows if row["data"] == "cifar10" and not row["holdout"]):
        key = row["equal"], row["epochs"], row["scale"], row["recipe"], row["precision"]
        if is_of(row, f"data_size_{row['equal']}_{row['epochs']}"):
            found.setdefault(key, []).append(row)
        elif is_of(row, "table1"):
            whole.setdefault(key, []).append(row)
    for key, runs in found.items():
        own = {(row["model"], row["fraction"], block(row)) for row in runs}
        runs += [row for row in whole.get(key, []) if (row["model"], row["fraction"], block(row)) not in own]
    return [Protocol(*key, tuple(runs)) for key, runs in sorted(found.items())]
