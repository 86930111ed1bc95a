"""Hard attention converts to the equivalent convolution; other attention is refused with an error naming the head."""

import copy
import itertools
import math

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from attnconv.analysis.attention_to_conv import convolution_from_attention
from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.mixers.encodings import LearnedEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention


def hard_attention(shifts, alpha=200.0, width=4):
    torch.manual_seed(0)
    layer = PositionalAttention(width, len(shifts), (7, 8), QuadraticEncoding).double()
    with torch.no_grad():
        layer.encoding.centers.copy_(torch.tensor(shifts))
        layer.encoding.spreads.fill_(math.sqrt(2 * alpha))
    return layer


def test_hard_attention_equals_its_convolution_except_at_the_border():
    shifts = [(-1, 0), (2, 1), (0, 0), (2, 1), (0, -3)]  # two heads at the same pixel; a 5 x 7 kernel
    layer = hard_attention(shifts)
    convolution = convolution_from_attention(layer, 7, 8)
    assert convolution.kernel_size == (5, 7)
    x = torch.randn(2, 7, 8, 4, dtype=torch.float64)
    attended, convolved = layer(x), convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    inside = (slice(None), slice(1, 5), slice(3, 7))  # from these queries, no head attends outside the map
    torch.testing.assert_close(convolved[inside], attended[inside], rtol=0, atol=1e-12)
    assert not torch.allclose(convolved, attended), "at the border they differ"


def test_round_trip_preserves_weight_and_bias():
    original = nn.Conv2d(4, 4, 3, padding=1).double()
    attention = ConvolutionAsAttention(original)
    layer = hard_attention([(row - 1, column - 1) for row, column in attention.encoding.centers.tolist()])
    with torch.no_grad():
        layer.value.weight.copy_(attention.value[0].T)
        layer.value.bias.copy_(attention.bias)
    layer.value.bias.requires_grad_(False)
    back = convolution_from_attention(layer, 7, 8)
    assert torch.equal(back.weight, original.weight)
    assert torch.equal(back.bias, original.bias)
    assert (back.weight.requires_grad, back.bias.requires_grad) == (True, False)


def test_attention_that_is_not_a_convolution_is_refused():
    soft = hard_attention([(0, 0), (1, 1)])
    with torch.no_grad():
        soft.encoding.spreads[1] = 1.0
    with pytest.raises(
        Inconvertible, match=r"head 1 is not a tap of a convolution: .* only 0\.\d+ of its attention is on the shift"
    ):
        convolution_from_attention(soft, 7, 8)
    with pytest.raises(Inconvertible, match="head 0 is not a tap"):  # between two pixels
        convolution_from_attention(hard_attention([(0.5, 0)]), 7, 8)
    with pytest.raises(Inconvertible, match="head 0 is not a tap"):  # untrained
        convolution_from_attention(PositionalAttention(4, 2, (7, 8), LearnedEncoding), 7, 8)
    with pytest.raises(Inconvertible, match="Linear is not position-only attention"):
        convolution_from_attention(nn.Linear(1, 1), 7, 8)
    broken = copy.deepcopy(hard_attention([(0, 0)]))
    broken.value = nn.Identity()
    with pytest.raises(Inconvertible, match="with a linear value projection"):
        convolution_from_attention(broken, 7, 8)
    with pytest.raises(ValueError, match="pass its height and width"):
        convolution_from_attention(hard_attention([(0, 0)]))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(PositionalAttention):
    def forward(self, x):
        return super().forward(x) + 1


def test_layers_that_compute_more_than_their_heads_are_refused():
    hooked, doubled, shifted = (hard_attention([(0, 0), (1, 1)]) for _ in range(3))
    hooked.value.register_forward_hook(lambda module, inputs, out: 3 * out)
    doubled.value.__class__, shifted.__class__ = Doubled, Shifted
    with pytest.raises(Inconvertible, match="has hooks"):
        convolution_from_attention(hooked, 7, 8)
    for layer in (doubled, shifted):
        with pytest.raises(Inconvertible, match="computes something else"):
            convolution_from_attention(layer, 7, 8)


def test_a_head_that_is_hard_at_the_corner_only_is_no_tap():
    layer = PositionalAttention(4, 1, (4, 4), LearnedEncoding)
    probs = torch.full((16, 16), 1 / 16)
    probs[0] = 0
    probs[0, 15] = 1
    layer.attention_probs = lambda height, width, x=None: probs[None, None]
    with pytest.raises(Inconvertible, match="head 0 is not a tap"):
        convolution_from_attention(layer, 4, 4)


def test_heads_at_every_shift_of_a_map_are_converted():
    shifts = list(itertools.product(range(-6, 7), range(-7, 8)))  # all shifts of a 7 x 8 map
    convolution = convolution_from_attention(hard_attention(shifts, width=1), 7, 8)
    layer = hard_attention(shifts, width=1)
    assert convolution.kernel_size == (13, 15)
    torch.testing.assert_close(convolution.weight.flatten(), layer.value.weight.flatten())


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2, padding_mode="reflect"),
        nn.Conv2d(4, 6, 2, padding="same", padding_mode="circular", bias=False),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv1d(4, 6, 5, padding=2),
        Conv2dSame(4, 6, 3, stride=2),
    ],
    ids=str,
)
def test_converted_convolutions_round_trip_exactly(convolution):
    back = convolution_from_attention(ConvolutionAsAttention(convolution))
    assert repr(back) == repr(convolution)
    assert all(map(torch.equal, back.state_dict().values(), convolution.state_dict().values()))


def test_conversion_uses_the_current_head_centers():
    attention, x = ConvolutionAsAttention(nn.Conv2d(2, 3, 3, padding=1)).double(), torch.randn(1, 2, 5, 6).double()
    with torch.no_grad():
        attention.encoding.centers.copy_(attention.encoding.centers.roll(1, 0))
        attention.encoding.centers[4] = attention.encoding.centers[0]
    torch.testing.assert_close(convolution_from_attention(attention)(x), attention(x))
    with torch.no_grad():
        attention.encoding.centers[3] += 0.5
    with pytest.raises(Inconvertible, match="head 3 "):
        convolution_from_attention(attention)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_center_between_two_pixels_of_either_axis_is_refused(axis):
    attention = ConvolutionAsAttention(nn.Conv2d(2, 3, 3, padding=1)).double()
    with torch.no_grad():
        attention.encoding.centers[4, axis] += 0.5
    with pytest.raises(Inconvertible, match="head 4 "):
        convolution_from_attention(attention)


def test_softer_heads_need_a_larger_tolerance():
    layer = hard_attention([(0, 0), (0, 1)], alpha=8.0)
    with pytest.raises(Inconvertible):
        convolution_from_attention(layer, 7, 8)
    assert convolution_from_attention(layer, 7, 8, tolerance=1e-2).kernel_size == (1, 3)


def test_asymmetric_padding_is_refused():
    layer = nn.Conv2d(4, 6, 3)
    layer.forward = lambda x, own=layer.forward: own(nn.functional.pad(x, (1, 0, 0, 3)))
    with pytest.raises(Inconvertible, match="pads its sides differently"):
        convolution_from_attention(ConvolutionAsAttention(layer))


def test_a_layer_that_crops_its_input_is_refused():
    layer = nn.Conv2d(4, 6, 3)
    layer.forward = lambda x, own=layer.forward: own(nn.functional.pad(x, (-1, -1, -1, -1)))
    with pytest.raises(Inconvertible, match="crops its input"):
        convolution_from_attention(ConvolutionAsAttention(layer))
