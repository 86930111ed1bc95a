"""Statistics over a few seeds: pooled intervals, Holm's correction, images needed, slopes, McNemar, components.

All values are logits of accuracy, for differences and slopes, so a gap means the same at 40% and at 90%. A *block* is
what the two runs of a pair share: the seed and, with it, the subset of the images.

The standard deviation of three differences has two degrees of freedom, and Student's t of 4.3 makes its interval wide.
Therefore all cells of one protocol share one standard deviation: that of the residuals of value = model + block in each
cell, with the degrees of freedom added up (a randomized block design in each cell). With two models in one cell, this
is the paired t test.

Rates in 500 simulated studies of five models, five fractions and three seeds (normal noise; recomputed by
tests/report/test_stats.py; the standard error of a rate near 95% is 1%):

    95% interval of a difference covers the true value                                96.0%
    95% interval of the slope per doubling covers the true value                      97.4%
    Holm's correction at 5% finds a difference, where there is none in 15              3.2%
    a crossing is printed, for three curves that are identical to the control's        0.0%
    McNemar's test at 5% finds a difference, of equal models on shared images          4.6%

The shared standard deviation assumes equal noise at all fractions and of all models. If 1% of the images is 1.5 times
as noisy as most fractions, and 25% is 0.6 times as noisy, similar to results/data_size.md, the interval covers the true
value

    at 1% of the images in                                                            81.8%
    at 25% of the images in                                                           99.8%

and Holm's correction at 5% finds a difference in 10.2% of studies in which none of 20 exists. If one of the five
models is twice as noisy as the others, like resnet10 after 20 epochs, the interval covers the true value

    of its difference from the control in                                             87.8%
    of another model's difference in                                                  99.0%
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ByBlock = Mapping[Hashable, float]
Curve = Mapping[float, float]  # accuracy by number of images

# Accuracies differ by at least 1 / images or not at all; smaller differences are rounding errors.
DECIMALS = 12

# Half an image of CIFAR-10's test set: an accuracy of 0 or 1 has no logit.
HALF_AN_IMAGE = 0.5 / 10_000

FEWEST = 3  # seeds for an interval in a figure


@dataclass(frozen=True)
class Interval:
    """A closed interval, in the unit of the values."""

    low: float
    high: float

    def within(self, margin: float) -> bool:
        """Return whether it lies between -margin and margin."""
        return -margin <= self.low and self.high <= margin

    def outside(self, margin: float) -> bool:
        """Return whether it lies entirely below -margin or above margin."""
        return self.low > margin or self.high < -margin


@dataclass(frozen=True)
class Spread:
    """A pooled standard deviation of one run, and its degrees of freedom."""

    sd: float
    df: int


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; interval and p are None without repeated runs.

    Args:
        n: number of runs or pairs behind it.
    """

    value: float
    n: int
    error: float | None = None
    df: int = 0

    def interval(self, level: float = 0.95) -> Interval | None:
        """Return Student's t interval; None without repeated runs or any noise, which says nothing about the noise."""
        if not self.error:
            return None
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * self.error
        return Interval(self.value - half, self.value + half)

    @property
    def p(self) -> float | None:
        """Return the two-sided p value for 0; None if there is no interval."""
        if not self.error:
            return None
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.df))


def sign(value: float) -> int:
    """Return 1, 0 or -1."""
    return (value > 0) - (value < 0)


def logit(accuracy: float) -> float:
    """Return log(p / (1 - p)); 0 and 1 count as half an image right or wrong."""
    clipped = min(max(accuracy, HALF_AN_IMAGE), 1 - HALF_AN_IMAGE)
    return math.log(clipped / (1 - clipped))


def points(difference: float, reference: float) -> float:
    """Convert a difference of logits to percentage points above a reference accuracy."""
    return 100 * (float(1 / (1 + np.exp(-(logit(reference) + difference)))) - reference)


def mean(values: Iterable[float]) -> Estimate:
    """Estimate a mean with Student's t interval.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    found = _finite(list(values))
    error = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    return Estimate(float(found.mean()), len(found), error, len(found) - 1)


def shown_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's 95% interval of a mean as figures show it: None for fewer than FEWEST values."""
    return mean(values).interval() if len(values) >= FEWEST else None


def pooled_spread(cells: Iterable[Mapping[str, ByBlock]]) -> Spread | None:
    """Pool the residuals of value = model + block over cells; return None without repeated runs or any noise.

    Args:
        cells: for each cell, such as a fraction of the images, the values by model and block.
    """
    squares, df = 0.0, 0
    for cell in cells:
        residuals, of_cell = _residuals([(m, b, value) for m, row in cell.items() for b, value in row.items()])
        squares, df = squares + float(residuals @ residuals), df + of_cell
    return Spread(math.sqrt(squares / df), df) if squares else None


def pooled_within(groups: Iterable[Iterable[float]]) -> Spread | None:
    """Pool the standard deviations of groups of repeated runs; return None without repeated runs."""
    found = [_finite(list(group)) for group in groups]
    df = sum(len(group) - 1 for group in found)
    squares = sum(float(((group - group.mean()).round(DECIMALS) ** 2).sum()) for group in found)
    return Spread(math.sqrt(squares / df), df) if df else None


def difference(ours: ByBlock, theirs: ByBlock, spread: Spread | None) -> Estimate:
    """Estimate ours - theirs over the blocks that both have.

    Args:
        spread: of the protocol, from `pooled_spread`.

    Raises:
        ValueError: no block is shared.
    """
    value, n = _mean_difference(ours, theirs)
    return Estimate(value, n, spread.sd * math.sqrt(2 / n), spread.df) if spread else Estimate(value, n)


def slope(gaps: Mapping[float, tuple[ByBlock, ByBlock]], spread: Spread | None) -> Estimate:
    """Estimate the growth of ours - theirs per doubling of the images: least squares on log2(images).

    Args:
        gaps: ours and theirs by number of images.
        spread: of the protocol, from `pooled_spread`.

    Raises:
        ValueError: fewer than two numbers of images, or one at which no block is shared.
    """
    if len(gaps) < 2:
        raise ValueError("a slope needs two numbers of images or more")
    x = np.log2(list(gaps))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    means, counts = zip(*(_mean_difference(*gap) for gap in gaps.values()), strict=True)
    value = round(float(weights @ np.array(means)), DECIMALS)
    if spread is None:
        return Estimate(value, min(counts))
    error = spread.sd * math.sqrt(2 * float((weights**2 / np.array(counts)).sum()))
    return Estimate(value, min(counts), error, spread.df)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of one family to bound the chance of any false finding (Holm 1979).

    Raises:
        ValueError: a p value is not in 0..1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must be in 0..1, not {[*p_values]}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def crossing(signs: Mapping[float, int]) -> tuple[float, float] | None:
    """Return the two fractions between which the order of two models last changes, or None if not located.

    Args:
        signs: 1 or -1 if one model is significantly ahead, else 0, by fraction.
    """
    known = [(fraction, sign) for fraction, sign in sorted(signs.items()) if sign]
    changes = [(a, b) for (a, sign), (b, other) in itertools.pairwise(known) if sign != other]
    return changes[-1] if changes else None


def images_needed(curve: Curve, accuracy: float) -> float | None:
    """Interpolate, in log images, where a curve first rises to an accuracy; None if it does not."""
    rising = sorted(curve.items())
    for (few, low), (many, high) in itertools.pairwise(rising):
        if low <= accuracy <= high and low < high:
            return float(few * (many / few) ** ((accuracy - low) / (high - low)))
    return None


def images_ratio(ours: Mapping[Hashable, Curve], theirs: Mapping[Hashable, Curve], accuracy: float) -> Estimate | None:
    """Estimate the log of the images-needed ratio ours / theirs for an accuracy, over the blocks that have both.

    Blocks with fewer numbers of images than others do not count. Return None if another curve does not reach the
    accuracy: the rest would be the better seeds.

    Args:
        ours, theirs: for each block, accuracies by number of images.
    """
    lengths = {block: min(len(ours[block]), len(theirs[block])) for block in ours if block in theirs}
    whole = [block for block, length in lengths.items() if length == max(lengths.values())]
    needed = [(images_needed(ours[block], accuracy), images_needed(theirs[block], accuracy)) for block in whole]
    ratios = [math.log(a / b) for a, b in needed if a is not None and b is not None]
    return mean(ratios) if ratios and len(ratios) == len(needed) else None


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Return McNemar's p value of two models, over seeds that share the test images (Durkalski et al. 2003).

    Images are the clusters, so an image that one model classifies correctly with all seeds counts once. For one seed,
    this is McNemar's test without continuity correction. It compares the trained networks, not the models: networks of
    one model with two seeds often differ significantly.

    Args:
        ours, theirs: right or wrong, (seeds, images).
    """
    a, b = np.asarray(ours, dtype=int), np.asarray(theirs, dtype=int)
    by_image = (a - b).sum(axis=0)
    total, squares = int(by_image.sum()), int((by_image**2).sum())
    return float(stats.chi2.sf(total**2 / squares, 1)) if squares else 1.0


@dataclass(frozen=True)
class Components:
    """Standard deviations of one run's value due to the seed, the subset of the images, and the rest."""

    seed: float
    subset: float
    rest: float


def components(grid: ArrayLike) -> Components:
    """Split the variance of a grid (seeds, subsets), with one run per cell, by its mean squares.

    Estimates below 0 are set to 0.

    Raises:
        ValueError: fewer than two seeds or subsets.
    """
    values = np.asarray(grid, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError("components need a grid of two seeds and two subsets or more")
    seeds, subsets = values.shape
    rows, columns = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    rest = float(((values - rows - columns + values.mean()) ** 2).sum()) / ((seeds - 1) * (subsets - 1))
    of_seed = (float(rows.var(ddof=1)) * subsets - rest) / subsets
    of_subset = (float(columns.var(ddof=1)) * seeds - rest) / seeds
    return Components(*(math.sqrt(max(0.0, part)) for part in (of_seed, of_subset, rest)))


def _residuals(runs: list[tuple[str, Hashable, float]]) -> tuple[NDArray[np.float64], int]:
    """Residuals of value = model + block, and their degrees of freedom."""
    if not runs:
        return np.zeros(0), 0
    effects = list(dict.fromkeys([("model", m) for m, *_ in runs] + [("block", b) for _, b, _ in runs]))
    design = np.zeros((len(runs), len(effects)))
    for row, (model, block, _) in enumerate(runs):
        design[row, effects.index(("model", model))] = design[row, effects.index(("block", block))] = 1
    values = _finite([value for *_, value in runs])
    fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return (values - design @ fitted).round(DECIMALS), len(runs) - int(rank)


def _mean_difference(ours: ByBlock, theirs: ByBlock) -> tuple[float, int]:
    shared = [block for block in ours if block in theirs]
    if not shared:
        raise ValueError(f"no block is in both {list(ours)} and {list(theirs)}")
    differences = _finite([ours[block] - theirs[block] for block in shared])
    return round(float(differences.mean()), DECIMALS), len(shared)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"finite values are needed, not {list(values)}")
    return found
