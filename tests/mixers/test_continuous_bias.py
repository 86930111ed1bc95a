"""Scores as a function of distance: smoother than a learned table, and as expressive on the map's shifts."""

import pytest
import torch

from attnconv.mixers.base import grid_shifts
from attnconv.mixers.blocked import apply_dense
from attnconv.mixers.continuous_bias import AxisDistanceEncoding, RadialDistanceEncoding, distance_encoding
from attnconv.mixers.encodings import AdditiveEncoding, LearnedEncoding
from attnconv.mixers.positional import PositionalAttention


def test_radial_scores_depend_only_on_distance():
    encoding = RadialDistanceEncoding(3, 4, (6, 6)).double()
    ring = torch.tensor([[3, 4], [-3, 4], [4, -3], [5, 0], [0, -5]])
    scores = encoding(ring)
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores))
    assert not torch.allclose(encoding(torch.tensor([[0, 1]])), scores[:, :1])


def test_axis_scores_distinguish_left_from_right():
    encoding = AxisDistanceEncoding(3, 4, (6, 6)).double()
    left, right = encoding(torch.tensor([[0, -2], [0, 2]])).unbind(-1)
    assert not torch.allclose(left, right)


@pytest.mark.parametrize("kind", ["axes", "radial"])
def test_scores_are_smoother_than_a_table_at_large_shifts(kind):
    torch.manual_seed(0)
    far = torch.tensor([[14, 0], [15, 0]])
    near = torch.tensor([[0, 0], [1, 0]])
    smooth = distance_encoding(9, 16, (16, 16), kind=kind)
    table = LearnedEncoding(9, 16, (16, 16))

    def jump(encoding, shifts):
        return encoding(shifts).diff(dim=-1).abs().mean().item()

    assert jump(smooth, far) < 0.5 * jump(smooth, near)
    assert jump(smooth, far) < 0.2 * jump(table, far)


@pytest.mark.parametrize("kind", ["axes", "radial"])
def test_score_functions_have_the_configured_hidden_width(kind):
    encoding = distance_encoding(3, 4, (4, 4), kind, hidden=7)
    assert {part.out_features for part in encoding.modules() if isinstance(part, torch.nn.Linear)} == {7, 3}


def test_score_function_with_the_tables_values_equals_the_table():
    torch.manual_seed(0)
    table = PositionalAttention(6, 2, (3, 4), LearnedEncoding).double()
    function = PositionalAttention(6, 2, (3, 4), AxisDistanceEncoding).double()
    function.value = table.value

    class Lookup(torch.nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.scores = scores

        def forward(self, shifts):
            return self.scores(shifts)

    for axis in ("row", "column"):
        setattr(function.encoding, f"{axis}_function", Lookup(getattr(table.encoding, f"{axis}_scores")))
    shifts, x = grid_shifts(3, 4), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(function.encoding(shifts), table.encoding(shifts))
    averages = apply_dense(function.encoding(shifts).softmax(-1), x)
    torch.testing.assert_close(function.value(averages), table(x))


def test_only_the_axis_encoding_is_additive():
    assert isinstance(distance_encoding(2, 4, (3, 3), "axes"), AdditiveEncoding)
    assert not isinstance(distance_encoding(2, 4, (3, 3), "radial"), AdditiveEncoding)
    with pytest.raises(ValueError, match="axes, radial"):
        distance_encoding(2, 4, (3, 3), "circle")
