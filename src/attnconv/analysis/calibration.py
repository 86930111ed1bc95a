"""Reference values for attnconv.analysis.conv_similarity: its numbers for attention of known kinds.

Four layers on a map: nine hard heads at the shifts of a 3 x 3 kernel, the ideal of trained Gaussian heads (at the
border, a head looks at the nearest pixel, and a convolution sees its padding); one hard head; heads that attend
uniformly; and heads that attend at random. Values are random. Inputs are independent pixels, and smooth maps made by
averaging these over 3 x 3 pixels.
"""

import itertools
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnconv.analysis.conv_similarity import head_numbers, layer_numbers
from attnconv.mixers.blocked import apply_dense

HEADS, CHANNELS, IMAGES = 9, 4, 200


def calibration(height: int, width: int) -> list[dict[str, Any]]:
    """Describe the four layers on an H x W map: one row per layer and kind of input, averaged over heads."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(IMAGES, CHANNELS, height, width, generator=draw)
    maps = {"independent": pixels, "smooth": F.avg_pool2d(pixels, 3, stride=1, padding=1)}
    values = torch.randn(HEADS * CHANNELS, CHANNELS, generator=draw)
    rows = []
    for attention, probs in _layers(height, width, draw):
        numbers = {name: fmean(of_heads) for name, of_heads in head_numbers(probs, height, width).items()}
        for inputs, channels_first in maps.items():
            x = channels_first.permute(0, 2, 3, 1)
            y = apply_dense(probs[0], x) @ values[: probs.shape[1] * CHANNELS]
            found = layer_numbers(probs, x, y, height, width)
            rows.append({"attention": attention, "inputs": inputs, **numbers, **found})
    return rows


def _layers(height: int, width: int, draw: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """Yield names and probabilities (1, N, Q, K)."""
    pixels = height * width
    hard = torch.stack([_hard(height, width, *shift) for shift in itertools.product((-1, 0, 1), repeat=2)])
    yield "nine hard heads", hard[None]
    yield "one hard head", hard[None, -1:]
    yield "even", torch.full((1, HEADS, pixels, pixels), 1 / pixels)
    yield "random", torch.randn(1, HEADS, pixels, pixels, generator=draw).mul(3).softmax(-1)


def _hard(height: int, width: int, row: int, column: int) -> Tensor:
    """Return a head (Q, K) that looks at one shift; at the border, at the nearest pixel."""
    rows = (torch.arange(height) + row).clamp(0, height - 1)
    columns = (torch.arange(width) + column).clamp(0, width - 1)
    return F.one_hot((rows[:, None] * width + columns).flatten(), height * width).float()
