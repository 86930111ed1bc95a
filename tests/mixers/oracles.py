"""Slow, simple, independent reference versions of the attention in attnconv.mixers, with nested loops."""

import math

import torch
from torch import Tensor

from attnconv.mixers.continuous_bias import AxisDistanceEncoding, RadialDistanceEncoding, ScoreFunction
from attnconv.mixers.encodings import (
    Encoding,
    GeneralizedQuadraticEncoding,
    LearnedEncoding,
    QuadraticEncoding,
    SinusoidalEncoding,
)
from attnconv.mixers.positional import PositionalAttention


def score(encoding: Encoding, head: int, row: int, column: int) -> float:
    """The score of one head for one shift, from the definitions in the paper and in the encodings' docstrings."""
    if isinstance(encoding, QuadraticEncoding):
        center = encoding.centers[head].tolist()
        alpha = encoding.spreads[head].item() ** 2 / 2
        return -alpha * ((row - center[0]) ** 2 + (column - center[1]) ** 2)
    if isinstance(encoding, GeneralizedQuadraticEncoding):
        offset = [row - encoding.centers[head, 0].item(), column - encoding.centers[head, 1].item()]
        s = encoding.spreads[head].tolist()
        precision = [[sum(s[i][k] * s[j][k] for k in range(2)) for j in range(2)] for i in range(2)]
        return -0.5 * sum(offset[i] * precision[i][j] * offset[j] for i in range(2) for j in range(2))
    if isinstance(encoding, AxisDistanceEncoding):
        return distance_score(encoding.row_function, head, row) + distance_score(encoding.column_function, head, column)
    if isinstance(encoding, RadialDistanceEncoding):
        return distance_score(encoding.function, head, math.hypot(row, column))
    if isinstance(encoding, LearnedEncoding):
        row_vector = encoding.row_embeddings.weight[row + encoding.grid[0] - 1]
        column_vector = encoding.column_embeddings.weight[column + encoding.grid[1] - 1]
    else:
        assert isinstance(encoding, SinusoidalEncoding)
        row_vector, column_vector = (
            torch.tensor(sinusoids(d, encoding.row_projection.in_features), dtype=torch.float64) for d in (row, column)
        )
    weights = encoding.row_projection.weight[head], encoding.column_projection.weight[head]
    vectors = row_vector.to(weights[0].dtype), column_vector.to(weights[0].dtype)
    return sum((w * v).sum().item() for w, v in zip(weights, vectors, strict=True))


def distance_score(function: ScoreFunction, head: int, distance: float) -> float:
    """Add up one hidden unit at a time, with the exact GELU, x Phi(x)."""
    compressed = math.copysign(math.log1p(abs(distance)), distance)
    total = 0.0
    for unit in range(function.expand.out_features):
        z = function.expand.weight[unit, 0].item() * compressed + function.expand.bias[unit].item()
        total += function.contract.weight[head, unit].item() * z * 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return total


def sinusoids(shift: int, width: int, base: float = 10_000.0) -> list[float]:
    frequencies = [base ** (-2 * i / width) for i in range(width // 2)]
    return [math.sin(shift * f) for f in frequencies] + [math.cos(shift * f) for f in frequencies]


def attention_probs(encoding: Encoding, heads: int, height: int, width: int) -> Tensor:
    """Return (N, Q, K) in float64, computed one exponential at a time."""
    pixels = [(row, column) for row in range(height) for column in range(width)]
    probs = torch.zeros(heads, len(pixels), len(pixels), dtype=torch.float64)
    for head in range(heads):
        for q, query in enumerate(pixels):
            exponentials = [math.exp(score(encoding, head, key[0] - query[0], key[1] - query[1])) for key in pixels]
            for k, value in enumerate(exponentials):
                probs[head, q, k] = value / sum(exponentials)
    return probs


def positional_attention(mixer: PositionalAttention, x: Tensor) -> Tensor:
    """The whole layer: average every image's pixels per head, concatenate heads, project."""
    batch, height, width, channels = x.shape
    probs = attention_probs(mixer.encoding, mixer.heads, height, width)
    flat, out = x.flatten(1, 2), []
    for image in range(batch):
        for query in range(height * width):
            averages = [
                sum(probs[head, query, key] * flat[image, key] for key in range(height * width))
                for head in range(mixer.heads)
            ]
            out.append(mixer.value.weight @ torch.cat(averages) + mixer.value.bias)
    return torch.stack(out).reshape(batch, height, width, channels)


def assert_same_with_gradients(fast, slow, x: Tensor, tolerance: float) -> None:
    """Check that two functions, each given with its parameters, agree on x in outputs and all gradients."""
    assert_all_same_with_gradients({"": fast}, slow, x, tolerance)


def assert_all_same_with_gradients(several, slow, x: Tensor, tolerance: float) -> None:
    """Check that each of several named functions agrees with a slow one, which is computed only once."""
    probe = torch.randn_like(x)

    def results(function, parameters):
        image = x.clone().requires_grad_()
        out = function(image)
        return [out, *torch.autograd.grad((out * probe).sum(), [image, *parameters])]

    expected = results(*slow)
    for name, fast in several.items():
        for ours, own in zip(results(*fast), expected, strict=True):
            torch.testing.assert_close(ours, own, rtol=tolerance, atol=tolerance, msg=f"{name}: {{}}".format)


def assert_bf16_stays_near(mixer, x: Tensor, kind: torch.dtype = torch.bfloat16) -> None:
    """Compare a layer in bf16 autocast with float64: outputs within 5%, gradients within 10% of the largest entry.

    bf16 has 8 bits of precision. `kind` is the expected output dtype: float32 if the layer ends by adding its input.
    """
    x = x.requires_grad_()
    exact = mixer(x)
    (exact_gradient,) = torch.autograd.grad(exact.square().sum(), x)
    mixer.float()
    x = x.detach().float().requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        rough = mixer(x)
    assert rough.dtype == kind
    (gradient,) = torch.autograd.grad(rough.double().square().sum(), x)
    assert (rough.double() - exact).abs().max() < 0.05 * exact.abs().max()
    assert (gradient.double() - exact_gradient).abs().max() < 0.1 * exact_gradient.abs().max()
