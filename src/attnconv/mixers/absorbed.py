"""Content scores without queries and keys: the weights of one multiplied into those of the other, once per step.

(W_q x + b_q + u) . (W_k y + b_k) is x . (W_q^T W_k y) and terms of y alone, but for what does not depend on the key y,
which softmax does not see. So keys are the pixels y themselves, the same for all heads, and what a pixel x asks of
them is one projection of it (attnconv.mixers.content, `impl="absorbed"`).

Axes: B batch, H W rows and columns, N heads, D width, Q query pixels, S positions on an axis.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.relative import RelativeVectors
from attnconv.mixers.shifts import axis_shifts


def absorbed_question(
    pixels: Tensor, query: nn.Linear | None, key: nn.Linear, key_bias: Tensor | None, heads: int
) -> Tensor:
    """What is multiplied with the pixels as keys to give (query + u) . key / sqrt(D), (B, Q, N, D).

    Args:
        pixels: (B, Q, D), those that ask.
        query, key: D -> N*D; without a query only u asks.
        key_bias: u (N, D), or None.
    """
    width = pixels.shape[-1]
    by_head = key.weight.unflatten(0, (heads, width)) / math.sqrt(width)  # (N, D, D)
    constant = torch.zeros_like(by_head[:, 0])
    if query is not None:
        constant = constant + query.bias.view(heads, width)
    if key_bias is not None:
        constant = constant + key_bias
    # The bias of the keys has no effect, and so a gradient of 0, as in the other ways: not none at all.
    bias = (constant[:, None] @ by_head)[:, 0] + 0 * key.bias.sum()
    if query is None:
        return bias.expand(*pixels.shape[:2], -1, -1)
    weight = by_head.transpose(1, 2) @ query.weight.unflatten(0, (heads, width))
    return F.linear(pixels, weight.flatten(0, 1), bias.flatten()).unflatten(-1, (heads, width))


def absorbed_axis_terms(
    x: Tensor, query: nn.Linear | None, relative: RelativeVectors, relative_bias: Tensor | None, heads: int
) -> list[Tensor]:
    """(query + v) . r / sqrt(D) of every key row, (B, Q, N, H), and of every key column, (B, Q, N, W).

    Args:
        x: (B, H, W, D).
        query: D -> N*D, or None if only v asks.
        relative: r; its first half is of rows, its second of columns.
        relative_bias: v (N, D), or None.
    """
    batch, height, width, channels = x.shape
    half = channels // 2
    terms = []
    for axis, (size, vectors) in enumerate(((height, relative.row_vectors), (width, relative.column_vectors))):
        own = slice(axis * half, (axis + 1) * half)
        table = vectors(torch.arange(1 - size, size, device=x.device)) / math.sqrt(channels)  # (2S-1, D/2)
        which = axis_shifts(size, x.device) + size - 1  # (S, S): the place in the table of each query and key
        constant = table.new_zeros(heads, half)
        if relative_bias is not None:
            constant = constant + relative_bias[:, own]
        if query is not None:
            constant = constant + query.bias.view(heads, channels)[:, own]
        term = (constant @ table.T)[:, which].transpose(0, 1)  # (S, N, S)
        term = term.reshape(*([1, size, 1] if axis == 0 else [1, 1, size]), heads, size)
        if query is not None:
            weight = query.weight.unflatten(0, (heads, channels))[:, own]  # (N, D/2, D)
            absorbed = (table @ weight)[:, which]  # (N, S, S, D)
            term = torch.einsum("bijd,nikd->bijnk" if axis == 0 else "bijd,njkd->bijnk", x, absorbed) + term
        terms.append(term.expand(batch, height, width, -1, -1).flatten(1, 2))
    return terms
