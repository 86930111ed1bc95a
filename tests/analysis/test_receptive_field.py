"""Receptive fields: gradients cover exactly the theoretical field, effective sizes, and equivariance."""

import itertools
import math

import pytest
import torch
from torch import nn

from attnconv.analysis import profile
from attnconv.analysis.heads import central_query
from attnconv.analysis.receptive_field import (
    effective_side,
    influence,
    permutation_error,
    shift_error,
    stacked_support,
    support,
    widest_pair,
)
from attnconv.config import compose
from attnconv.models.backbone import Backbone
from attnconv.models.build import build_model

pytestmark = pytest.mark.slow

SIDE = 9
SCALE = ["scale=mini", "scale.width=16", "scale.heads=4", "scale.hidden=8", "scale.layers=3", "scale.patch=1"]
SHAPE = (3, SIDE, SIDE)
MODELS = [
    ["model=conv3x3"],
    ["model=conv3x3", "model.mixer.kernel_size=5"],
    ["model=locally_connected"],
    ["model=involution", "model.mixer.kernel_size=3"],
    ["model=local_attention", "model.mixer.kernel_size=3"],
    ["model=local_attention", "model.mixer.kernel_size=3", "model.mixer.border=shift"],
    ["model=random_attention", "model.mixer.pattern.density=0.05"],
    ["model=global_attention", "model.mixer.pattern.count=2"],
    ["model=bigbird", "model.mixer.pattern.density=0.03", "model.mixer.pattern.count=1"],
    ["model=sa_quadratic"],
    ["model=mlp_mixer"],
]


def layers(overrides):
    torch.manual_seed(0)
    model = build_model(compose([*SCALE, *overrides]).model, SHAPE, 10).double().eval()
    assert isinstance(model, Backbone)
    return list(model.layers)


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
def test_gradients_cover_exactly_the_theoretical_receptive_field(overrides):
    stack = layers(overrides)
    maps = torch.randn(4, SIDE, SIDE, 16, dtype=torch.float64)
    for depth, (row, column) in itertools.product((1, 2, 3), ((4, 4), (0, 8))):
        seen = influence(nn.Sequential(*stack[:depth]), maps, (row, column)) > 0
        theory = stacked_support(support(stack[0].mixer, (SIDE, SIDE)), depth, row * SIDE + column)
        assert not (seen.flatten() & ~theory).any(), "a gradient from outside the field"
        assert torch.equal(seen.flatten(), theory)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_receptive_field_grows_by_k_minus_one_per_layer(kernel_size):
    (layer, *_) = layers(["model=conv3x3", f"model.mixer.kernel_size={kernel_size}"])
    for depth in (1, 2):
        seen = stacked_support(support(layer.mixer, (SIDE, SIDE)), depth, central_query(SIDE, SIDE))
        assert math.isqrt(int(seen.sum())) == min(SIDE, 1 + depth * (kernel_size - 1))


def test_effective_side_counts_the_pixels_with_most_of_the_influence():
    assert effective_side(torch.full((10, 10), 0.5)) == pytest.approx(math.sqrt(96))
    peaked = torch.zeros(10, 10)
    peaked[4:6, 4:6] = 1.0
    peaked[0, 0] = 0.1
    assert effective_side(peaked) == 2


@pytest.mark.parametrize(
    ("overrides", "shifts", "shuffles"),
    [
        (["model=conv3x3"], True, False),
        (["model=depthwise_global"], True, False),
        (["model=involution", "model.mixer.kernel_size=3"], True, False),
        (["model=local_attention", "model.mixer.kernel_size=3"], True, False),
        (["model=sa_content"], True, True),
        (["model=mlp_mixer"], False, False),
        (["model=locally_connected"], False, False),
        (["model=fully_connected"], False, False),
        (["model=random_attention"], False, False),
        (["model=sa_learned_content"], False, False),
    ],
)
def test_shift_and_permutation_equivariance(overrides, shifts, shuffles):
    """Away from the border, a shifted map gives a shifted output, or clearly does not; likewise for a shuffled map."""
    mixer = layers(overrides)[0].mixer
    maps = torch.randn(2, SIDE, SIDE, 16, dtype=torch.float64)
    errors = shift_error(mixer, maps, margin=3), permutation_error(mixer, maps)
    for error, holds in zip(errors, (shifts, shuffles), strict=True):
        assert error < 1e-6 if holds else error > 0.01


def test_influence_grows_in_proportion_to_the_weight_of_a_pixel():
    maps = torch.randn(4, 3, 3, 2, dtype=torch.float64)
    found = influence(lambda x: x + 3 * x.roll(1, 2), maps, (1, 1))
    assert found[1, 0].item() == pytest.approx(3 * found[1, 1].item())


def test_numbers_that_are_not_defined_are_refused():
    maps = torch.ones(1, 4, 4, 1)
    assert shift_error(lambda x: x, maps, 0) == 0
    for margin in (-1, 2):
        with pytest.raises(ValueError, match=f"no pixel of a 4x4 map is {margin} pixels from its border"):
            shift_error(lambda x: x, maps, margin)
    for error in (lambda layer: shift_error(layer, maps, 1), lambda layer: permutation_error(layer, maps)):
        with pytest.raises(ValueError, match="the layer's output is 0"):
            error(lambda x: 0 * x)
    with pytest.raises(ValueError, match="influences must be finite"):
        effective_side(maps * torch.nan)


@pytest.mark.parametrize("error", [lambda layer, maps: shift_error(layer, maps, 1), permutation_error])
def test_equivariance_errors_do_not_depend_on_the_scale_of_the_output(error):
    torch.manual_seed(0)
    weights, maps = torch.rand(1, 6, 6, 1), torch.randn(2, 6, 6, 3)
    torch.manual_seed(1)
    small = error(lambda x: weights * x, maps)
    torch.manual_seed(1)
    assert error(lambda x: 10 * weights * x, maps) == pytest.approx(small)


@pytest.mark.parametrize(
    ("name", "depth", "positions"),
    [("conv3x3", 1, 2), ("conv3x3", 2, 4), ("conv3x3", 4, 7), ("local_attention", 1, 6), ("sa_quadratic", 1, 7)],
)
def test_widest_pair_of_jointly_visible_pixels(name, depth, positions):
    node = compose([f"model={name}", "scale=mini", f"scale.layers={depth}"]).model
    assert widest_pair(node, depth, (3, 32, 32)) == positions


def test_effective_fields_are_in_pixels_of_the_image(monkeypatch):
    monkeypatch.setattr(profile, "effective_side", lambda influences: 3.0)
    row = profile.receptive_field_row("conv3x3")
    assert set(row["field_effective"].split()) == {f"{3 * profile.PATCH:.1f}"}


def test_growth_is_the_exponent_of_the_number_of_positions(monkeypatch):
    now = [0.0]

    def quadratic(x):
        now[0] += len(x) ** 2

    monkeypatch.setattr(profile, "_growth_model", lambda name, side: (quadratic, torch.zeros(side * side)))
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    assert profile.growth("conv3x3") == pytest.approx(2)
