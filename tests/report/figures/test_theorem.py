"""The figures of the theorem show what the layers compute."""

import numpy as np
import pytest

from attnconv.report.figures import report_data, theorem
from attnconv.report.figures.data import Photo
from attnconv.report.figures.results import Results
from conftest import REPOSITORY

PHOTO = Photo(np.random.default_rng(0).integers(0, 256, (9, 10, 3), dtype=np.uint8))


def shown(axis):
    """Return the array that an axis shows."""
    return np.ma.getdata(axis.images[0].get_array())


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_nine_heads_each_attend_to_one_pixel_and_sum_to_the_convolution():
    figure = theorem.nine_heads(report_data.small_kernel(Results(REPOSITORY / "results")))
    cells, (heads, output) = figure.axes[:18], figure.axes[18:]
    maps = [shown(axis) for axis in cells[::2]]
    assert [probs.argmax() for probs in maps] == [7 * row + column for row in (2, 3, 4) for column in (2, 3, 4)]
    assert all(probs.max() == 1 for probs in maps)
    assert [shown(axis).shape for axis in cells[1::2]] == [(3, 4)] * 9
    assert texts(heads) == [str(head) for head in range(1, 10)]
    added = shown(output)
    assert np.abs(added[:, 10]).max() > 1
    np.testing.assert_allclose(added[:, :9].sum(1), added[:, 10], atol=1e-9)
    np.testing.assert_allclose(added[:, 10], added[:, 12], atol=1e-9)


def test_attention_and_convolution_give_the_same_photo():
    photo, convolved, attended, difference = theorem.through_both(PHOTO).axes
    assert (shown(photo) == PHOTO.pixels).all()
    assert np.ptp(shown(convolved)) > 1
    np.testing.assert_allclose(shown(convolved), shown(attended), atol=1e-5)
    assert shown(difference).max() < 1e-5


def test_a_larger_alpha_sharpens_the_head():
    axes = theorem.sharpness((0.5, 46)).axes
    soft, hard = (shown(axis) for axis in axes)
    assert soft.argmax() == hard.argmax() == 5 * 9 + 5, "one down, one right of the middle"
    assert [axis.get_xlabel() for axis in axes] == ["elsewhere\n84.1%", r"elsewhere" + "\n" + r"$4\times 10^{-18}$%"]
    assert hard.max() == 1
    assert 1 - soft.max() == pytest.approx(0.841, abs=1e-3)


def test_at_the_border_only_padded_keys_give_the_convolution():
    corner, padded, differs, equal = theorem.border(PHOTO).axes
    assert texts(corner) == ["4", "2", "2", "1"]
    assert texts(padded) == ["1"] * 9
    assert shown(differs)[1:-1, 1:-1].max() < 1e-5 < 0.1 < shown(differs).max()
    assert shown(equal).max() < 1e-5


def test_the_error_falls_to_zero_with_enough_heads_and_dimensions():
    heads, dimensions = theorem.too_little(report_data.wide_kernel(Results(REPOSITORY / "results"))).axes
    for line in (*heads.lines, *dimensions.lines):
        missed = line.get_ydata()
        assert missed[-1] == 0
        assert (np.diff(missed) < 0).all()
    assert texts(heads) == ["8 heads:\n10%"]


def test_missing_images_or_another_data_set_give_no_photo(tmp_path):
    assert report_data.photo(Results(tmp_path)) is None
    np.savez(tmp_path / "test_images.npz", pixels=np.zeros((20, 8, 8, 1), np.uint8))
    assert report_data.photo(Results(tmp_path)) is None, "of another data set"
