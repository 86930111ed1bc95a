"""Shift equivariance of all mixers with relative positions, up to border effects.

Rolling a map keeps the relative positions of pixels that do not cross the border. Global attention has no keys beyond
the border, so its averages change; its scores, and the ratios of its probabilities, do not.
"""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.mixers.content import ContentAttention
from attnconv.mixers.continuous_bias import distance_encoding
from attnconv.mixers.encodings import (
    GeneralizedQuadraticEncoding,
    LearnedEncoding,
    QuadraticEncoding,
    SinusoidalEncoding,
)
from attnconv.mixers.gated import GatedAttention
from attnconv.mixers.patterns import window
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.relative import LearnedRelativeVectors, SinusoidalRelativeVectors
from attnconv.mixers.window import WindowAttention

WIDTH, GRID = 8, (9, 9)
TERMS = {
    "sa_learned_content": {"relative": LearnedRelativeVectors},
    "sa_learned_key": {"relative": LearnedRelativeVectors, "content": False},
    "sa_quadratic_content": {"encoding": QuadraticEncoding},
    "sa_sinusoidal_content": {"relative": SinusoidalRelativeVectors, "key_bias": True, "relative_bias": True},
}
ENCODINGS = {
    "sa_quadratic": QuadraticEncoding,
    "sa_quadratic_generalized": GeneralizedQuadraticEncoding,
    "sa_learned": LearnedEncoding,
    "sa_sinusoidal": SinusoidalEncoding,
    "sa_distance, axes": distance_encoding,
    "sa_distance, radial": partial(distance_encoding, kind="radial"),
}
SHIFTS = st.tuples(st.integers(-2, 2), st.integers(-2, 2))
MAPS = torch.randn(1, *GRID, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MIDDLE = slice(3, 6)


def content(name, **options):
    torch.manual_seed(0)
    mixer = ContentAttention(WIDTH, 2, GRID, **TERMS[name], **options).double()
    with torch.no_grad():
        for bias in (mixer.key_bias, mixer.relative_bias):
            if bias is not None:
                bias.normal_()
    return mixer


def assert_moves_with_the_map(mixer, shift):
    moved = mixer(MAPS.roll(shift, dims=(1, 2)))
    expected = mixer(MAPS).roll(shift, dims=(1, 2))
    torch.testing.assert_close(moved[:, MIDDLE, MIDDLE], expected[:, MIDDLE, MIDDLE], rtol=0, atol=1e-12)


@given(SHIFTS, st.sampled_from(sorted(TERMS)))
@settings(max_examples=30, deadline=None)
def test_content_attention_scores_are_shift_equivariant(shift, name):
    """Score (q, k) of the rolled map is score (q - shift, k - shift) of the map, wherever all four pixels are in it."""
    scores = content(name).scores(MAPS).detach().unflatten(-1, GRID).unflatten(2, GRID)
    moved = content(name).scores(MAPS.roll(shift, dims=(1, 2))).detach().unflatten(-1, GRID).unflatten(2, GRID)
    here = tuple(slice(max(0, step), size + min(0, step)) for step, size in zip(shift, GRID, strict=True))
    before = tuple(slice(max(0, -step), size + min(0, -step)) for step, size in zip(shift, GRID, strict=True))
    torch.testing.assert_close(moved[:, :, *here, *here], scores[:, :, *before, *before], rtol=0, atol=1e-12)


@given(SHIFTS, st.sampled_from(sorted(TERMS)))
@settings(max_examples=30, deadline=None)
def test_windowed_content_attention_is_shift_equivariant(shift, name):
    assert_moves_with_the_map(content(name, pattern=partial(window, kernel_size=3, border="zero")), shift)


@given(SHIFTS, st.sampled_from(["gathered", "dense"]))
@settings(max_examples=20, deadline=None)
def test_window_attention_is_shift_equivariant(shift, impl):
    torch.manual_seed(0)
    assert_moves_with_the_map(WindowAttention(WIDTH, 2, GRID, kernel_size=3, border="zero", impl=impl).double(), shift)


@given(SHIFTS)
@settings(max_examples=20, deadline=None)
def test_gated_attention_with_sharp_heads_is_shift_equivariant(shift):
    """Its content part ignores positions, so a roll only reorders its keys; sharp heads never reach the border."""
    torch.manual_seed(0)
    assert_moves_with_the_map(GatedAttention(WIDTH, 9, GRID, alpha=40.0).double(), shift)


@pytest.mark.parametrize("name", ENCODINGS)
def test_position_only_probability_ratios_are_shift_equivariant(name):
    """After a shift by one pixel, the ratio of two keys' probabilities is the same, though their sums may differ."""
    torch.manual_seed(0)
    logs = PositionalAttention(WIDTH, 3, GRID, ENCODINGS[name]).double().attention_probs(*GRID).detach().log()
    logs = logs[0].unflatten(-1, GRID).unflatten(1, GRID)
    ratios = logs - logs[..., 4:5, 4:5]
    first, then = logs[:, :-1, :-1, :-1, :-1], logs[:, 1:, 1:, 1:, 1:]
    difference = (then - first).flatten(3)
    torch.testing.assert_close(difference, difference[..., :1].expand_as(difference), rtol=0, atol=1e-10)
    assert ratios.std() > 1e-3, "the heads must look somewhere for this to say anything"
