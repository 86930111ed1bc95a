"""Pair runs, and compare their accuracies in points with an interval.

Two runs form a pair if they have the same seed, subset of the images, length, source, precision, recipe and scale.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from attnconv.errors import RunFolderError
from attnconv.report.runs_table import OF_RESULTS
from attnconv.report.stats import Estimate, Interval, Spread, difference, logit, points, pooled_spread

REFERENCE = "conv3x3"  # of all differences: the control, not the model that the recipe was tuned on
SURE = 0.05  # limit for the p values of one family, after Holm's correction

# Columns that are equal in repetitions of a run, like those of its settings.
ALIKE = ("data", "scale", "recipe", "equal", "epochs", "train_images", "holdout")
# Evaluating does not change the training, and copied heads come from the run with the same seed.
MAY_DIFFER = {"eval_every", "model.start"}

Row = dict[str, Any]  # of runs.csv
ByBlock = dict[Hashable, Row]
Cell = dict[str, ByBlock]  # by model; one fraction of the images in one protocol


def block(row: Row) -> tuple[Any, ...]:
    """Return the key that the two runs of a pair share within a protocol: source, seed, subset and length."""
    return row["source"], row["seed"], row["subset_hash"], row["equal"], row["epochs"]


def distinct(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the runs, our own first, without repetitions of the same training under another name or by someone else.

    A repetition adds no information about the noise of seeds. Training is deterministic, so it has the same accuracies.
    """
    seen = set()
    for row in sorted(rows, key=lambda row: row["source"] or ""):
        same = (
            *(row[key] for key in ("model", "parameters", "precision", "recipe", "scale", "train_acc", "test_acc")),
            *block(row)[1:],
        )
        if same not in seen:
            seen.add(same)
            yield row


def by_block(rows: Iterable[Row]) -> ByBlock:
    """Return runs of one model in one cell by block.

    Raises:
        RunFolderError: two runs of one block have different results, or settings other than the seed differ.
    """
    found: ByBlock = {}
    for row in rows:
        other = found.setdefault(block(row), row)
        if other is not row:
            raise RunFolderError(
                f"{other['run']} and {row['run']} have the same experiment, model and seed, but other results (test "
                f"accuracies {other['test_acc']} and {row['test_acc']}): give one of them its own name="
            )
    return check_alike(found)


def is_of(row: Row, experiment: str) -> bool:
    """Return whether a run belongs to an experiment, which adds the precision to the name of its runs."""
    names = [f"{experiment}_{row['precision']}"]
    if row["precision"] == "bf16":
        names.append(experiment)  # the name of bf16 runs before fp32 was added
    return row["name"] in names


def check_alike(runs: ByBlock) -> ByBlock:
    """Return the runs of one model in one cell, if their settings differ only in the seed.

    Raises:
        RunFolderError: they differ in another setting, so that their mean is not one model's accuracy.
    """
    found = list(runs.values())
    first = found[0] if found else {}
    for row in found[1:]:
        for key in (*ALIKE, *sorted(row.keys() - OF_RESULTS - MAY_DIFFER)):
            if row.get(key) != first.get(key):
                raise RunFolderError(
                    f"{first['run']} and {row['run']} have the same experiment and model, but {key}={first.get(key)} "
                    f"and {row.get(key)}: give one of them its own name="
                )
    return runs


def share_of_images(fraction: float) -> str:
    """Return a fraction of the training images in words."""
    return "all images" if fraction == 1 else f"{100 * fraction:.3g}% of the images"


def cells(rows: Iterable[Row]) -> dict[float, Cell]:
    """Sort the runs of one protocol by fraction, model and block, with the smallest fraction first.

    Raises:
        ValueError: the runs differ in precision, recipe or scale, so they must not be paired or averaged.
        RunFolderError: see `by_block`.
    """
    found: dict[float, dict[str, list[Row]]] = {}
    kinds = set()
    for row in sorted(
        distinct(rows), key=lambda row: (row["fraction"], row["model"] != REFERENCE, row["model"], row["seed"])
    ):
        kinds.add((row["precision"], row["recipe"], row["scale"]))
        found.setdefault(row["fraction"], {}).setdefault(row["model"], []).append(row)
    if len(kinds) > 1:
        raise ValueError(f"runs of several kinds: {', '.join(map(' '.join, sorted(kinds)))}")
    return {fraction: {model: by_block(runs) for model, runs in cell.items()} for fraction, cell in found.items()}


def logits(runs: Mapping[Hashable, Row]) -> dict[Hashable, float]:
    """Return the logit of the last epoch's test accuracy, by block."""
    return {key: logit(row["test_acc"]) for key, row in runs.items()}


def spread_of(found: Iterable[Cell]) -> Spread | None:
    """Return the standard deviation of one run's logit, pooled over the cells of a protocol.

    Return None without repeated runs.
    """
    return pooled_spread([{model: logits(runs) for model, runs in cell.items()} for cell in found])


@dataclass(frozen=True)
class Gap:
    """The difference of a model from another one.

    Args:
        estimate: of the difference of logits.
        reference: mean accuracy of the other model, at which logits are converted to points.
        external: number of external pairs.
    """

    estimate: Estimate
    reference: float
    external: int = 0

    @property
    def value(self) -> float:
        """Return the difference in percentage points."""
        return points(self.estimate.value, self.reference)

    @property
    def interval(self) -> Interval | None:
        """Return Student's 95% interval, in percentage points."""
        of_logits = self.estimate.interval()
        return of_logits and Interval(*(points(end, self.reference) for end in (of_logits.low, of_logits.high)))

    def __str__(self) -> str:
        return f"{self.value:+.1f}{between(self.interval, '+.1f')}, n={self.estimate.n}{marked(self.external)}"


def gap(ours: ByBlock, theirs: ByBlock, spread: Spread | None) -> Gap | None:
    """Compare two models over the blocks that both have; return None if they share none."""
    shared = [key for key in ours if key in theirs]
    if not shared:
        return None
    external = sum(ours[key]["source"] is not None for key in shared)
    reference = fmean(theirs[key]["test_acc"] for key in shared)
    return Gap(difference(logits(ours), logits(theirs), spread), reference, external)


def accuracy_text(runs: ByBlock, spread: Spread | None) -> str:
    """Return the mean test accuracy in percent, with its interval from a pooled standard deviation, and n.

    Args:
        spread: of the logit, among the runs of one model and fraction.
    """
    values, external = logits(runs), sum(row["source"] is not None for row in runs.values())
    n, middle = len(values), fmean(values.values())
    estimate = Estimate(middle, n, spread.sd / n**0.5, spread.df) if spread else Estimate(middle, n)
    of_logits = estimate.interval()
    interval = of_logits and Interval(*(points(end, 0.5) + 50 for end in (of_logits.low, of_logits.high)))
    return f"{points(middle, 0.5) + 50:.1f}{between(interval, '.1f')}, n={n}{marked(external)}"


def marked(external: int) -> str:
    """Return a suffix with the number of external runs."""
    return f" ({external} external)" if external else ""


def between(interval: Interval | None, form: str) -> str:
    """Return an interval as text after its number, " [+0.1, +0.3]" with the format "+.1f"; nothing for None."""
    return f" [{interval.low:{form}}, {interval.high:{form}}]" if interval else ""
