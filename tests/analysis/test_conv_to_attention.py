"""A convolution becomes attention that computes the same on every input, border included; and back, where it can."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attnconv.analysis.conv_to_attention import (
    ConvolutionAsAttention,
    Inconvertible,
    convert,
    convolution_from_attention,
    leak,
)
from attnconv.mixers.encodings import LearnedEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention


@st.composite
def convolutions(draw, axes):
    """A convolution of any kind and the size of a map that it fits."""
    numbers = st.integers
    kernel = tuple(draw(numbers(1, 4)) for _ in range(axes))
    dilation = tuple(draw(numbers(1, 3)) for _ in range(axes))
    stride = tuple(draw(numbers(1, 3)) for _ in range(axes))
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    size = tuple(draw(numbers(e, e + 6)) for e in extent)
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    widest = [max(0, s - 1) for s in size]  # reflection needs a pixel to reflect
    padding = tuple(draw(numbers(0, min(3, w))) for w in widest)
    if mode == "zeros" and max(stride) == 1 and draw(st.booleans()):
        padding = "same"
    groups = draw(numbers(1, 3))
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[axes]
    inputs, outputs = groups * draw(numbers(1, 3)), groups * draw(numbers(1, 3))
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return kind(inputs, outputs, kernel, bias=draw(st.booleans()), **settings), (2, inputs, *size)


@settings(max_examples=60, deadline=None)
@given(st.one_of(convolutions(1), convolutions(2)), st.integers(0, 2**31))
def test_any_convolution_is_attention(drawn, seed):
    convolution, shape = drawn
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    exact = convolution.double()(x)
    attention = ConvolutionAsAttention(convolution)
    assert attention.heads == math.prod(convolution.kernel_size)
    assert (attention(x) - exact).abs().max() <= 1e-10
    single = attention.float()(x.float())
    assert single.shape == exact.shape
    assert (single - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_probabilities_are_a_softmax_of_quadratic_scores_over_all_pixels():
    """Not a lookup in disguise: the layer's factored probabilities against the textbook's, and it uses those."""
    convolution = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), dilation=(1, 2), padding=1).double()
    attention = ConvolutionAsAttention(convolution, alpha=0.7)
    height, width = 7, 6
    probs = attention.attention_probs(height, width)[0]
    rows, columns = range(0, height - 2, 2), range(width - 2)
    for head, (a, b) in enumerate((a, b) for a in range(3) for b in range(2)):
        for query, (i, j) in enumerate((i, j) for i in rows for j in columns):
            scores = torch.tensor(
                [-0.7 * ((k - i - a) ** 2 + (m - j - 2 * b) ** 2) for k in range(height) for m in range(width)],
                dtype=torch.float64,
            )
            torch.testing.assert_close(probs[head, query], scores.softmax(0), rtol=0, atol=1e-12)
    x = torch.randn(2, 2, height - 2, width - 2, dtype=torch.float64)
    padded = nn.functional.pad(x, (1, 1, 1, 1)).flatten(2)
    taps = convolution.weight.flatten(2)  # (O, C, N)
    slow = torch.einsum("nqk,bck,ocn->boq", probs, padded, taps).unflatten(-1, (len(rows), len(columns)))
    torch.testing.assert_close(attention(x), slow + convolution.bias[:, None, None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 8.0, 20.0])
def test_too_small_an_alpha_leaves_the_error_that_theory_predicts(alpha):
    """One image that is 1 at one pixel and one tap of weight 1: what is missing there went to the other pixels."""
    convolution = nn.Conv2d(1, 1, 3, padding=40, bias=False).double()
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 1, 1] = 1
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    x[0, 0, 1, 1] = 1
    out = ConvolutionAsAttention(convolution, alpha)(x)
    error = (convolution(x) - out).abs()
    assert error.max().item() == pytest.approx(leak(alpha), rel=1e-9)
    assert error.sum().item() == pytest.approx(2 * leak(alpha), rel=1e-9), "what is missing there is elsewhere"


def test_the_papers_alpha_and_the_one_from_which_float32_is_exact():
    assert leak(46) == pytest.approx(4 * math.exp(-46))
    hard = [ConvolutionAsAttention(nn.Conv2d(1, 1, 3), alpha).attention_probs(9, 9) for alpha in (46, 104)]
    assert ((hard[0] > 0).sum(-1) > 1).any(), "neighbours keep 1e-20"
    assert ((hard[1] > 0).sum(-1) == 1).all()


def network():
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), shared, nn.ReLU(), shared, nn.Conv2d(8, 4, 1))


def test_a_network_is_converted_whole_and_a_shared_convolution_stays_one():
    model = network().eval()
    x = torch.randn(2, 3, 9, 9)
    before = model(x)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    replaced = convert(model)
    assert list(replaced) == ["0", "2", "4", "5"]
    assert replaced["2"] is replaced["4"]
    assert not any(isinstance(module, nn.Conv2d) for module in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    # Three numbers per head, its center and its spread, are all that it costs.
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters + 3 * (9 + 9 + 1)


def test_what_cannot_be_converted_is_named_and_nothing_is_touched():
    class Standardised(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Conv3d(1, 1, 1))
    with pytest.raises(Inconvertible, match=r"1 \(Standardised\), 2 \(ConvTranspose2d\), 3 \(Conv3d\)"):
        convert(model)
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(Inconvertible, match="has no convolution"):
        convert(nn.Linear(1, 1))


def hard_attention(shifts, alpha=200.0, width=4):
    torch.manual_seed(0)
    layer = PositionalAttention(width, len(shifts), (7, 8), QuadraticEncoding).double()
    with torch.no_grad():
        layer.encoding.centers.copy_(torch.tensor(shifts))
        layer.encoding.spreads.fill_(math.sqrt(2 * alpha))
    return layer


def test_hard_attention_is_the_convolution_that_it_equals():
    shifts = [(-1, 0), (2, 1), (0, 0), (2, 1), (0, -3)]  # two heads at one pixel, a kernel of 5 x 7
    layer = hard_attention(shifts)
    convolution = convolution_from_attention(layer, 7, 8)
    assert convolution.kernel_size == (5, 7)
    x = torch.randn(2, 7, 8, 4, dtype=torch.float64)
    attended, convolved = layer(x), convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    inside = (slice(None), slice(1, 5), slice(3, 7))  # no head looks out of the map from there
    torch.testing.assert_close(convolved[inside], attended[inside], rtol=0, atol=1e-12)
    assert not torch.allclose(convolved, attended), "at the border they differ"


def test_there_and_back_gives_the_same_kernel():
    original = nn.Conv2d(4, 4, 3, padding=1).double()
    attention = ConvolutionAsAttention(original)
    layer = hard_attention([(row - 1, column - 1) for row, column in attention.encoding.centers.tolist()])
    with torch.no_grad():
        layer.value.weight.copy_(attention.value[0].T)
        layer.value.bias.copy_(attention.bias)
    back = convolution_from_attention(layer, 7, 8)
    assert torch.equal(back.weight, original.weight)
    assert torch.equal(back.bias, original.bias)


def test_attention_that_is_no_convolution_is_refused_and_the_head_named():
    soft = hard_attention([(0, 0), (1, 1)])
    with torch.no_grad():
        soft.encoding.spreads[1] = 1.0
    with pytest.raises(Inconvertible, match=r"head 1 is no tap of a convolution: .* only 0\.\d+ is at its shift"):
        convolution_from_attention(soft, 7, 8)
    with pytest.raises(Inconvertible, match="head 0 is no tap"):  # between two pixels
        convolution_from_attention(hard_attention([(0.5, 0)]), 7, 8)
    with pytest.raises(Inconvertible, match="head 0 is no tap"):  # untrained
        convolution_from_attention(PositionalAttention(4, 2, (7, 8), LearnedEncoding), 7, 8)
    with pytest.raises(Inconvertible, match="Linear is no position-only attention"):
        convolution_from_attention(nn.Linear(1, 1), 7, 8)
    broken = copy.deepcopy(hard_attention([(0, 0)]))
    broken.value = nn.Identity()
    with pytest.raises(Inconvertible, match="with a linear value projection"):
        convolution_from_attention(broken, 7, 8)
