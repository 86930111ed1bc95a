"""Position-only attention: all implementations against the loop oracle, and properties such as equivariance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.mixers.base import grid_shifts
from attnconv.mixers.blocked import _blocks, apply_dense
from attnconv.mixers.continuous_bias import AxisDistanceEncoding, RadialDistanceEncoding
from attnconv.mixers.encodings import (
    GeneralizedQuadraticEncoding,
    LearnedEncoding,
    QuadraticEncoding,
    SinusoidalEncoding,
)
from attnconv.mixers.positional import SEPARABLE_FROM_POSITIONS, PositionalAttention
from mixers import oracles

ADDITIVE = [QuadraticEncoding, LearnedEncoding, SinusoidalEncoding, AxisDistanceEncoding]
ENCODINGS = [*ADDITIVE, GeneralizedQuadraticEncoding, RadialDistanceEncoding]


def build(encoding, grid=(3, 4), width=6, heads=2, seed=0, **options):
    torch.manual_seed(seed)
    return PositionalAttention(width, heads, grid, encoding, **options).double()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_probabilities_equal_the_loop_oracle(encoding):
    mixer = build(encoding)
    expected = oracles.attention_probs(mixer.encoding, 2, 3, 4)
    torch.testing.assert_close(mixer.attention_probs(3, 4)[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer._dense_probs(3, 4, torch.device("cpu")), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_layer_equals_the_loop_oracle(encoding, impl):
    if impl != "dense" and encoding not in ADDITIVE:
        with pytest.raises(ValueError, match="not exact"):
            build(encoding, impl=impl)
        return
    mixer = build(encoding, impl=impl)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), oracles.positional_attention(mixer, x), rtol=0, atol=1e-12)


@given(
    st.sampled_from(ADDITIVE), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4),
    st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_separable_and_dense_agree_in_outputs_and_gradients(encoding, height, width, batch, heads, seed):
    dense = build(encoding, (height, width), heads=heads, seed=seed, impl="dense")
    separable = build(encoding, (height, width), heads=heads, seed=seed, impl="separable")
    separable.load_state_dict(dense.state_dict())
    x = torch.randn(batch, height, width, 6, dtype=torch.float64)
    oracles.assert_same_with_gradients(
        (separable, list(separable.parameters())), (dense, list(dense.parameters())), x, tolerance=1e-12
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_sum_to_one(encoding):
    probs = build(encoding, (5, 7)).attention_probs(5, 7)
    assert probs.shape == (1, 2, 35, 35)
    torch.testing.assert_close(probs.sum(-1), torch.ones(1, 2, 35, dtype=torch.float64))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_scores_depend_only_on_the_shift(encoding):
    mixer = build(encoding, (5, 5))
    logits = mixer.attention_probs(5, 5)[0].log().view(2, 5, 5, 5, 5)
    # Two queries, each with the same two shifts: softmax preserves differences of scores.
    here = logits[:, 1, 1, 2, 3] - logits[:, 1, 1, 0, 1]
    there = logits[:, 3, 1, 4, 3] - logits[:, 3, 1, 2, 1]
    torch.testing.assert_close(here, there)


def test_shift_equivariance_away_from_the_border():
    torch.manual_seed(0)
    mixer = build(QuadraticEncoding, (12, 12))
    with torch.no_grad():
        mixer.encoding.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        mixer.encoding.spreads.fill_(12.0)  # nearly one-hot: the probabilities of far pixels underflow
    x = torch.randn(1, 12, 12, 6, dtype=torch.float64)
    moved = mixer(x.roll((2, 3), dims=(1, 2)))
    inside = (slice(None), slice(4, 10), slice(5, 10))
    torch.testing.assert_close(moved[inside], mixer(x).roll((2, 3), dims=(1, 2))[inside], rtol=0, atol=1e-12)
    # At the border, softmax renormalizes over the existing pixels, so equality would be a bug.
    assert not torch.allclose(moved, mixer(x).roll((2, 3), dims=(1, 2)))


def test_one_hot_quadratic_heads_are_a_convolution():
    """Lemma 1 with alpha = 200: nine heads on the shifts of a 3 x 3 kernel equal Conv2d in the interior."""
    torch.manual_seed(0)
    mixer = build(QuadraticEncoding, (6, 6), heads=9, width=5)
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    with torch.no_grad():
        mixer.encoding.centers.copy_(torch.tensor(shifts, dtype=torch.float64))
        mixer.encoding.spreads.fill_(20.0)
    x = torch.randn(2, 6, 6, 5, dtype=torch.float64)
    kernel = mixer.value.weight.view(5, 3, 3, 5).permute(0, 3, 1, 2)
    expected = torch.conv2d(x.permute(0, 3, 1, 2), kernel, mixer.value.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x)[:, 1:-1, 1:-1], expected, rtol=0, atol=1e-10)


def test_dropout_uses_one_mask_for_the_whole_batch():
    mixer = build(QuadraticEncoding, attention_dropout=0.5).train()
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64).expand(4, -1, -1, -1)
    out = mixer(x)
    torch.testing.assert_close(out[1:], out[:1].expand(3, -1, -1, -1))
    assert not torch.allclose(out, mixer(x)), "another step draws another mask"


@pytest.mark.parametrize(
    ("grid", "dropout", "encoding", "expected"),
    [
        ((8, 8), 0.0, QuadraticEncoding, "dense"),
        ((16, 16), 0.0, QuadraticEncoding, "separable"),
        ((16, 16), 0.1, QuadraticEncoding, "dense"),
        ((16, 16), 0.0, GeneralizedQuadraticEncoding, "dense"),
    ],
)
def test_auto_chooses_the_faster_exact_implementation(grid, dropout, encoding, expected):
    assert 8 * 8 < SEPARABLE_FROM_POSITIONS <= 16 * 16
    assert build(encoding, grid, attention_dropout=dropout).impl == expected


def test_separable_with_dropout_is_refused():
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        build(QuadraticEncoding, impl="separable", attention_dropout=0.1)


def plainly(layer, x):
    """Return the layer's output by the plain formula."""
    probs = layer.attention_probs(*x.shape[1:3])[0]
    return layer.value(apply_dense(probs, x))


@pytest.mark.parametrize("impl", ["dense", "separable"])
@pytest.mark.parametrize("images", [1, 3, 100])
def test_blocks_of_any_size_match_the_plain_formula_with_gradients(monkeypatch, images, impl):
    per_image = 5 * 3 * 6 * 2 * 8  # pixels, width, heads, bytes
    monkeypatch.setattr("attnconv.mixers.blocked.BLOCK_BYTES", images * per_image + 7)
    x = torch.randn(7, 5, 3, 6, dtype=torch.float64)
    assert len(x[_blocks(7, per_image)[0]]) == min(images, 7)
    layer = build(QuadraticEncoding, (5, 3), seed=1, impl=impl)
    parameters = list(layer.parameters())
    oracles.assert_same_with_gradients(
        (layer, parameters), (lambda x: plainly(layer, x), parameters), x, tolerance=1e-12
    )


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_value_gradients_are_correct_with_a_frozen_encoding(impl):
    layer = build(QuadraticEncoding, (5, 3), impl=impl)
    layer.encoding.requires_grad_(False)
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    (found,) = torch.autograd.grad(layer(x).sum(), [layer.value.weight])
    (expected,) = torch.autograd.grad(plainly(layer, x).sum(), [layer.value.weight])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_second_derivatives_and_torch_func_work(impl):
    layer = build(QuadraticEncoding, (3, 2), width=2, impl=impl)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)

    def loss(weight):
        return torch.func.functional_call(layer, {"value.weight": weight}, (x.detach(),)).square().sum()

    weight = layer.value.weight
    (expected,) = torch.autograd.grad(loss(weight), [weight])
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), expected)
    each = torch.func.vmap(lambda image: layer(image[None])[0])(x)
    torch.testing.assert_close(each, layer(x))


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_forward_mode_and_batched_gradients_work(impl):
    layer = build(QuadraticEncoding, (3, 2), width=2, impl=impl)
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, check_batched_grad=True, check_forward_ad=True)


def test_changes_to_a_built_layer_take_effect():
    layer, x = build(QuadraticEncoding, (3, 2), width=2, impl="separable"), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    layer.attention_dropout = 0.5
    assert not torch.equal(layer.train()(x), layer.eval()(x))
    layer.normalizer = "relu"
    torch.testing.assert_close(layer(x), plainly(layer, x))
    layer.encoding = GeneralizedQuadraticEncoding(heads=layer.heads, width=2, grid=(3, 2)).double()
    torch.testing.assert_close(layer(x), plainly(layer, x))


def replica(module):
    """Return a replica as nn.DataParallel makes it: it has tensors as attributes, and lists no parameters."""
    found = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        found._modules[name] = replica(child)
    for name, tensor in module._parameters.items():
        setattr(found, name, None if tensor is None else 1 * tensor)
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_replicas_without_parameters_compute_the_same(encoding):
    layer, x = build(encoding), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    assert not list(replica(layer).parameters())
    torch.testing.assert_close(replica(layer)(x), layer(x))


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_a_layer_in_bf16_stays_near_float64(impl):
    x = torch.randn(3, 7, 5, 6, dtype=torch.float64)
    oracles.assert_bf16_stays_near(build(QuadraticEncoding, (7, 5), impl=impl), x)


@pytest.mark.parametrize("encoding", [GeneralizedQuadraticEncoding, LearnedEncoding])
def test_scores_are_not_rounded_to_bf16(encoding):
    layer = build(encoding, (8, 8)).float()
    with torch.no_grad():
        for parameter in layer.encoding.parameters():
            parameter.mul_(4)  # larger scores
    exact = layer.attention_probs(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer.attention_probs(8, 8).float(), exact, rtol=1e-3, atol=1e-4)


def kept_by(layer, x):
    """Return the bytes that a forward pass keeps for the backward pass."""
    sizes = {}
    keep = lambda tensor: sizes.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (keep(tensor), tensor)[1], lambda tensor: tensor):
        out = layer(x)
    del out
    return sum(sizes.values())


def test_separable_averages_are_not_saved_for_the_backward_pass():
    layer = build(QuadraticEncoding, (16, 16), width=4, heads=9)
    x = torch.randn(12, 16, 16, 4, dtype=torch.float64, requires_grad=True)
    averages = 9 * x.numel() * 8
    assert kept_by(lambda x: plainly(layer, x), x) > averages
    assert kept_by(layer, x) < averages / 4


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_output_dtypes_and_empty_batches(impl):
    x = torch.randn(2, 4, 3, 6)
    layer = build(QuadraticEncoding, (4, 3), impl=impl)
    assert layer(x[:0].double()).shape == (0, 4, 3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.double()).dtype == torch.float64
        assert layer.float()(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.bfloat16())


def test_unknown_impl_is_refused():
    with pytest.raises(ValueError, match="auto, dense, separable"):
        build(QuadraticEncoding, impl="fft")


def test_a_map_larger_than_the_learned_tables_is_refused():
    with pytest.raises(ValueError, match="cover maps up to 3x4"):
        build(LearnedEncoding).attention_probs(4, 4)


def test_sinusoidal_encoding_refuses_odd_widths():
    with pytest.raises(ValueError, match="must be even"):
        build(SinusoidalEncoding, width=5)


def test_quadratic_peak_probability_at_initialization():
    """Alpha = 1/2 gives a discrete Gaussian with a peak of 0.159."""
    encoding = QuadraticEncoding(1, 1, (1, 1))
    with torch.no_grad():
        encoding.centers.zero_()
        encoding.spreads.fill_(1.0)
    shifts = grid_shifts(31, 31)[31 * 15 + 15]
    assert encoding(shifts).softmax(-1).max().item() == pytest.approx(0.159, abs=5e-4)


def test_gaussian_heads_are_initialized_isotropic_with_unit_spread():
    torch.manual_seed(0)
    round_heads = QuadraticEncoding(4000, 8, (8, 8)).spreads
    any_heads = GeneralizedQuadraticEncoding(4000, 8, (8, 8)).spreads
    torch.testing.assert_close(round_heads.mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(any_heads.mean(dim=0), torch.eye(2), atol=1e-3, rtol=0)
    for spreads in (round_heads, any_heads):
        torch.testing.assert_close(spreads.std(dim=0), torch.full(spreads.shape[1:], 0.01), atol=1e-3, rtol=0)


@pytest.mark.parametrize("base", [10.0, 10_000.0])
def test_sinusoid_wavelengths_follow_the_base(base):
    encoding = SinusoidalEncoding(2, 4, (8, 8), base=base)
    with torch.no_grad():
        encoding.row_projection.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    shifts = torch.arange(-7, 8)
    expected = torch.stack([shifts.sin(), (shifts / base**0.5).sin()])
    torch.testing.assert_close(encoding.row_scores(shifts), expected)
