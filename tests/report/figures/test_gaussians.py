"""Ellipses enclose their stated share of attention, are all on one scale, and are not cut off."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.patches import Ellipse

from attnconv.report.figures import gaussians
from attnconv.report.figures.data import CentersInTraining, Gaussians, radius


def heads(centers, spreads, grid=(8, 8)):
    return Gaussians("some run", grid, np.array(centers, float), np.array(spreads, float))


def ellipses(figure):
    return [[patch for patch in axis.patches if isinstance(patch, Ellipse)] for axis in figure.axes]


def test_isotropic_heads_are_circles_with_the_expected_radius():
    figure = gaussians.centers(heads([[[1, -2]]], [[-2]]))
    ((half, most),) = ellipses(figure)
    for circle, mass in ((half, 0.5), (most, 0.9)):
        assert circle.width == circle.height == pytest.approx(2 * np.sqrt(-2 * np.log(1 - mass)) / 2)
        assert tuple(circle.center) == (-2, 1), "columns are across, rows down"
    (axis,) = figure.axes
    assert axis.get_ylim()[0] > axis.get_ylim()[1]


@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_a_tilted_ellipse_encloses_its_share_of_attention(mass):
    spread = np.array([[1.5, 0.3], [-0.4, 0.5]])
    head = heads([[[0.5, -1]]], [[spread]])
    covariance = np.linalg.inv(spread @ spread.T)
    points = np.random.default_rng(0).multivariate_normal([0.5, -1], covariance, size=20_000)
    (drawn,) = ellipses(gaussians.centers(head))
    ellipse = drawn[(0.5, 0.9).index(mass)]
    inside = ellipse.get_path().contains_points(ellipse.get_patch_transform().inverted().transform(points[:, ::-1]))
    assert inside.mean() == pytest.approx(mass, abs=0.012)
    corners = ellipse.get_patch_transform().transform(ellipse.get_path().vertices)
    assert head.reach(0, 0, mass) == pytest.approx(np.abs(corners).max(), rel=0.02)


def test_ellipses_are_not_cut_off_and_those_outside_the_map_are_labeled():
    drawn = heads([[[0, 0], [3, 3], [1, 0], [30, 0]]] * 2, [[0.3, 2, 1e-6, 2], [0, 1, 1, 1]])
    figure = gaussians.centers(drawn)
    limits = {(axis.get_xlim(), axis.get_ylim()) for axis in figure.axes}
    assert len(limits) == 1, "one scale"
    ((left, right), _) = limits.pop()
    for axis, patches in zip(figure.axes, ellipses(figure), strict=True):
        assert patches
        for patch in patches:
            corners = patch.get_patch_transform().transform(patch.get_path().vertices)
            assert left <= corners.min()
            assert corners.max() <= right
        said = [text.get_text() for text in axis.texts]
        assert said.count("center outside") == said.count("90% ring outside") == said.count("50% ring outside") == 1
    assert len(ellipses(figure)[0]) == 4, "of four heads two have no ellipse in the frame"


def test_sixteen_heads_of_one_layer_fit_in_one_panel():
    draw = np.random.default_rng(0)
    figure = gaussians.centers(heads(draw.normal(size=(1, 16, 2)), np.ones((1, 16)), (16, 16)))
    assert len(figure.axes) == 1
    assert len(ellipses(figure)[0]) == 32


def test_of_too_many_heads_and_layers_the_first_are_drawn(monkeypatch):
    figure = gaussians.centers(heads(np.full((1, 1000, 2), 99), np.ones((1, 1000))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, if a row of dots is wider than the figure
        figure.savefig(io.BytesIO())
    assert "the first 32 of 1,000 heads in the first 1 of 1 layers" in figure.get_suptitle().replace("\n", " ")
    assert [text.get_text() for text in figure.axes[0].texts].count("+16") == 3
    monkeypatch.setattr(gaussians, "MOST_IN_ALL", 5)
    assert len(gaussians.centers(heads(np.zeros((3, 2, 2)), np.ones((3, 2)))).axes) == 2


def test_missing_heads_are_not_drawn():
    drawn = heads([[[0, 0], [1, 1]], [[0, 0], [np.nan, np.nan]]], [[1, 1], [1, np.nan]])
    assert [len(patches) for patches in ellipses(gaussians.centers(drawn))] == [4, 2]
    assert [len(axis.collections) for axis in gaussians.as_printed(drawn).axes] == [4, 2]


def test_the_printed_threshold_encloses_the_stated_mass():
    head = heads([[[0, 0]]], [[0.8]])
    probs = gaussians.printed_probs(head, 0, 0)
    assert probs.shape == (11, 11)
    assert probs.sum() == pytest.approx(1)
    level = gaussians.printed_threshold(probs, 0.5)
    assert probs[probs >= level].sum() == pytest.approx(0.5, abs=0.12), "as near as whole cells come"
    assert radius(0.5) == pytest.approx(1.1774, abs=1e-4)


def test_paths_of_centers_have_columns_across_and_rows_down():
    found = CentersInTraining("a run", (8, 8), 1, [0, 1], np.array([[[1.0, -2.0]], [[3.0, 0.0]]]))
    _, last = (axis for axis in gaussians.centers_in_training(found).axes if axis.lines)
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in last.lines]
    assert ([-2, 0], [1, 3]) in lines
    assert ([0], [3]) in lines


def test_printed_contours_have_columns_across():
    (axis,) = gaussians.as_printed(heads([[[3, -3]]], [[1]])).axes
    points = np.concatenate([path.vertices for one in axis.collections for path in one.get_paths()])
    across, along_rows = points.mean(axis=0)
    assert across == pytest.approx(-3, abs=0.5)
    assert along_rows == pytest.approx(3, abs=0.5)
