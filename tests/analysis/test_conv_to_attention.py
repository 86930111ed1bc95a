"""Attention as a drop-in replacement of a convolution: the same output for all inputs, including at the border."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnconv.analysis.conv_to_attention import QUERIES_AT_ONCE, ConvolutionAsAttention, _is_channels_last, leak
from attnconv.analysis.heads import attention_mixers


@st.composite
def convolutions(draw, axes):
    """Draw any convolution and a map size that it accepts."""
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
def test_any_convolution_converts_to_equivalent_attention(drawn, seed):
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
    """The layer's factored probabilities equal an explicit softmax, and the output uses them."""
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
def test_error_at_small_alpha_matches_theory(alpha):
    """With one nonzero pixel and one tap of weight 1, the missing attention goes to the other pixels."""
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


@pytest.mark.parametrize("alpha", [0.001, 0.3, 0.999, 1.0, 3.0])
def test_leak_is_its_sum(alpha):
    total = sum(math.exp(-alpha * j * j) for j in range(-2000, 2001))
    assert leak(alpha) == pytest.approx(1 - total**-2, rel=1e-12)


def test_leak_of_a_flat_head_is_all_of_it():
    assert leak(1e-300) == 1


def test_heads_are_one_hot_in_float32_at_alpha_104_but_not_at_46():
    assert leak(46) == pytest.approx(4 * math.exp(-46))
    hard = [ConvolutionAsAttention(nn.Conv2d(1, 1, 3), alpha).attention_probs(9, 9) for alpha in (46, 104)]
    assert ((hard[0] > 0).sum(-1) > 1).any(), "neighbors keep 1e-20"
    assert ((hard[1] > 0).sum(-1) == 1).all()


def exactly(convolution, x, **tolerance):
    """Check that convolution and attention return equal outputs, including dtype, shape and memory format."""
    attention = ConvolutionAsAttention(convolution)
    expected, found = convolution(x), attention(x)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.is_contiguous() == expected.is_contiguous()
    assert _is_channels_last(found) == _is_channels_last(expected)
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("last", ["input", "kernel", "neither"])
def test_memory_format_matches_the_convolution(last):
    convolution, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 6, 5)
    if last == "kernel":
        convolution = convolution.to(memory_format=torch.channels_last)
    exactly(convolution, x.to(memory_format=torch.channels_last) if last == "input" else x)


def test_large_maps_can_be_exported():
    layer, x = ConvolutionAsAttention(nn.Conv2d(1, 1, 3)), torch.randn(1, 1, 4, QUERIES_AT_ONCE + 10)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.filterwarnings("ignore:.*trace:Warning")
def test_a_trace_is_right_for_maps_of_other_sizes():
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    traced, x = torch.jit.trace(ConvolutionAsAttention(convolution), torch.randn(1, 3, 9, 9)), torch.randn(2, 3, 300, 7)
    torch.testing.assert_close(traced(x), convolution(x), atol=1e-4, rtol=1e-4)


def test_layers_are_stacked_by_torch_func():
    convolutions, x = [nn.Conv2d(3, 4, 3) for _ in range(2)], torch.randn(1, 3, 300, 4)
    layers = [ConvolutionAsAttention(convolution) for convolution in convolutions]
    state = torch.func.stack_module_state(layers)
    out = torch.vmap(lambda *one: torch.func.functional_call(layers[0], one, (x,)))(*state)
    torch.testing.assert_close(out[1], convolutions[1](x), atol=1e-4, rtol=1e-4)


def test_pytorchs_default_device_does_not_matter():
    convolution, x = nn.Conv2d(1, 1, 3), torch.randn(1, 1, 4, 5)
    with torch.device("meta"):
        layer = ConvolutionAsAttention(convolution)
    torch.testing.assert_close(layer(x), convolution(x))


def test_converted_convolutions_are_no_mixers():
    network = nn.Sequential(ConvolutionAsAttention(nn.Conv2d(3, 3, 1)), nn.Flatten())
    assert attention_mixers(network) == []


def test_empty_batches_and_unbatched_inputs():
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    exactly(convolution, torch.randn(0, 4, 6, 5))
    exactly(convolution, torch.randn(4, 6, 5))
    exactly(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), torch.randn(4, 6, 5))
    exactly(nn.Conv1d(4, 6, 3), torch.randn(0, 4, 6))
    exactly(nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), torch.randn(4, 6))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_dtype_matches_the_convolution_with_and_without_autocast(weights):
    convolution, x = nn.Conv2d(4, 6, 3).to(weights), torch.randn(2, 4, 6, 5)
    exactly(convolution, x.to(weights), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exactly(convolution, x, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 4, 6, 5, dtype=torch.int64),
        torch.zeros(2, 4, 6, 5, dtype=torch.float64),
        torch.zeros(2, 3, 6, 5),
        torch.zeros(4, 6),
        torch.zeros(1, 2, 4, 6, 5),
        torch.zeros(2, 4, 2, 5),
    ],
    ids=lambda x: f"{x.dtype} {tuple(x.shape)}",
)
def test_inputs_that_the_convolution_rejects_are_rejected(x):
    convolution = nn.Conv2d(4, 6, 3)
    for layer in (convolution, ConvolutionAsAttention(convolution)):
        with pytest.raises(RuntimeError):
            layer(x)


def test_attributes_match_the_convolution():
    for convolution in (
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2),
        nn.Conv2d(4, 6, 2, padding="same", padding_mode="circular", bias=False),
        nn.Conv1d(4, 6, 5),
    ):
        attention = ConvolutionAsAttention(convolution)
        assert torch.equal(attention.weight, convolution.weight)
        assert attention.weight.requires_grad
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "padding"):
            assert getattr(attention, name) == getattr(convolution, name), name
        assert attention.padding_mode == convolution.padding_mode


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_positions_beyond_256_pixels_are_exact_in_half_precision(kind, when):
    convolution, x = nn.Conv1d(2, 2, 3, dilation=301), torch.randn(1, 2, 700)
    attention = ConvolutionAsAttention(convolution.to(kind) if when == "before" else convolution).to(kind)
    assert attention.value.dtype == kind
    assert attention.encoding.centers.tolist() == [[0, 0], [0, 301], [0, 602]]
    torch.testing.assert_close(attention(x.to(kind)), convolution.to(kind)(x.to(kind)), rtol=0.02, atol=0.02)


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor created."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.size = max([self.size, *(part.numel() for part in tree_leaves(out) if isinstance(part, torch.Tensor))])
        return out


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "dilation": 40}, {"padding": 700, "padding_mode": "circular"}])
def test_no_quadratic_tensor_is_created_for_long_sequences(settings):
    convolution, x = nn.Conv1d(1, 1, 3, **settings), torch.randn(1, 1, 3000)
    attention = ConvolutionAsAttention(convolution)
    with torch.no_grad(), Largest() as made:
        found = attention(x)
    torch.testing.assert_close(found, convolution(x))
    assert made.size < 3000**2 / 10


def test_query_blocks_match_full_attention_for_soft_heads(monkeypatch):
    """With one head centered outside the map and one wide head, the result equals attention to all keys at once."""
    attention = ConvolutionAsAttention(nn.Conv2d(2, 3, 3, padding=1), alpha=0.3).double()
    with torch.no_grad():
        attention.encoding.centers[0] = torch.tensor([-9.3, 50.2])
        attention.encoding.spreads[1] = 0.05
    x = torch.randn(1, 2, 11, 40, dtype=torch.float64)
    whole = attention(x)
    monkeypatch.setattr("attnconv.analysis.conv_to_attention.QUERIES_AT_ONCE", 4)
    torch.testing.assert_close(attention(x), whole)


@pytest.mark.parametrize("alpha", [0, -1, 2e38, math.nan, math.inf])
def test_alpha_must_be_positive_and_not_overflow(alpha):
    with pytest.raises(ValueError, match=r"alpha must be a number above 0 and at most 1e\+30"):
        ConvolutionAsAttention(nn.Conv2d(1, 1, 3), alpha)


def test_gradients_match_the_convolution():
    """The gradients of the values and the bias equal those of the kernel and its bias."""
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    attention, x = ConvolutionAsAttention(convolution), torch.randn(2, 4, 6, 5)
    attention(x).square().sum().backward()
    convolution(x).square().sum().backward()
    found = attention.value.grad.unflatten(1, (9, -1)).permute(0, 3, 2, 1).reshape(convolution.weight.shape)
    torch.testing.assert_close(found, convolution.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(attention.bias.grad, convolution.bias.grad, rtol=1e-4, atol=1e-4)
