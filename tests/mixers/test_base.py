"""Normalizers: rows of non-negative weights that sum to 1, for every attention mixer."""

import pytest
import torch

from attnconv.mixers.base import NORMALIZERS, to_probs
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.window import WindowAttention
from mixers.test_content import build as build_content


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_weights_are_non_negative_sum_to_one_and_respect_the_mask(normalizer):
    scores = torch.randn(3, 4, 7, dtype=torch.float64)
    allowed = torch.rand(4, 7) < 0.6
    allowed[:, 0] = True
    probs = to_probs(scores, normalizer, allowed)
    assert (probs >= 0).all()
    assert (probs[:, ~allowed] == 0).all()
    living = probs.sum(-1) > 0
    torch.testing.assert_close(probs.sum(-1)[living], torch.ones(int(living.sum()), dtype=torch.float64))
    assert living.float().mean() > 0.9


def test_sigmoid_weights_are_normalized_by_their_sum():
    scores = torch.randn(3, 5, dtype=torch.float64)
    weights = 1 / (1 + (-scores).exp())
    torch.testing.assert_close(to_probs(scores, "sigmoid"), weights / weights.sum(-1, keepdim=True))
    assert not torch.allclose(to_probs(scores, "sigmoid"), scores.softmax(-1), atol=1e-3)


def test_sigmoid_of_very_low_scores_still_sums_to_one():
    probs = to_probs(torch.tensor([-40.0, -41.0, -300.0]), "sigmoid")
    assert probs.sum().item() == pytest.approx(1.0)
    assert probs[0] > probs[1] > probs[2]


def test_relu_of_quadratic_scores_is_an_epanechnikov_kernel():
    scores = torch.tensor([-2.0, -0.5, 0.0, -0.5, -2.0])
    assert to_probs(scores, "relu").tolist() == pytest.approx([0, 0.25, 0.5, 0.25, 0])


def test_relu_weights_of_bf16_scores_sum_to_one():
    torch.manual_seed(0)
    probs = to_probs(torch.randn(50, 1024).bfloat16(), "relu")
    torch.testing.assert_close(probs.double().sum(-1), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_have_the_type_of_their_scores(normalizer, kind):
    assert to_probs(torch.zeros(3, 4, dtype=kind), normalizer).dtype == kind
    layer = build_content("learned", normalizer=normalizer).to(kind)
    assert layer(torch.randn(2, *layer.grid, layer.width).to(kind)).dtype == kind


def test_relu_rows_without_positive_weights_are_zero_with_finite_gradients():
    scores = torch.full((1, 5), -3.0, requires_grad=True)
    probs = to_probs(scores, "relu")
    probs.sum().backward()
    assert (probs == 0).all()
    assert scores.grad.isfinite().all()


def test_relu_gradients_stay_bounded_as_a_row_fades_to_zero():
    for weight in (0.2, 0.1, 0.05, 1e-6):
        scores = torch.tensor([weight - 1, -3.0], requires_grad=True)
        to_probs(scores, "relu")[0].backward()
        assert scores.grad.abs().max() <= 10
    assert to_probs(torch.tensor([0.05 - 1, -3.0]), "relu")[0].item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("normalizer", ["relu", "sigmoid"])
def test_mixers_average_with_their_reported_probabilities(normalizer):
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    content = build_content("learned_and_quadratic", normalizer=normalizer)
    position = PositionalAttention(4, 2, (2, 3), QuadraticEncoding, normalizer=normalizer).double()
    for mixer in (content, position):
        probs = mixer.attention_probs(2, 3, x).expand(2, -1, -1, -1)
        averages = torch.einsum("bnqk,bkd->bqnd", probs, x.flatten(1, 2)).reshape(2, 2, 3, 8)
        torch.testing.assert_close(mixer(x), mixer.value(averages))
    windows = WindowAttention(4, 2, (3, 3), kernel_size=3, border="shift", normalizer=normalizer).double()
    assert windows(torch.randn(2, 3, 3, 4, dtype=torch.float64)).isfinite().all()


def test_normalizers_that_do_not_factorize_are_never_separable():
    assert PositionalAttention(4, 2, (16, 16), QuadraticEncoding, normalizer="relu").impl == "dense"
    with pytest.raises(ValueError, match="normalizer=sigmoid does not factorize"):
        PositionalAttention(4, 2, (4, 4), QuadraticEncoding, normalizer="sigmoid", impl="separable")
    with pytest.raises(ValueError, match="softmax, relu, sigmoid"):
        PositionalAttention(4, 2, (4, 4), QuadraticEncoding, normalizer="sparsemax")
