"""Data sets on the device: splits, normalization, and images that represent a split."""

import tracemalloc

import numpy as np
import pytest
import torch

from attnconv.config import DataConfig
from attnconv.data.dataset import Split, load_dataset
from conftest import write_arrays

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
