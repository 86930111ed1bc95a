"""Synthetic pairs of marks match their labels, lie at exact distances, are balanced, and leave no shortcut."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.data.dataset import load_dataset
from attnconv.data.synthetic_pairs import (
    BLOCK,
    CELL,
    COLORS,
    SIDE,
    accuracy_of_counting,
    draw_scene,
    make_pairs,
    render,
)
from attnconv.errors import DataError
from conftest import compose

CPU = torch.device("cpu")


def corners_of(image, color):
    """Return the upper-left corners of the 2 x 2 marks of one color. No two marks share a cell."""
    places = {tuple(place) for place in np.argwhere((image == np.array(color)).all(axis=-1)).tolist()}
    by_cell = {}
    for row, column in sorted(places):
        by_cell.setdefault((row // CELL, column // CELL), (row, column))
    assert len(places) == 4 * len(by_cell)
    return set(by_cell.values())


@given(st.sampled_from(range(CELL, SIDE, CELL)), st.integers(0, 10), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_exactly_one_pair_is_at_the_distance_and_matches_the_label(distance, clutter, seed):
    scene = draw_scene(8, distance, clutter, seed, split=0)
    for image, agree in zip(render(scene, CPU).numpy(), scene.agree, strict=True):
        red, blue = (corners_of(image, color) for color in COLORS)
        assert len(red) + len(blue) == 2 + clutter, "no mark is covered"
        pairs = [
            (first in red) == (second in red)
            for first, second in itertools.combinations(sorted(red | blue), 2)
            if sorted(np.abs(np.subtract(first, second))) == [0, distance]
        ]
        assert pairs == [bool(agree)]


def test_stripe_direction_matches_the_label():
    scene = draw_scene(40, 8, 2, 0, split=0)
    for image, vertical, (row, column) in zip(render(scene, CPU).numpy(), scene.vertical, scene.block, strict=True):
        block = image[row : row + 8, column : column + 8].astype(int)
        uncovered = (block == block[..., :1]).all(-1)
        gray = np.where(uncovered, block[..., 0], -1)
        lines = gray if vertical else gray.T  # stripes as columns
        for line in lines.T:
            assert len(set(line.tolist()) - {-1}) <= 1
        assert gray[uncovered].std() > 30


def test_labels_are_balanced_and_independent_across_tasks():
    scene = draw_scene(1000, 12, 4, 0, split=0)
    assert scene.agree.sum() == scene.vertical.sum() == 500
    assert abs(np.corrcoef(scene.agree, scene.vertical)[0, 1]) < 0.1


def test_pairs_lie_along_both_axes_and_blocks_reach_all_borders():
    scene = draw_scene(400, 8, 0, 0, split=0)
    in_one_row = (scene.marks[:, 0, 0] == scene.marks[:, 1, 0]).mean()
    assert 0.4 < in_one_row < 0.6
    assert scene.block.min(axis=0).tolist() == [0, 0]
    assert scene.block.max(axis=0).tolist() == [SIDE - BLOCK] * 2


def test_accuracy_of_counting_matches_hand_calculation():
    """The number of red marks is Binomial(6, 1/2), plus 0 or 2 for equal pairs, plus 1 for others: 57.0% by hand."""
    binomial = np.array([math.comb(6, k) for k in range(7)]) / 64
    agree, differ = np.zeros(9), np.zeros(9)
    agree[:7] += binomial / 2
    agree[2:] += binomial / 2
    differ[1:8] += binomial
    by_hand = np.maximum(agree, differ).sum() / 2
    assert by_hand == pytest.approx(0.570, abs=0.001)
    assert accuracy_of_counting(8, 6) == pytest.approx(by_hand, abs=0.01)
    assert accuracy_of_counting(28, 6) > 0.7, "marks of such a pair lie at the border, so places are informative"
    assert accuracy_of_counting(8, 0) == 1.0, "two marks alone: equal ones add up, different ones cancel"


def test_images_are_deterministic_and_differ_by_seed_and_split():
    one, same, other = (make_pairs("texture", 8, 4, 20, 20, seed, CPU) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["train_images"], other["train_images"])
    assert not np.array_equal(one["train_images"], one["test_images"])


def test_task_changes_only_the_labels():
    texture, agreement = (make_pairs(task, 8, 4, 20, 20, 0, CPU) for task in ("texture", "agreement"))
    assert np.array_equal(texture["train_images"], agreement["train_images"])
    assert not np.array_equal(texture["train_labels"], agreement["train_labels"])


@pytest.mark.parametrize("task", ["texture", "agreement"])
def test_configuration_is_applied_to_the_dataset(task):
    scenes = ["data.distance=20", "data.clutter=2", "data.images_seed=5"]
    config = compose(["data=pairs", f"data.task={task}", *scenes, "data.train_images=30", "data.test_images=10"]).data
    data = load_dataset(config, CPU)
    assert (len(data.train), len(data.test), data.classes, data.image_shape) == (30, 10, 2, (3, 32, 32))
    assert "20 pixels apart" in data.origin
    expected = make_pairs(task, 20, 2, 30, 10, 5, CPU)
    assert np.array_equal(data.test.images, expected["test_images"])
    assert np.array_equal(data.test.labels, expected["test_labels"])


@pytest.mark.parametrize(
    ("distance", "clutter", "complaint"), [(6, 0, "multiple of 4"), (32, 0, "multiple of 4"), (8, 11, "at most 10")]
)
def test_invalid_distances_and_clutter_are_refused(distance, clutter, complaint):
    with pytest.raises(DataError, match=complaint):
        draw_scene(4, distance, clutter, 0, 0)


@pytest.mark.gpu
def test_gpu_and_cpu_render_identical_images():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    scene = draw_scene(64, 12, 6, 0, 0)
    assert torch.equal(render(scene, torch.device("cuda")).cpu(), render(scene, CPU))
