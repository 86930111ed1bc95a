"""Accuracies and differences in points, with intervals, as the pages show them."""

import math

import pytest
from fabricated import seeds
from scipy.stats import ttest_1samp

from attnconv.report.comparisons import accuracy_text, block, gap, logits
from attnconv.report.stats import logit, pooled_within


def by_block(model, accuracies):
    return {block(run): run for run in seeds("table1_bf16", model, accuracies)}


def test_the_interval_of_an_accuracy_is_that_of_the_mean_of_its_logits():
    accuracies = (0.70, 0.74, 0.72)
    runs = by_block("conv3x3", accuracies)
    known = ttest_1samp([logit(accuracy) for accuracy in accuracies], 0).confidence_interval(0.95)
    low, high = (100 / (1 + math.exp(-end)) for end in (known.low, known.high))
    text = accuracy_text(runs, pooled_within([logits(runs).values()]))
    assert text == f"72.0 [{low:.1f}, {high:.1f}], n=3"


def test_points_are_those_at_the_mean_accuracy_of_the_shared_runs():
    ours, theirs = by_block("sa_quadratic", (0.8, 0.8)), by_block("conv3x3", (0.7, 0.7, 0.1))
    assert gap(ours, theirs, None).value == pytest.approx(10)
