"""Statistics over a few seeds, checked against scipy, statsmodels 0.15.0, exhaustive definitions and simulations."""

import csv
import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from attnconv.report import stats as ours
from attnconv.report.stats import (
    components,
    crossing,
    difference,
    holm,
    images_needed,
    images_ratio,
    logit,
    mcnemar,
    mean,
    points,
    pooled_spread,
    pooled_within,
    slope,
)
from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")  # a warning means that a nan is about to enter a table

# Gosset's sleep data (Student 1908). R's t.test(paired = TRUE): p = 0.002833, -2.4598858 to -0.7001142.
DRUG_1 = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
DRUG_2 = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))


def paired(a, b):
    return difference(a, b, pooled_spread([{"a": a, "b": b}]))


def november(name):
    """Return test accuracies in percent of a published study: fraction -> model -> seed."""
    with (REPOSITORY / "results/runs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == name]
    found: dict = {}
    for row in rows:
        cell = found.setdefault(float(row["fraction"]), {}).setdefault(row["model"], {})
        cell[int(row["seed"])] = 100 * float(row["test_acc"])
    return found


EPOCHS, STEPS = november("data_size_epochs_20"), november("data_size_steps_1")


def of_logits(study):
    return [
        {model: {seed: logit(acc / 100) for seed, acc in row.items()} for model, row in cell.items()}
        for cell in study.values()
    ]


def test_difference_of_two_models_matches_the_paired_t_test():
    found = paired(DRUG_1, DRUG_2)
    assert (found.value, found.n, found.df) == (pytest.approx(-1.58), 10, 9)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.interval().low == pytest.approx(-2.4598858, abs=1e-7)
    assert found.interval().high == pytest.approx(-0.7001142, abs=1e-7)
    known = stats.ttest_rel(list(DRUG_1.values()), list(DRUG_2.values()))
    assert found.p == pytest.approx(known.pvalue)


def test_mean_interval_matches_scipy():
    values = list(DRUG_1.values())
    known = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean(values).interval(0.9)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert mean([0.5]).interval() is None
    assert mean([0.5]).p is None
    assert (mean([0.5, 0.5]).p, mean([0.5, 0.5]).interval()) == (None, None), "two equal values have no noise"


def test_pooled_spread_matches_the_statsmodels_residual():
    cells = of_logits(EPOCHS)
    whole = pooled_spread(cells)  # ols("y ~ C(m):C(f) + C(s):C(f)").mse_resid ** 0.5
    assert (whole.sd, whole.df) == (pytest.approx(0.029489545022986785, rel=1e-9), 40)
    quarter = pooled_spread(cells[-1:])
    assert (quarter.sd, quarter.df) == (pytest.approx(0.014932654062195455, rel=1e-9), 8)
    kept = {0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 14}  # not every model has every seed
    runs = [(model, seed, value) for model, row in sorted(cells[-1].items()) for seed, value in sorted(row.items())]
    sparse: dict = {}
    for place, (model, seed, value) in enumerate(runs):
        if place in kept:
            sparse.setdefault(model, {})[seed] = value
    some = pooled_spread([sparse])
    assert (some.sd, some.df) == (pytest.approx(0.018889515239566116, rel=1e-9), 4)


def test_pooled_within_pools_the_spread_of_each_group():
    found = pooled_within([[1.0, 3.0], [5.0], [2.0, 2.0, 5.0]])
    assert (found.sd, found.df) == (pytest.approx(math.sqrt((2 + 6) / 3)), 3)
    assert pooled_within([[1.0], [2.0]]) is None


def test_single_seeds_and_runs_without_noise_have_no_interval():
    assert pooled_spread([{"a": {0: 0.5}, "b": {0: 0.6}}]) is None
    assert pooled_spread([]) is None
    single = difference({0: 0.5}, {0: 0.4}, None)
    assert (single.value, single.n, single.interval(), single.p) == (pytest.approx(0.1), 1, None, None)
    equal = paired({0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.0, 1: 0.1, 2: 0.2})
    assert (equal.value, equal.interval(), equal.p) == (pytest.approx(0.1), None, None)


@pytest.mark.parametrize("call", [
    lambda: difference({0: 0.5}, {1: 0.5}, None),
    lambda: mean([]),
    lambda: mean([0.5, math.nan]),
    lambda: slope({100.0: ({0: 1.0}, {0: 0.5})}, None),
    lambda: components([[1.0, 2.0]]),
])  # fmt: skip
def test_invalid_inputs_raise(call):
    with pytest.raises(ValueError, match=r"block|finite|two"):
        call()


def test_points_inverts_logit_differences_and_extreme_logits_are_finite():
    assert logit(0.5) == 0
    assert points(logit(0.83) - logit(0.8), 0.8) == pytest.approx(3)
    assert -logit(0.0) == pytest.approx(logit(1.0)) == pytest.approx(math.log(19_999))


def test_holm_matches_statsmodels_and_the_closed_test():
    values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04]
    known = [0.05, 0.12, 0.12, 0.03, 0.5, 0.12]  # multipletests(values, method="holm")
    assert holm(values) == pytest.approx(known)
    with pytest.raises(ValueError, match="nan"):
        holm([0.01, float("nan")])
    for place, value in enumerate(known):
        # Rejected at a level if Bonferroni rejects every intersection that the hypothesis is part of.
        others = [p for other, p in enumerate(values) if other != place]
        groups = [(values[place], *some) for size in range(6) for some in itertools.combinations(others, size)]
        assert max(min(1.0, len(group) * min(group)) for group in groups) == pytest.approx(value)
    assert holm([]) == []


def test_november_differences_match_the_recorded_table():
    """The recorded table: paired differences from conv3x3 in points, with Student's half width over three seeds."""
    table = {
        ("sa_learned_content", "epochs"): "-3.4+-3.6 -6.7+-1.3 -8.9+-1.4 -6.7+-1.5 -6.7+-1.6",
        ("sa_learned", "epochs"): "-1.5+-1.8 -1.5+-0.2 -1.4+-2.0 -0.5+-1.5 -3.9+-0.7",
        ("sa_quadratic", "epochs"): "-1.6+-2.6 -2.1+-1.2 -0.8+-0.5 +1.3+-0.8 -0.4+-0.6",
        ("sa_learned_content", "steps"): "-9.2+-0.2 -8.8+-2.0 -5.4+-2.0",
        ("sa_learned", "steps"): "-3.5+-0.9 -1.2+-1.2 +1.9+-0.1",
    }
    for (model, protocol), line in table.items():
        study = EPOCHS if protocol == "epochs" else STEPS
        found = [paired(study[fraction][model], study[fraction]["conv3x3"]) for fraction in sorted(study)]
        assert " ".join(f"{cell.value:+.1f}+-{cell.interval().high - cell.value:.1f}" for cell in found) == line


def test_november_significance_counts_with_holm_and_pooling():
    alone, pooled = [], []
    for study in (EPOCHS, STEPS):
        spread = pooled_spread(study.values())
        for cell in study.values():
            for model in cell.keys() - {"sa_quadratic"}:
                alone.append(paired(cell[model], cell["sa_quadratic"]).p)
                pooled.append(difference(cell[model], cell["sa_quadratic"], spread).p)
    assert len(alone) == 32
    assert sum(p < 0.05 for p in alone) == 19
    assert sum(p < 0.05 for p in holm(alone)) == 2
    assert sum(p < 0.05 for p in holm(pooled)) == 21


def test_images_needed_interpolates_on_a_log_scale():
    curve = {100.0: 0.2, 1_000.0: 0.4, 10_000.0: 0.3, 100_000.0: 0.5}
    assert images_needed(curve, 0.3) == pytest.approx(100 * math.sqrt(10))
    assert images_needed(curve, 0.2) == 100
    assert images_needed(curve, 0.45) == pytest.approx(10 ** (4 + 0.75)), "after a dip, where it first gets there"
    assert images_needed(curve, 0.1) is None
    assert images_needed(curve, 0.6) is None
    assert images_needed({1.0: 0.3, 2.0: 0.3}, 0.3) is None


def test_november_image_ratios_match_the_recorded_values():
    curves = {
        model: {seed: {50_000 * fraction: EPOCHS[fraction][model][seed] for fraction in EPOCHS} for seed in range(3)}
        for model in ("conv3x3", "sa_learned_content")
    }
    written_down = {45: (1.68, 1.53, 1.86), 60: (1.84, 1.72, 1.95), 70: (1.71, 1.52, 1.92)}
    for accuracy, known in written_down.items():
        ratio = images_ratio(curves["sa_learned_content"], curves["conv3x3"], accuracy)
        interval = ratio.interval()
        found = [math.exp(number) for number in (ratio.value, interval.low, interval.high)]
        assert found == pytest.approx(known, abs=0.011)
        assert ratio.n == 3
    assert images_ratio(curves["sa_learned_content"], curves["conv3x3"], 85) is None
    assert images_ratio(curves["conv3x3"], curves["conv3x3"], 60).value == 0


def test_slope_matches_scipy_regression_of_the_mean_gaps():
    gaps = {500.0: ({0: 0.4, 1: 0.5}, {0: 0.3, 1: 0.5}), 1_000.0: ({0: 0.6, 1: 0.5}, {0: 0.3, 1: 0.4})}
    gaps[4_000.0] = ({0: 0.9, 1: 0.8}, {0: 0.5, 1: 0.6})
    known = stats.linregress(np.log2([500, 1_000, 4_000]), [0.05, 0.2, 0.3])
    assert slope(gaps, None).value == pytest.approx(known.slope)
    assert slope(gaps, None).interval() is None


def test_a_ratio_needs_all_seeds_to_reach_the_accuracy():
    control = {0: {100: 0.5, 1_000: 0.9}, 1: {100: 0.5, 1_000: 0.9}}
    better, worse = {100: 0.6, 1_000: 0.8}, {100: 0.4, 1_000: 0.6}
    assert images_ratio({0: better}, control, 0.7).n == 1
    assert images_ratio({0: better, 1: worse}, control, 0.7) is None
    assert images_ratio({0: better, 1: {100: 0.4}}, control, 0.7).n == 1, "a seed that has not run everywhere"


def test_a_crossing_needs_a_significant_lead_on_each_side():
    assert crossing({0.01: -1, 0.1: 0, 0.25: 1, 1.0: 0}) == (0.01, 0.25)
    assert crossing({0.25: 1, 0.01: -1, 0.1: 1, 1.0: -1}) == (0.25, 1.0)
    assert crossing({0.01: -1, 0.1: 0, 0.25: -1}) is None
    assert crossing({0.01: 0, 0.1: 1}) is None
    assert crossing({}) is None


def test_mcnemar_matches_statsmodels_and_counts_each_image_once():
    a, b = np.zeros((1, 200), dtype=bool), np.zeros((1, 200), dtype=bool)
    a[0, :59] = True
    b[0, 59:100] = True
    found = mcnemar(a, b)
    assert found == pytest.approx(0.07186063822585143)  # mcnemar(exact=False, correction=False)
    again = mcnemar(np.repeat(a, 3, axis=0), np.repeat(b, 3, axis=0))
    assert again == pytest.approx(found), "three equal seeds are no new images"
    assert mcnemar(a, a) == 1


def test_variance_components_match_statsmodels_mean_squares():
    grid = [[1.0, 2.0, 4.0], [2.5, 3.0, 5.5], [0.5, 2.5, 3.0], [1.5, 2.0, 6.0]]
    found = components(grid)
    assert found.rest == pytest.approx(math.sqrt(0.555556), rel=1e-6)
    assert found.seed == pytest.approx(math.sqrt((1.743056 - 0.555556) / 3), rel=1e-6)
    assert found.subset == pytest.approx(math.sqrt((11.083333 - 0.555556) / 4), rel=1e-6)
    assert components([[0.0, 1.0], [1.0, 0.0]]).seed == 0, "no variance is below 0"


def written(rate):
    """Return whether the module's docstring states this rate, to a tenth of a percent."""
    return re.search(rf" {rate:.1%}(\n| of studies)", ours.__doc__) is not None


FRACTIONS = [0.01, 0.025, 0.05, 0.1, 0.25]
STUDIES = 500


def simulated(draw, noise, lead, of_second=1):
    """Simulate five models, the second one ahead, at five fractions with three seeds that the models share."""
    values = draw.normal(0, 0.03, (5, 5, 3)) * np.reshape(noise, (5, 1, 1))
    values[:, 1] *= of_second
    values += draw.normal(0, 0.05, (5, 1, 3))
    values[:, 1] += lead
    return [{str(m): dict(enumerate(row)) for m, row in enumerate(cell.tolist())} for cell in values]


def holds(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.slow
def test_simulated_coverage_and_error_rates_match_the_docstring():
    draw = np.random.default_rng(0)
    held = found = crossed = sloped = 0
    for _ in range(STUDIES):
        cells = simulated(draw, np.ones(5), lead=0.3)
        spread = pooled_spread(cells)
        held += holds(difference(cells[0]["1"], cells[0]["0"], spread).interval(), 0.3)
        null = [difference(cell[model], cell["0"], spread) for model in "234" for cell in cells]
        signs = [
            int(np.sign(one.value)) * (p < 0.05) for one, p in zip(null, holm([one.p for one in null]), strict=True)
        ]
        found += any(signs)
        crossed += any(crossing(dict(zip(FRACTIONS, signs[5 * m : 5 * m + 5], strict=True))) for m in range(3))
        gaps = {50_000 * f: (cell["1"], cell["0"]) for f, cell in zip(FRACTIONS, cells, strict=True)}
        sloped += holds(slope(gaps, spread).interval(), 0)
    assert min(held, sloped) / STUDIES > 0.93
    assert found / STUDIES < 0.07
    assert crossed / STUDIES < 0.05
    assert all(written(count / STUDIES) for count in (held, found, crossed, sloped))


def test_simulated_coverage_when_small_fractions_are_noisier():
    draw, noise = np.random.default_rng(2), [1.5, 1.1, 1, 0.9, 0.6]
    first = last = found = 0
    for _ in range(STUDIES):
        cells = simulated(draw, noise, lead=0)
        spread = pooled_spread(cells)
        found += min(holm([difference(cell[model], cell["0"], spread).p for model in "1234" for cell in cells])) < 0.05
        first += holds(difference(cells[0]["1"], cells[0]["0"], spread).interval(), 0)
        last += holds(difference(cells[4]["1"], cells[4]["0"], spread).interval(), 0)
    assert first < 0.95 * STUDIES < last
    assert written(first / STUDIES)
    assert written(last / STUDIES)
    assert written(found / STUDIES)


def test_simulated_coverage_when_one_model_is_noisier():
    draw = np.random.default_rng(3)
    noisy = calm = 0
    for _ in range(STUDIES):
        cells = simulated(draw, np.ones(5), lead=0, of_second=2)
        spread = pooled_spread(cells)
        noisy += holds(difference(cells[0]["1"], cells[0]["0"], spread).interval(), 0)
        calm += holds(difference(cells[0]["2"], cells[0]["0"], spread).interval(), 0)
    assert noisy < 0.95 * STUDIES < calm
    assert written(noisy / STUDIES)
    assert written(calm / STUDIES)


def test_simulated_mcnemar_error_rate_over_seeds_that_share_images():
    """Two equally good models: each image has its own difficulty, and favors one of the models, in every seed."""
    draw, studies = np.random.default_rng(1), STUDIES
    wrong = 0
    for _ in range(studies):
        leaning, ease = draw.normal(0, 1.5, (1, 500)), draw.normal(1, 1.5, (1, 500))
        a, b = (draw.random((3, 500)) < 1 / (1 + np.exp(-(ease + side * leaning))) for side in (1, -1))
        wrong += mcnemar(a, b) < 0.05
    assert wrong / studies < 0.07
    assert written(wrong / studies)
