"""Window attention against a loop oracle and full attention, and the reach of its gradients."""

import math

import pytest
import torch

from attnconv.mixers.base import NORMALIZERS
from attnconv.mixers.content import ContentAttention
from attnconv.mixers.patterns import window
from attnconv.mixers.relative import LearnedRelativeVectors
from attnconv.mixers.window import WindowAttention
from mixers import oracles


def build(grid=(5, 6), kernel_size=3, border="shift", width=8, heads=2, seed=0, **options):
    torch.manual_seed(seed)
    return WindowAttention(width, heads, grid, kernel_size=kernel_size, border=border, **options).double()


def loop_oracle(mixer, x):
    """Compare each query with each pixel of a zero-padded map, one pair at a time."""
    _, height, width, channels = x.shape
    own, half = channels // mixer.heads, mixer.kernel_size // 2
    key, value, query = mixer.key(x), mixer.value(x), mixer.query(x)
    allowed = window((height, width), mixer.kernel_size, mixer.border)[0] if mixer.border == "shift" else None
    center = mixer.relative.grid[0] - 1
    out = torch.zeros_like(x)
    for image in range(len(x)):
        for row in range(height):
            for column in range(width):
                for head in range(mixer.heads):
                    part = slice(head * own, (head + 1) * own)
                    scores, values = [], []
                    for r in range(-half, height + half):
                        for c in range(-half, width + half):
                            inside = 0 <= r < height and 0 <= c < width
                            if allowed is not None:
                                visible = inside and allowed[row * width + column, r * width + c]
                            else:
                                visible = abs(r - row) <= half and abs(c - column) <= half
                            if not visible:
                                continue
                            vector = torch.cat(
                                [
                                    mixer.relative.row_embeddings.weight[r - row + center],
                                    mixer.relative.column_embeddings.weight[c - column + center],
                                ]
                            )
                            k = key[image, r, c, part] if inside else torch.zeros(own, dtype=x.dtype)
                            v = value[image, r, c, part] if inside else torch.zeros(own, dtype=x.dtype)
                            scores.append(query[image, row, column, part] @ (k + vector) / math.sqrt(own))
                            values.append(v)
                    weights = torch.stack(scores).softmax(0)
                    out[image, row, column, part] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize("border", ["zero", "shift"])
@pytest.mark.parametrize("kernel_size", [1, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_outputs_and_gradients_match_the_loop_oracle(border, kernel_size):
    mixers = {impl: build(kernel_size=kernel_size, border=border, impl=impl) for impl in ("gathered", "dense")}
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    mixer = mixers["dense"]
    oracles.assert_all_same_with_gradients(
        {impl: (own, list(own.parameters())) for impl, own in mixers.items()},
        (lambda image: loop_oracle(mixer, image), list(mixer.parameters())),
        x,
        tolerance=1e-10,
    )


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("border", ["zero", "shift"])
def test_gathered_and_dense_agree_for_every_normalizer(border, normalizer):
    gathered, dense = (build(border=border, normalizer=normalizer, impl=impl) for impl in ("gathered", "dense"))
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    oracles.assert_same_with_gradients(
        (gathered, list(gathered.parameters())), (dense, list(dense.parameters())), x, tolerance=1e-10
    )


@pytest.mark.parametrize("border", ["zero", "shift"])
@pytest.mark.parametrize("cache", [1, 2 * 4 * 6 * 8 * 9])
def test_row_blocks_match_the_loop_oracle_with_gradients(monkeypatch, border, cache):
    """Blocks of one row of one image, and of two rows: the last block of five rows is smaller."""
    monkeypatch.setattr("attnconv.mixers.window.CACHE_BYTES", cache)
    mixer = build(border=border, impl="gathered")
    x, parameters = torch.randn(2, 5, 6, 8, dtype=torch.float64), list(mixer.parameters())
    oracles.assert_same_with_gradients(
        (mixer, parameters), (lambda image: loop_oracle(mixer, image), parameters), x, tolerance=1e-10
    )


@pytest.mark.parametrize("impl", ["gathered", "dense"])
@pytest.mark.parametrize("border", ["zero", "shift"])
def test_bf16_stays_near_float64(border, impl):
    mixer = build(border=border, impl=impl)
    oracles.assert_bf16_stays_near(mixer, torch.randn(3, 5, 6, 8, dtype=torch.float64))


@pytest.mark.parametrize("impl", ["gathered", "dense"])
def test_a_window_as_large_as_the_map_is_full_attention(impl):
    """One head with all channels is the same layer as ContentAttention."""
    mixer = build((5, 5), kernel_size=5, heads=1, impl=impl)
    full = ContentAttention(8, 1, (5, 5), relative=LearnedRelativeVectors).double()
    full.query, full.key, full.relative = mixer.query, mixer.key, mixer.relative
    full.value = torch.nn.Identity()
    x = torch.randn(2, 5, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer.attention_probs(5, 5, x), full.attention_probs(5, 5, x), rtol=0, atol=1e-12)
    averages = full(x)
    torch.testing.assert_close(mixer(x), mixer.value(averages), rtol=0, atol=1e-12)


def test_reported_probabilities_reproduce_the_output():
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    for border in ("zero", "shift"):
        mixer = build(border=border, impl="gathered")
        probs, values = mixer.attention_probs(5, 6, x), mixer.value(x).flatten(1, 2).unflatten(-1, (2, 4))
        averages = torch.einsum("bnqk,bkne->bqne", probs, values).reshape(x.shape)
        torch.testing.assert_close(mixer(x), averages, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("grid", "way"), [((8, 8), "_averages_dense"), ((24, 24), "_averages_gathered")])
def test_auto_uses_gathered_only_on_large_maps(grid, way, monkeypatch):
    mixer, taken = build(grid), []
    for name in ("_averages_dense", "_averages_gathered"):
        original = getattr(mixer, name)
        monkeypatch.setattr(mixer, name, lambda x, name=name, original=original: taken.append(name) or original(x))
    mixer(torch.randn(1, *grid, 8, dtype=torch.float64))
    assert taken == [way]


def test_rows_sum_to_one_except_where_windows_include_padding():
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    assert build().attention_probs(5, 6, x).sum(-1).allclose(torch.ones(1, dtype=torch.float64))
    sums = build(border="zero").attention_probs(5, 6, x).sum(-1).view(2, 5, 6)
    torch.testing.assert_close(sums[:, 1:-1, 1:-1], torch.ones(2, 3, 4, dtype=torch.float64))
    assert (sums[:, 0] < 1).all()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradient_reach_grows_by_half_a_window_per_layer(depth):
    layers = [build((11, 11), border="zero", seed=seed) for seed in range(depth)]
    x = torch.randn(1, 11, 11, 8, dtype=torch.float64, requires_grad=True)
    out = x
    for layer in layers:
        out = layer(out)
    out[0, 5, 5].sum().backward()
    reached = (x.grad[0].abs().sum(-1) > 0).nonzero()
    assert reached.min(0).values.tolist() == [5 - depth, 5 - depth]
    assert reached.max(0).values.tolist() == [5 + depth, 5 + depth]
    assert len(reached) == (2 * depth + 1) ** 2


def test_one_hot_position_scores_are_a_convolution():
    """Each head attends to one shift only, so its channels are a convolution with one tap."""
    mixer = build((6, 6), border="zero", width=18, heads=3)
    targets = [(-1, 0), (0, 1), (1, 1)]
    with torch.no_grad():
        for parameter in (mixer.key.weight, mixer.key.bias, mixer.query.weight, mixer.query.bias):
            parameter.zero_()
        for table in (mixer.relative.row_embeddings, mixer.relative.column_embeddings):
            table.weight.copy_(torch.eye(3))
        for head, (row, column) in enumerate(targets):
            mixer.query.bias[6 * head + row + 1] = 1000.0
            mixer.query.bias[6 * head + 3 + column + 1] = 1000.0
    x = torch.randn(1, 6, 6, 18, dtype=torch.float64)
    kernel = torch.zeros(18, 18, 3, 3, dtype=torch.float64)
    for head, (row, column) in enumerate(targets):
        part = slice(6 * head, 6 * head + 6)
        kernel[part, :, row + 1, column + 1] = mixer.value.weight[part]
    values = torch.conv2d(x.permute(0, 3, 1, 2), kernel, mixer.value.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x)[:, 1:-1, 1:-1], values, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"kernel_size": 4}, "odd and at least 1, not 4"),
        ({"kernel_size": 9}, "larger than the map of 5x6"),
        ({"heads": 3}, "width=8 is not divisible by heads=3"),
        ({"border": "wrap"}, "shift, zero"),
        ({"width": 6}, "width=6 over heads=2 is odd"),
        ({"normalizer": "softmx"}, "softmax, relu, sigmoid"),
        ({"impl": "fused"}, "auto, dense, gathered"),
    ],
)
def test_invalid_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(**options)


@pytest.mark.parametrize("impl", ["dense", "gathered"])
def test_no_images_give_no_images(impl):
    mixer = build(impl=impl)
    x = torch.zeros(0, 5, 6, 8, dtype=next(mixer.parameters()).dtype, requires_grad=True)
    mixer(x).sum().backward()
    assert mixer(x).shape == x.grad.shape == x.shape
