"""Gated attention: position-only with closed gates, content-only with open gates, and a mixture in between."""

import pytest
import torch

from attnconv.mixers.gated import GatedAttention, square_of_shifts
from mixers import oracles


def build(gate, **options):
    torch.manual_seed(0)
    return GatedAttention(4, 9, (4, 5), gate=gate, **options).double()


X = torch.randn(2, 4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_closed_gates_give_position_only_attention_and_open_ones_content_attention():
    closed, opened = build(100.0), build(-100.0)
    torch.testing.assert_close(closed(X), closed.value(closed.position(X)), rtol=0, atol=1e-12)
    torch.testing.assert_close(opened(X), opened.value(opened.content(X)), rtol=0, atol=1e-12)
    assert not torch.allclose(closed(X), opened(X))


@pytest.mark.parametrize("gate", [-2.0, 0.0, 1.0])
def test_reported_probabilities_reproduce_the_output(gate):
    mixer = build(gate)
    probs = mixer.attention_probs(4, 5, X)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 9, 20, dtype=torch.float64))
    averages = torch.einsum("bnqk,bkd->bqnd", probs, X.flatten(1, 2)).reshape(2, 4, 5, 36)
    torch.testing.assert_close(mixer(X), mixer.value(averages), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_heads_are_initialized_on_a_square_of_shifts(alpha):
    mixer = build(1.0, alpha=alpha)
    assert mixer.position.encoding.centers.tolist() == [[r, c] for r in (-1, 0, 1) for c in (-1, 0, 1)]
    alphas = mixer.position.encoding.spreads.detach().square() / 2
    torch.testing.assert_close(alphas, torch.full((9,), alpha, dtype=torch.float64), rtol=0, atol=1e-6)
    assert square_of_shifts(4).tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]


def test_bf16_stays_near_float64():
    oracles.assert_bf16_stays_near(build(0.5), X.clone())


def test_gates_receive_gradients():
    mixer = build(1.0)
    mixer(X).square().sum().backward()
    assert (mixer.gates.grad != 0).all()


def test_non_square_head_counts_are_refused():
    with pytest.raises(ValueError, match="square number of heads"):
        GatedAttention(4, 8, (4, 5))


def test_both_parts_take_dropout_and_normalizer():
    mixer = build(0.0, attention_dropout=0.3, normalizer="relu")
    for part in (mixer.content, mixer.position):
        assert (part.attention_dropout, part.normalizer) == (0.3, "relu")
