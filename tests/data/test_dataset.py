"""Splits on the device: normalization, subsets and validation sets, and what a run folder records of them."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attnconv
from attnconv.config import DataConfig
from attnconv.data.dataset import Split, class_names, load_dataset, nested_fraction, split_holdout
from attnconv.data.synthetic_pairs import draw_scene, make_pairs
from attnconv.errors import DataError
from attnconv.files import FileError
from attnconv.runs.load import read_preprocessing
from conftest import compose, write_arrays

CPU = torch.device("cpu")


def config(root, **options):
    return DataConfig(name="x", source="arrays", root=str(root), **options)


def test_images_are_normalized_by_the_training_subset(tmp_path):
    write_arrays(tmp_path, train=80)
    data = load_dataset(config(tmp_path, fraction=0.5, holdout=0.25), CPU)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 20, 20)
    batch = torch.cat([images for images, _ in data.train.batches(7)])
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_match_numpy_with_less_memory(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (3000, 16, 16, channels)).astype(np.uint8)
    images[:, :8] //= 2
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_images.npy", images)
        np.save(tmp_path / f"{split}_labels.npy", np.arange(3000) % 4)
    train = load_dataset(config(tmp_path), CPU).train
    assert np.array_equal(train.mean.numpy(), (images.mean((0, 1, 2)) / 255).astype(np.float32))
    assert np.array_equal(train.std.numpy(), (images.std((0, 1, 2)) / 255).astype(np.float32))

    from attnconv.data.dataset import _moments

    tracemalloc.start()
    _moments(images)
    assert tracemalloc.get_traced_memory()[1] < 4 * images.nbytes
    tracemalloc.stop()


def test_a_channel_with_one_value_is_refused(tmp_path):
    write_arrays(tmp_path)
    images = np.load(tmp_path / "train_images.npy")
    images[..., 1] = 7
    np.save(tmp_path / "train_images.npy", images)
    with pytest.raises(DataError, match=r"channel 1 \(from 0\) has one .* set data\.std=\[0\.\d+,1,0\.\d+\]$"):
        load_dataset(config(tmp_path), torch.device("cpu"))


def test_equal_steps_count_the_images_that_the_holdout_leaves(tmp_path):
    write_arrays(tmp_path, train=80)
    data = load_dataset(config(tmp_path, holdout=0.2, fraction=0.5, equal="steps"), CPU)
    assert (len(data.train), data.epoch_images) == (32, 64)


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        ([0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 4, 6, 1, 5, 7, 2]),  # sorted by class: the classes in turn
        ([2, 2, 2, 0, 0, 1, 1, 1, 1], [0, 3, 5, 1, 4, 6, 2]),
        ([0, 1, 2, 0, 0, 1, 2, 2, 0], [0, 1, 2, 3, 4, 5, 6]),  # shuffled: the first ones
        ([1, 1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_examples_come_from_all_classes_of_a_sorted_split(labels, first):
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 1, 1, 1)
    split = Split(images, torch.tensor(labels), torch.zeros(1), torch.ones(1))
    assert (split.examples(7).flatten() * 255).round().tolist() == first
    assert len(split.examples(100)) == 9


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", ["a", "b", "c"]),
        ("mean", [None] * 3),
        ("mean", [0.5]),
        ("mean", [float("nan")] * 3),
        ("std", [0.2, 0.2, 0]),
        ("std", 0.2),
        ("image_shape", ["3", 8, 8]),
        ("image_shape", [3, 0, 8]),
        ("class_names", "abcd"),
        ("class_names", [1, 2, 3, 4]),
    ],
)
def test_a_damaged_preprocessing_is_a_one_line_error(tmp_path, key, value):
    good = {"image_shape": [3, 8, 8], "class_names": ["a", "b", "c", "d"], "mean": [0, 0.5, 0.5], "std": [1, 0.2, 0.2]}
    (tmp_path / "preprocessing.json").write_text(json.dumps(good))
    config = attnconv.compose(["data.root=nowhere"]).data
    assert read_preprocessing(tmp_path, config).std == (1, 0.2, 0.2)
    (tmp_path / "preprocessing.json").write_text(json.dumps(good | {key: value}))
    with pytest.raises(FileError, match=r"preprocessing\.json has unexpected content \("):
        read_preprocessing(tmp_path, config)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("agreement", lambda scene, i: "same" if (scene.colors[i, 0] == scene.colors[i, 1]).all() else "different"),
        ("texture", lambda scene, i: "vertical" if scene.vertical[i] else "horizontal"),
    ],
)
def test_the_names_of_classes_say_what_the_images_show(task, name):
    scene = draw_scene(20, 8, 0, 0, split=0)
    labels = make_pairs(task, 8, 0, 20, 20, 0, torch.device("cpu"))["train_labels"]
    names = class_names(attnconv.compose(["data=pairs", f"data.task={task}"]).data, 2)
    assert [names[label] for label in labels] == [name(scene, i) for i in range(20)]
