"""What test accuracies over a few seeds allow to be claimed: intervals, paired differences, improvement, crossovers.

Runs are few (one to ten), so there is no interval where there is none to give. The percentile bootstrap under-covers
with so few of them, here and below. Nominal 95% intervals of the mean of n normal values held it in this share of
10,000 samples for each n, with 10,000 resamples each (standard error 0.5% or less):

    n              2      3      4      5      7     10
    bootstrap    49%    75%    80%    84%    87%    91%
    Student's t  95%    95%    95%    95%    95%    95%

For n = 3 it is 75% by arithmetic: all three draws are the lowest value in 1/27 > 2.5% of resamples, so the interval is
[lowest, highest], and the three values lie on one side of the mean a quarter of the time. Claim with Student's t.
With 3, 5 and 10 seeds, in 1,000 samples of normal noise with 1,000 resamples (scripts/interval_coverage.py): 76%, 87%,
92% for the crossover of two straight lines over seven fractions, 84%, 90%, 94% for the probability of improvement of
means half an sd apart.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
BySeed = Mapping[int, float]
Curve = Mapping[float, BySeed]  # by fraction of the training images

# Accuracies differ by 1 / images or not at all: what is smaller than this is the rounding of a subtraction or a mean.
DECIMALS = 12


@dataclass(frozen=True)
class Interval:
    """A closed interval, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What n runs say about the mean; sd (n - 1 degrees of freedom) and intervals are None for one run."""

    n: int
    mean: float
    sd: float | None
    t: Interval | None
    bootstrap: Interval | None
    lowest: float
    highest: float


@dataclass(frozen=True)
class Paired:
    """Differences over shared seeds; sd, interval and two-sided p are None for one seed."""

    seeds: tuple[int, ...]
    mean: float
    sd: float | None
    t: Interval | None
    p: float | None


@dataclass(frozen=True)
class Crossover:
    """Where the curve that is above at the largest fraction has come to be above for good.

    `share` is the share of resamples in which the curves cross, and `interval` holds given that they do. `fraction` is
    None where the mean curves never cross, and `above` for a draw at the largest fraction.
    """

    fraction: float | None
    interval: Interval | None
    share: float
    above: Literal["a", "b"] | None


def summarise(values: ArrayLike, level: float = 0.95) -> Summary:
    """Summarise one accuracy per run.

    The percentile bootstrap of a mean under-covers for few runs: for n = 3, 95% means 75% (see the module).

    Raises:
        ValueError: no values (n,), or non-finite ones; a level outside (0, 1).
    """
    runs = _finite(values)
    mean, sd = _mean_sd(runs)
    intervals = t_interval(runs, level), bootstrap_interval(runs, level)
    return Summary(len(runs), mean, sd, *intervals, float(runs.min()), float(runs.max()))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval | None:
    """Give Student's t interval of the mean, exact for normal values; None for one value.

    Raises:
        ValueError: no values (n,), or non-finite ones; a level outside (0, 1).
    """
    runs, (_, upper) = _finite(values), _tails(level)
    mean, sd = _mean_sd(runs)
    if sd is None:
        return None
    half = float(stats.t.ppf(upper, len(runs) - 1)) * sd / math.sqrt(len(runs))
    return Interval(mean - half, mean + half)


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval | None:
    """Give the percentile bootstrap interval of the mean (Efron 1979); None for one value.

    Raises:
        ValueError: no values (n,), or non-finite ones; a level outside (0, 1).
    """
    return _percentile_bootstrap(np.mean, [_finite(values)], level, resamples, seed)


def paired_difference(a: BySeed, b: BySeed, level: float = 0.95) -> Paired:
    """Compare accuracies by seed, a - b over the seeds that both have, by Student's paired t test.

    Differences that are all the same give p = 0, or 1 if they are zero, and an interval of one point.

    Raises:
        ValueError: no shared seed, or a non-finite value at one; a level outside (0, 1).
    """
    seeds, differences = _differences(a, b)
    mean, sd = _mean_sd(differences)
    p = float(stats.ttest_1samp(differences, 0).pvalue) if sd else None if sd is None else float(mean == 0)
    return Paired(seeds, mean, sd, t_interval(differences, level), p)


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """Estimate P(a random run of a beats a random one of b), ties counting half.

    Source: Agarwal et al. 2021 (arXiv 2108.13264), for one task; it is Mann and Whitney's U / (n m).

    Raises:
        ValueError: no values in a (n,) or b (m,), or non-finite ones.
    """
    return float(_share_of_wins(_finite(a), _finite(b)))


def probability_of_improvement_interval(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval | None:
    """Give its percentile interval by stratified bootstrap, a and b resampled apart; None where either has one run.

    Where every run of one beats all of the other, so does every resample: the interval is a point, but no certainty.

    Raises:
        ValueError: no values in a (n,) or b (m,), or non-finite ones; a level outside (0, 1).
    """
    return _percentile_bootstrap(_share_of_wins, [_finite(a), _finite(b)], level, resamples, seed)


def crossover(a: Curve, b: Curve, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Crossover:
    """Find the fraction of the training images from which on one curve stays above: the last change of sign.

    Curves are means over the seeds that both have at a fraction, linear in log(fraction) from one shared fraction to
    the next. Touching without a change of sign is no crossing; curves that coincide between opposite signs cross where
    they part. After a draw at the largest fraction there is no crossing: neither is above from anywhere on.

    The percentile bootstrap resamples seeds, a and b together. Where every fraction has the same seeds, one draw serves
    all fractions, as runs of one seed share data; otherwise each has its own. A fraction with a single seed would count
    as known exactly: there is no interval then, and `share` is too sure.

    Raises:
        ValueError: fewer than two shared fractions, one without shared seeds, or a non-finite or non-positive one; a
            non-finite accuracy; a level outside (0, 1).
    """
    fractions = sorted(a.keys() & b.keys())
    if len(fractions) < 2 or not all(0 < fraction < math.inf for fraction in fractions):
        raise ValueError(f"a crossover needs two positive fractions or more that both have, not {fractions}")
    tails, draw, positions = _tails(level), np.random.default_rng(seed), np.array(fractions)
    seeds, differences = zip(*(_differences(a[fraction], b[fraction]) for fraction in fractions), strict=True)
    rows = [draw.integers(len(one), size=(resamples, len(one))) for one in seeds]
    if len(set(seeds)) == 1:
        rows = rows[:1] * len(seeds)
    resampled = np.stack([one[row].mean(axis=1) for one, row in zip(differences, rows, strict=True)], axis=1)
    curve = np.array([one.mean() for one in differences]).round(DECIMALS)
    found, crossings = (_last_crossings(curves, positions) for curves in (curve[None], resampled.round(DECIMALS)))

    above: Literal["a", "b"] | None = "a" if curve[-1] > 0 else "b" if curve[-1] < 0 else None
    known = found.size and crossings.size and min(map(len, seeds)) > 1
    interval = Interval(*np.quantile(crossings, tails).tolist()) if known else None
    return Crossover(float(found[0]) if found.size else None, interval, len(crossings) / resamples, above)


def _last_crossings(differences: Floats, fractions: Floats) -> Floats:
    """Of curves (R, F) of differences over rising fractions (F,), where those that cross do so last: (<= R,)."""
    opposite = np.sign(differences) * np.sign(differences[:, -1:]) < 0
    crosses = opposite.any(axis=1)
    differences, opposite = differences[crosses], opposite[crosses]
    after = np.arange(len(fractions)) >= len(fractions) - opposite[:, ::-1].argmax(axis=1)[:, None]
    # After the last opposite sign come zeros and the final sign; where that comes first, the crossing's segment ends.
    right = (after & (differences != 0)).argmax(axis=1)
    behind, ahead = (differences[np.arange(len(right)), place] for place in (right - 1, right))
    return fractions[right - 1] * (fractions[right] / fractions[right - 1]) ** (behind / (behind - ahead))


def _share_of_wins(a: Floats, b: Floats, axis: int = -1) -> Floats:
    """P(a > b) + P(a = b) / 2 over all pairs; the last axis holds the runs, which is the `axis` that scipy asks for."""
    return (1 + np.sign(a[..., :, None] - b[..., None, :]).mean(axis=(-2, -1))) / 2


def _percentile_bootstrap(
    statistic: Callable[..., Floats], samples: list[Floats], level: float, resamples: int, seed: int
) -> Interval | None:
    how = {"n_resamples": resamples, "confidence_level": level, "method": "percentile", "vectorized": True}
    _tails(level)
    if min(map(len, samples)) < 2:
        return None
    return Interval(*map(float, stats.bootstrap(samples, statistic, rng=seed, **how).confidence_interval))


def _mean_sd(runs: Floats) -> tuple[float, float | None]:
    # Exact sums: equal values have no spread at all, where numpy's mean of three times 0.1 is not 0.1.
    values = runs.tolist()
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def _differences(a: BySeed, b: BySeed) -> tuple[tuple[int, ...], Floats]:
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise ValueError(f"no seed is in both {sorted(a)} and {sorted(b)}")
    return seeds, _finite([a[seed] - b[seed] for seed in seeds]).round(DECIMALS)


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not at {level}")
    return (1 - level) / 2, (1 + level) / 2


def _finite(values: ArrayLike) -> Floats:
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 1 or not len(runs) or not np.isfinite(runs).all():
        raise ValueError(f"one finite value or more is needed in one row, not {runs.tolist()}")
    return runs
