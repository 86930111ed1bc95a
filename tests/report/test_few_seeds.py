"""Statistics of unequal or very few seeds."""

import math

import numpy as np
import pytest

from attnconv.report.stats import Spread, shown_interval, slope


def test_slopes_weigh_fractions_by_their_number_of_seeds():
    """The error is that of a sum of independent differences of means, each with its own number of pairs."""
    pairs = {100.0: 1, 200.0: 2, 800.0: 4}
    gaps = {images: ({seed: 1.0 for seed in range(n)}, {seed: 0.0 for seed in range(4)}) for images, n in pairs.items()}
    x = np.log2(list(pairs)) - np.log2(list(pairs)).mean()
    variances = [2 * 0.3**2 / n for n in pairs.values()]
    expected = math.sqrt(sum((x / (x**2).sum()) ** 2 * variances))
    assert slope(gaps, Spread(0.3, 9)).error == pytest.approx(expected)


def test_figures_show_no_interval_for_fewer_than_three_seeds():
    assert shown_interval([0.1, 0.2]) is None
    assert shown_interval([0.1, 0.2, 0.3]) is not None
