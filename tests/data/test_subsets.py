"""Fractions of the data are nested and stratified; the holdout is disjoint from all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnconv.data.dataset import load_dataset, nested_fraction, split_holdout
from attnconv.errors import DataError
from conftest import compose

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [100, 80, 60, 100, 40]))


@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.integers(0, 50))
def test_a_smaller_fraction_is_a_subset_of_a_larger_one(one, other, seed):
    small, large = sorted((one, other))
    everything = np.arange(len(LABELS))
    assert set(nested_fraction(LABELS, everything, small, seed)) <= set(
        nested_fraction(LABELS, everything, large, seed)
    )


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 1.0])
def test_fractions_are_stratified_by_class(fraction):
    chosen = nested_fraction(LABELS, np.arange(len(LABELS)), fraction, seed=3)
    assert len(set(chosen)) == len(chosen)
    assert np.bincount(LABELS[chosen]).tolist() == [round(fraction * n) for n in np.bincount(LABELS)]


def test_classes_are_drawn_independently():
    labels = np.repeat([0, 1], 100)
    chosen = nested_fraction(labels, np.arange(200), 0.3, seed=0)
    assert set(chosen[chosen < 100]) != set(chosen[chosen >= 100] - 100)


def test_different_subset_seeds_choose_different_images():
    everything = np.arange(len(LABELS))
    one, other = (nested_fraction(LABELS, everything, 0.2, seed) for seed in (0, 1))
    assert len(one) == len(other)
    assert set(one) != set(other)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_data_set_holds_the_images_of_its_subset_seed(arrays, seed):
    part = ["data.fraction=0.5", f"data.subset_seed={seed}"]
    data = load_dataset(compose(["data=arrays", f"data.root={arrays}", *part]).data, torch.device("cpu"))
    chosen = nested_fraction(np.load(arrays / "train_labels.npy"), np.arange(40), 0.5, seed)
    assert np.array_equal(data.train.images, np.load(arrays / "train_images.npy")[chosen])


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_holdout_is_disjoint_stratified_and_deterministic(fraction):
    kept, held = split_holdout(LABELS, 0.2)
    assert set(kept) | set(held) == set(range(len(LABELS)))
    assert np.bincount(LABELS[held]).tolist() == [20, 16, 12, 20, 8]
    for seed in (0, 7):
        assert not set(nested_fraction(LABELS, kept, fraction, seed)) & set(held)
    assert np.array_equal(held, split_holdout(LABELS, 0.2)[1])


def test_zero_holdout_keeps_all_images():
    kept, held = split_holdout(LABELS, 0.0)
    assert (len(kept), len(held)) == (len(LABELS), 0)


def test_a_fraction_below_one_image_per_class_is_refused():
    with pytest.raises(DataError, match=r"data\.fraction=0\.01 of the 40 images of class 4 .* or more"):
        nested_fraction(LABELS, np.arange(len(LABELS)), 0.01, 0)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_holdout_that_empties_a_class_is_refused(share):
    with pytest.raises(DataError, match=r"data\.holdout"):
        split_holdout(LABELS, share)
