"""Content attention: outputs and gradients of all backends against a loop oracle, equivariance, and invalid options."""

import math
from functools import partial

import pytest
import torch

from attnconv.mixers.content import ContentAttention
from attnconv.mixers.encodings import GeneralizedQuadraticEncoding, LearnedEncoding, QuadraticEncoding
from attnconv.mixers.patterns import bigbird, random, window
from attnconv.mixers.relative import LearnedRelativeVectors, SinusoidalRelativeVectors
from mixers import oracles

WIDTH, HEADS, GRID = 4, 2, (2, 3)
VARIANTS = {
    "content": {},
    "learned": {"relative": LearnedRelativeVectors},
    "learned_key": {"relative": LearnedRelativeVectors, "content": False},
    "quadratic": {"encoding": QuadraticEncoding},
    "generalized": {"encoding": GeneralizedQuadraticEncoding},
    "learned_and_quadratic": {"relative": LearnedRelativeVectors, "encoding": QuadraticEncoding},
    "bigbird": {
        "relative": LearnedRelativeVectors,
        "pattern": partial(bigbird, kernel_size=1, density=0.4, count=1, border="zero"),
    },
    "generalized_window": {"encoding": GeneralizedQuadraticEncoding, "pattern": partial(window, kernel_size=1)},
    "key_bias_alone": {"content": False, "key_bias": True},
    "relative_bias_without_query": {
        "relative": SinusoidalRelativeVectors,
        "query_relative": False,
        "relative_bias": True,
    },
    "four_terms": {"relative": SinusoidalRelativeVectors, "key_bias": True, "relative_bias": True},
}


def build(variant, grid=GRID, seed=0, **options):
    torch.manual_seed(seed)
    mixer = ContentAttention(WIDTH, HEADS, grid, **VARIANTS[variant], **options).double()
    with torch.no_grad():
        for bias in (mixer.key_bias, mixer.relative_bias):
            if bias is not None:
                bias.normal_()
    return mixer


def relative_vector(relative, row, column):
    """Return r(shift), entry by entry."""
    if isinstance(relative, LearnedRelativeVectors):
        halves = (
            relative.row_embeddings.weight[row + relative.grid[0] - 1],
            relative.column_embeddings.weight[column + relative.grid[1] - 1],
        )
    else:
        halves = [
            projection.weight @ torch.tensor(oracles.sinusoids(shift, projection.in_features), dtype=torch.float64)
            for projection, shift in ((relative.row_projection, row), (relative.column_projection, column))
        ]
    return torch.cat(list(halves))


def loop_oracle(mixer, x):
    """Compute one query, one key and one head at a time."""
    batch, height, width, channels = x.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    out = torch.zeros_like(x)
    for image in range(batch):
        for q in pixels:
            averages = []
            for head in range(mixer.heads):
                own = slice(head * channels, (head + 1) * channels)
                scores = []
                for k in pixels:
                    shift, total = (k[0] - q[0], k[1] - q[1]), 0.0
                    what, where = torch.zeros(channels, dtype=x.dtype), torch.zeros(channels, dtype=x.dtype)
                    if mixer.content:
                        what = what + mixer.query(x[image][q])[own]
                    if mixer.query_relative:
                        where = where + mixer.query(x[image][q])[own]
                    if mixer.key_bias is not None:
                        what = what + mixer.key_bias[head]
                    if mixer.relative_bias is not None:
                        where = where + mixer.relative_bias[head]
                    if mixer.key is not None:
                        total += what @ mixer.key(x[image][k])[own] / math.sqrt(channels)
                    if mixer.relative is not None:
                        total += where @ relative_vector(mixer.relative, *shift) / math.sqrt(channels)
                    if mixer.encoding is not None:
                        total += mixer.encoding(torch.tensor(shift))[head]
                    if mixer.allowed is not None:
                        mask = mixer.allowed[head if len(mixer.allowed) > 1 else 0]
                        if not mask[pixels.index(q), pixels.index(k)]:
                            total = total - math.inf
                    scores.append(total)
                weights = torch.stack(scores).exp()
                weights = weights / weights.sum()
                averages.append(sum(w * x[image][k] for w, k in zip(weights, pixels, strict=True)))
            out[image][q] = mixer.value(torch.cat(averages))
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_match_the_loop_oracle(variant):
    mixers = {impl: build(variant, impl=impl) for impl in ("fused", "absorbed", "dense")}
    x = torch.randn(2, *GRID, WIDTH, dtype=torch.float64)
    mixer = mixers["dense"]
    oracles.assert_all_same_with_gradients(
        {impl: (own, list(own.parameters())) for impl, own in mixers.items()},
        (lambda image: loop_oracle(mixer, image), list(mixer.parameters())),
        x,
        tolerance=1e-10,
    )


@pytest.mark.parametrize("impl", ["fused", "absorbed", "dense"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_stays_near_float64(variant, impl):
    oracles.assert_bf16_stays_near(build(variant, (5, 4), impl=impl), torch.randn(3, 5, 4, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("variant", VARIANTS)
def test_reported_probabilities_reproduce_the_output(variant):
    mixer = build(variant)
    x = torch.randn(2, *GRID, WIDTH, dtype=torch.float64)
    probs = mixer.attention_probs(*GRID, x)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, HEADS, 6, dtype=torch.float64))
    averages = torch.einsum("bnqk,bkd->bqnd", probs, x.flatten(1, 2)).reshape(2, *GRID, HEADS * WIDTH)
    torch.testing.assert_close(mixer.value(averages), mixer(x))


def test_biases_start_at_zero():
    mixer = ContentAttention(WIDTH, HEADS, GRID, **VARIANTS["four_terms"])
    assert not mixer.key_bias.any()
    assert not mixer.relative_bias.any()


def test_only_content_attention_is_permutation_equivariant():
    x = torch.randn(1, 4, 4, WIDTH, dtype=torch.float64)
    order = torch.randperm(16)

    def permuted(maps):
        return maps.flatten(1, 2)[:, order].unflatten(1, (4, 4))

    alone = build("content", (4, 4))
    torch.testing.assert_close(alone(permuted(x)), permuted(alone(x)))
    for variant in ("learned", "learned_key", "quadratic", "four_terms"):
        mixer = build(variant, (4, 4))
        assert not torch.allclose(mixer(permuted(x)), permuted(mixer(x)), atol=1e-6), variant


@pytest.mark.parametrize(
    "pattern",
    [partial(random, density=0.3, seed=2), partial(bigbird, kernel_size=3, density=0.1, count=1, seed=2)],
    ids=["random", "bigbird"],
)
def test_gradients_reach_exactly_the_pixels_in_the_pattern(pattern):
    mixer = build("learned", (4, 4), pattern=pattern)
    x = torch.randn(1, 4, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    for query in (0, 5, 15):
        (gradient,) = torch.autograd.grad(mixer(x).flatten(1, 2)[0, query].sum(), x)
        assert torch.equal(gradient.flatten(1, 2)[0].abs().sum(-1) > 0, mixer.allowed[:, query].any(0))


def test_dropout_draws_one_mask_per_image():
    mixer = build("learned", attention_dropout=0.5).train()
    out = mixer(torch.randn(1, *GRID, WIDTH, dtype=torch.float64).expand(8, -1, -1, -1))
    assert not torch.allclose(out[0], out[1]) or not torch.allclose(out[0], out[2])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"content": False}, "depends on content"),
        ({"content": False, "encoding": LearnedEncoding}, "depends on content"),
        ({"content": False, "relative": LearnedRelativeVectors, "query_relative": False}, "depends on content"),
        ({"relative_bias": True}, "relative_bias needs relative"),
        ({"impl": "flash"}, "auto, fused, absorbed, dense"),
        ({"impl": "absorbed", "normalizer": "sigmoid"}, "impl=absorbed cannot compute normalizer=sigmoid"),
        ({"impl": "fused", "normalizer": "relu"}, "impl=fused cannot compute normalizer=relu"),
    ],
)
def test_invalid_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ContentAttention(WIDTH, HEADS, GRID, **options)


def test_a_map_larger_than_the_learned_tables_is_refused():
    with pytest.raises(ValueError, match="cover maps up to 2x3"):
        build("learned")(torch.randn(1, 3, 3, WIDTH, dtype=torch.float64))


def test_attention_probs_without_input_are_refused():
    with pytest.raises(ValueError, match="needs x of 2x3 positions"):
        build("content").attention_probs(2, 3)


@pytest.mark.parametrize("impl", ["dense", "fused", "absorbed"])
def test_a_sparse_pattern_does_not_depend_on_the_device_that_the_layer_was_built_on(impl):
    layer = build("bigbird", impl=impl)
    with torch.device("meta"):
        loaded = ContentAttention(WIDTH, HEADS, GRID, **VARIANTS["bigbird"], impl=impl)
    loaded.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, *GRID, WIDTH, dtype=torch.float64)
    assert torch.equal(loaded(x), layer(x))
    assert layer.to("meta")(x.to("meta")).is_meta
    assert torch.equal(loaded(x), loaded.to("cpu")(x))
