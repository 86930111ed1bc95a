"""Attention patterns: which pixels see which others, checked pixel by pixel."""

import pytest
import torch

from attnconv.mixers.patterns import bigbird, global_tokens, random, spread_positions, window


def seen(mask, grid, query):
    """Return the set of pixels that a query sees."""
    (mask,) = mask
    row = mask[query[0] * grid[1] + query[1]]
    return {divmod(int(key), grid[1]) for key in row.nonzero()}


def test_a_window_in_the_interior_is_the_square_around_the_query():
    expected = {(r, c) for r in (1, 2, 3) for c in (2, 3, 4)}
    for border in ("shift", "zero"):
        assert seen(window((6, 7), 3, border), (6, 7), (2, 3)) == expected


def test_windows_at_the_border_are_cut_or_shifted():
    assert seen(window((6, 7), 3, "zero"), (6, 7), (0, 6)) == {(r, c) for r in (0, 1) for c in (5, 6)}
    assert seen(window((6, 7), 3, "shift"), (6, 7), (0, 6)) == {(r, c) for r in (0, 1, 2) for c in (4, 5, 6)}
    assert (window((6, 7), 5, "shift").sum(-1) == 25).all()


def test_a_window_as_large_as_the_map_sees_everything():
    assert window((5, 5), 5, "shift").all()


@pytest.mark.parametrize("density", [0.01, 0.25, 1.0])
def test_random_pattern_includes_the_query_and_has_the_given_density(density):
    mask = random((6, 6), density, seed=3, heads=2)
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert (mask.sum(-1) == max(1, round(36 * density))).all()


def test_random_pattern_depends_only_on_its_seed():
    torch.manual_seed(5)
    one = random((6, 6), 0.25, seed=1)
    torch.manual_seed(6)
    assert torch.equal(one, random((6, 6), 0.25, seed=1))
    assert not torch.equal(one, random((6, 6), 0.25, seed=2))


def test_random_pixels_differ_between_heads_but_not_with_the_head_count():
    three = random((6, 6), 0.25, seed=1, heads=3)
    assert torch.equal(three[:1], random((6, 6), 0.25, seed=1))
    assert not torch.equal(three[0], three[1])
    assert not torch.equal(three[1], three[2])


def test_random_keys_are_spread_over_the_map():
    counts = random((12, 12), 0.25, seed=0)[0].sum(0)
    assert counts.min() > 15
    assert counts.max() < 60


def test_global_pixels_see_all_and_are_seen_by_all():
    (mask,) = global_tokens((6, 6), 3)
    assert int(mask.all(1).sum()) == int(mask.all(0).sum()) == 3
    assert (mask.sum(1)[~mask.all(1)] == 4).all(), "the others see the three and themselves"


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("side", [8, 16])
def test_global_pixels_are_spread_over_rows_and_columns(side, count):
    rows, columns = zip(*(divmod(pixel, side) for pixel in spread_positions((side, side), count)), strict=True)
    assert min(len(set(rows)), len(set(columns))) >= 3
    assert len(set(zip(rows, columns, strict=True))) == count


def test_bigbird_is_the_union_of_its_parts():
    parts = window((6, 6), 3, "zero"), random((6, 6), 0.1, 7, heads=2), global_tokens((6, 6), 2)
    assert torch.equal(bigbird((6, 6), 3, 0.1, 2, seed=7, heads=2), parts[0] | parts[1] | parts[2])


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: window((6, 6), 4), "odd and at least 1, not 4"),
        (lambda: window((6, 6), 0), "odd and at least 1, not 0"),
        (lambda: window((6, 6), 7), "larger than the map of 6x6"),
        (lambda: window((6, 6), 3, "wrap"), "shift, zero"),
        (lambda: random((6, 6), 0.0), "above 0 and at most 1"),
        (lambda: random((6, 6), 1.1), "above 0 and at most 1"),
        (lambda: global_tokens((6, 6), 37), r"in 1\.\.36"),
        (lambda: global_tokens((6, 6), 0), r"in 1\.\.36"),
    ],
)
def test_invalid_pattern_options_are_refused(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


def test_the_first_global_pixel_is_the_center_of_an_oblong_map_and_the_second_a_corner():
    assert spread_positions((4, 9), 2) == [2 * 9 + 4, 0]
