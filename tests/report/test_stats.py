"""Claims over a few seeds: against textbook numbers, scipy, every possible resample, and the plain definition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from attnconv.report.stats import (
    Interval,
    bootstrap_interval,
    crossover,
    paired_difference,
    probability_of_improvement,
    probability_of_improvement_interval,
    summarise,
    t_interval,
)

# Nothing here may warn: a warning is a nan on its way into a table.
pytestmark = pytest.mark.filterwarnings("error")

# Gosset's sleep data (Student 1908): hours gained under two drugs by ten patients. R's t.test(paired = TRUE) gives
# t = -4.0621, p = 0.002833, -2.4598858 to -0.7001142.
DRUG_1 = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
DRUG_2 = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
ACCURACY = st.integers(9_000, 9_040).map(lambda correct: correct / 10_000)
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


def assert_percentiles(interval, outcomes, level, resamples=10_000):
    """Both ends are quantiles of equally likely outcomes, up to five standard errors of `resamples` draws of them."""
    outcomes = np.asarray(outcomes)
    tail = (1 - level) / 2
    slack = 5 * math.sqrt(tail * (1 - tail) / resamples)
    assert np.mean(outcomes < interval.low - 1e-9) <= tail + slack
    assert np.mean(outcomes <= interval.low + 1e-9) >= tail - slack
    assert np.mean(outcomes > interval.high + 1e-9) <= tail + slack
    assert np.mean(outcomes >= interval.high - 1e-9) >= tail - slack


def every_resample(values):
    return np.array(list(itertools.product(values, repeat=len(values))))


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262)])
def test_t_interval_has_the_textbooks_width(n, quantile):
    values = np.arange(n) / 100
    interval = t_interval(values)
    sd = math.sqrt(n * (n + 1) / 12) / 100  # of 0, 1, ..., n - 1, by n - 1
    half = quantile * sd / math.sqrt(n)
    middle = (n - 1) / 200
    assert (interval.low, interval.high) == pytest.approx((middle - half, middle + half), abs=half / 4_000)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda x: np.std(x) > 1e-6), st.floats(0.5, 0.99))
def test_t_interval_of_three_values_is_the_closed_form(values, level):
    quantile = level * math.sqrt(2 / (1 - level**2))  # of Student's t with two degrees of freedom
    half = quantile * np.std(values, ddof=1) / math.sqrt(3)
    interval = t_interval(values, level)
    assert (interval.low, interval.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)


def test_a_summary_says_what_its_values_say():
    summary = summarise([0.90, 0.92, 0.97], level=0.9)
    assert summary.n == 3
    assert summary.mean == pytest.approx(0.93)
    assert summary.sd == pytest.approx(math.sqrt((9 + 1 + 16) / 2) / 100)
    assert (summary.lowest, summary.highest) == (0.90, 0.97)
    assert summary.t == t_interval([0.90, 0.92, 0.97], 0.9) != t_interval([0.90, 0.92, 0.97])
    assert summary.bootstrap == bootstrap_interval([0.90, 0.92, 0.97], 0.9) != bootstrap_interval([0.90, 0.92, 0.97])


def test_one_run_has_a_mean_and_nothing_more():
    summary = summarise([0.91])
    assert (summary.n, summary.mean, summary.lowest, summary.highest) == (1, 0.91, 0.91, 0.91)
    assert (summary.sd, summary.t, summary.bootstrap) == (None, None, None)


def test_equal_runs_have_no_spread():
    summary = summarise([0.1, 0.1, 0.1])
    assert summary.sd == 0
    assert summary.t == Interval(0.1, 0.1)


@pytest.mark.parametrize("level", [0.95, 0.8, 0.5])
@pytest.mark.parametrize("values", [[0.90, 0.91, 0.95], [0.90, 0.91, 0.95, 0.97], [0.2, 0.2, 0.3, 0.9]])
def test_bootstrap_interval_is_that_of_every_resample(values, level):
    assert_percentiles(bootstrap_interval(values, level), every_resample(values).mean(axis=1), level)


def test_bootstrap_interval_is_the_same_again_and_another_for_another_seed():
    values = np.random.default_rng(0).normal(size=9)
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, resamples=9_999) != bootstrap_interval(values)


@pytest.mark.parametrize(("n", "covers"), [(3, 0.75), (5, 0.84)])
def test_bootstrap_under_covers_as_the_docstring_says(n, covers):
    samples = np.random.default_rng(0).normal(size=(1_500, n))
    intervals = [bootstrap_interval(sample, resamples=1_000) for sample in samples]
    assert np.mean([one.low <= 0 <= one.high for one in intervals]) == pytest.approx(covers, abs=0.03)
    if n == 3:
        ends = [(one.low, one.high) for one in intervals]
        np.testing.assert_allclose(ends, np.stack([samples.min(axis=1), samples.max(axis=1)], axis=1))


def test_t_interval_covers_what_it_says():
    samples = np.random.default_rng(0).normal(size=(2_000, 3))
    covered = [one.low <= 0 <= one.high for one in map(t_interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [[], [0.9, math.nan], [math.inf, 0.9], [[0.9, 0.8]], 0.9])
def test_what_is_no_row_of_finite_numbers_is_refused(values):
    for function in (summarise, t_interval, bootstrap_interval):
        with pytest.raises(ValueError, match="finite"):
            function(values)
    for pair in ((values, [0.9, 0.8]), ([0.9, 0.8], values)):
        for function in (probability_of_improvement, probability_of_improvement_interval):
            with pytest.raises(ValueError, match="finite"):
                function(*pair)


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
def test_a_level_is_a_share(level):
    curves = {0.1: {0: 0.5}, 1.0: {0: 0.6}}
    for call in (
        lambda: summarise([0.9], level),
        lambda: bootstrap_interval([0.9], level),
        lambda: paired_difference({0: 0.9}, {0: 0.8}, level),
        lambda: probability_of_improvement_interval([0.9], [0.8], level),
        lambda: crossover(curves, curves, level),
    ):
        with pytest.raises(ValueError, match="level"):
            call()


def test_paired_difference_of_gossets_sleep_data():
    paired = paired_difference(DRUG_1, DRUG_2)
    assert paired.seeds == tuple(range(10))
    assert paired.mean == pytest.approx(-1.58)
    assert paired.sd == pytest.approx(1.229995, rel=1e-6)
    assert paired.p == pytest.approx(0.002833, rel=1e-3)
    assert (paired.t.low, paired.t.high) == pytest.approx((-2.4598858, -0.7001142), rel=1e-7)


@given(st.dictionaries(st.integers(0, 9), st.tuples(ACCURACY, ACCURACY), min_size=2), st.sampled_from([0.8, 0.95]))
def test_p_and_interval_are_scipys_for_two_samples(runs, level):
    a, b = ({seed: pair[side] for seed, pair in runs.items()} for side in (0, 1))
    paired = paired_difference(a, b, level)
    if paired.sd == 0:
        assert len({round(a[seed] - b[seed], 9) for seed in runs}) == 1
        return
    expected = stats.ttest_rel(list(a.values()), list(b.values()))
    assert paired.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (paired.t.low, paired.t.high) == pytest.approx(tuple(expected.confidence_interval(level)), abs=1e-10)


def test_only_shared_seeds_count_in_whatever_order():
    paired = paired_difference({5: 0.95, 3: 0.93, 1: 0.92, 7: 0.1}, {1: 0.91, 2: math.nan, 3: 0.90, 5: 0.90})
    assert paired.seeds == (1, 3, 5)
    assert paired.mean == pytest.approx(0.03)
    assert paired.sd == pytest.approx(0.02)


def test_one_shared_seed_is_a_difference_and_nothing_more():
    paired = paired_difference({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.9})
    assert (paired.seeds, paired.mean) == ((1,), pytest.approx(0.1))
    assert (paired.sd, paired.t, paired.p) == (None, None, None)


@pytest.mark.parametrize(("gain", "p"), [(0.01, 0.0), (-0.01, 0.0), (0.0, 1.0)])
def test_the_same_difference_everywhere_is_a_point(gain, p):
    # 0.91 - 0.90 and 0.81 - 0.80 are not the same float.
    b = {0: 0.90, 1: 0.80, 2: 0.30, 3: 0.7}
    paired = paired_difference({seed: round(accuracy + gain, 2) for seed, accuracy in b.items()}, b)
    assert (paired.mean, paired.sd, paired.p) == (gain, 0.0, p)
    assert paired.t == Interval(gain, gain)


def test_seeds_must_be_shared_and_their_values_finite():
    with pytest.raises(ValueError, match="no seed is in both"):
        paired_difference({0: 0.9}, {1: 0.9})
    with pytest.raises(ValueError, match="finite"):
        paired_difference({0: 0.9, 1: math.nan}, {0: 0.8, 1: 0.9})


def share_of_wins(a, b):
    return sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b) / (len(a) * len(b))


@given(st.lists(ACCURACY, min_size=1, max_size=6), st.lists(ACCURACY, min_size=1, max_size=6))
@example([0.9, 0.9, 0.8], [0.9, 0.8])
def test_probability_of_improvement_counts_pairs(a, b):
    assert probability_of_improvement(a, b) == pytest.approx(share_of_wins(a, b))
    assert probability_of_improvement(b, a) == pytest.approx(1 - share_of_wins(a, b))


@pytest.mark.parametrize("level", [0.95, 0.8, 0.5])
@pytest.mark.parametrize(("a", "b"), [([0.5, 0.7, 0.9], [0.4, 0.6, 0.8]), ([0.5, 0.7, 0.9], [0.5, 0.5, 0.8, 0.9])])
def test_improvement_interval_is_that_of_every_pair_of_resamples(a, b, level):
    resamples = itertools.product(every_resample(a).tolist(), every_resample(b).tolist())
    outcomes = [share_of_wins(*pair) for pair in resamples]
    assert_percentiles(probability_of_improvement_interval(a, b, level), outcomes, level)


def test_probability_of_improvement_is_mann_and_whitneys():
    a, b = [0.9, 0.91, 0.95, 0.95], [0.89, 0.91, 0.94, 0.95, 0.96]
    assert probability_of_improvement(a, b) == pytest.approx(stats.mannwhitneyu(a, b).statistic / 20)


def test_improvement_has_no_interval_where_one_side_has_one_run():
    assert probability_of_improvement_interval([0.9], [0.8, 0.7, 0.95]) is None
    assert probability_of_improvement_interval([0.9, 0.7, 0.95], [0.8]) is None
    assert probability_of_improvement_interval([0.9, 0.8], [0.7, 0.6]) == Interval(1.0, 1.0)
