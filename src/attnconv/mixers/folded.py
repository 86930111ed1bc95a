"""Separable attention and its value projection in one function that keeps neither the averages nor their gradients.

The averages of N heads are N times as large as the map, (B, H, W, N*D): they are what a layer of positional attention
needs its memory for. Here they exist for a few images at a time; the backward pass computes them again, which costs
one more separable product.

Axes: B batch, H W rows and columns, N heads, D width, O outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AVERAGES_AT_ONCE = 2 * 2**20  # bytes of averages that exist at a time: about what a core's cache holds


class FoldedAttention(torch.autograd.Function):
    """Averages by rows (N, H, H) and columns (N, W, W) of maps x (B, H, W, D), projected by weight (O, N*D).

    All of one type; weights' gradients are summed in float32 at least. Once differentiable.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows, columns, weight)
        out = x.new_empty(*x.shape[:3], len(weight))
        for some in _parts(x, len(rows)):
            averages = _averages(x[some], rows, columns)[0]
            out[some] = (averages @ weight.T).view_as(out[some])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, rows, columns, weight = ctx.saved_tensors
        _, height, width, channels = x.shape
        heads = len(rows)
        for_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        wide = torch.promote_types(x.dtype, torch.float32)
        for_rows, for_columns, for_weight = (torch.zeros_like(part, dtype=wide) for part in (rows, columns, weight))
        for some in _parts(x, heads):
            count = len(x[some])
            of_out = gradient[some].reshape(count * height * width, -1)
            averages, over_rows = _averages(x[some], rows, columns)
            for_weight += of_out.T @ averages
            del averages
            # Back through the projection, then against the columns, then against the rows.
            of_averages = (of_out @ weight).view(count, height, width, heads, channels).permute(3, 1, 2, 0, 4)
            of_averages = of_averages.reshape(heads, height, width, count * channels)
            for_columns += (of_averages @ over_rows.transpose(-1, -2)).sum(dim=1, dtype=wide)
            of_rows = (columns.transpose(-1, -2)[:, None] @ of_averages).view(heads * height, -1)
            for_rows += (of_rows @ _pixels_first(x[some]).T).view_as(rows)
            of_pixels = rows.reshape(heads * height, height).T @ of_rows
            for_x[some] = of_pixels.view(height, width, count, channels).permute(2, 0, 1, 3)
        return for_x, for_rows.to(rows.dtype), for_columns.to(columns.dtype), for_weight.to(weight.dtype)


def _parts(x: Tensor, heads: int) -> list[slice]:
    """Slices of the batch that make at most AVERAGES_AT_ONCE bytes of averages, one image at least."""
    per_image = x.shape[1:].numel() * heads * x.element_size()
    size = max(1, AVERAGES_AT_ONCE // max(1, per_image))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _pixels_first(x: Tensor) -> Tensor:
    """(B, H, W, D) -> (H, W*B*D)."""
    return x.permute(1, 2, 0, 3).reshape(x.shape[1], -1)


def _averages(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Averages (B*H*W, N*D) of maps (B, H, W, D), and those over the rows alone, (N, H, W, B*D)."""
    batch, height, width, channels = x.shape
    heads = len(rows)
    over_rows = (rows.reshape(heads * height, height) @ _pixels_first(x)).view(heads, height, width, -1)
    averages = (columns[:, None] @ over_rows).unflatten(-1, (batch, channels)).permute(3, 1, 2, 0, 4)
    return averages.reshape(batch * height * width, heads * channels), over_rows
