"""Three ways to compute content attention, with equal results, and the choice between them.

    dense      writes out queries, keys and all probabilities, as the formula reads; works for every normalizer.
    absorbed   multiplies the weights of queries and keys once per step: x W_q . y W_k = (x W_q W_k^T) . y, and likewise
               for r. The keys are then the inputs themselves, the same for all heads: with D channels per head this
               saves one of two projections, and all heads share one matrix product.
    fused      uses PyTorch's fused kernel, which never writes the probabilities.

The absorbed and fused backends drop or move terms that all keys of a query share, which softmax does not see but other
normalizers do. Relative vectors and additive encodings are a row term plus a column term for each query. As products
with one-hot row and column keys they are H + W more channels of queries and keys, exactly, so that no Q x K bias has to
be written.

Each backend is a function of a layer and its input x (B, H, W, D), and returns the averages (B, Q, N, D).

Axes: B batch, H W rows and columns, N heads, D width, Q K query and key positions, S positions on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import axis_shifts, grid_shifts, to_probs
from attnconv.mixers.blocked import is_plain_linear
from attnconv.mixers.encodings import exact_positions
from attnconv.mixers.relative import RelativeVectors

if TYPE_CHECKING:
    from attnconv.mixers.content import ContentAttention

WIDEST_FLASH = 256  # channels of a head; wider heads only run on kernels whose values may have another width than keys
ALIGNMENT = 8  # fused kernels need a multiple of this many channels per head


def check_impl(impl: str, normalizer: str) -> None:
    """Raise ValueError if `impl` is unknown or cannot compute the normalizer."""
    names = ("auto", *BACKENDS)
    if impl not in names:
        raise ValueError(f"impl must be one of {', '.join(names)}, not {impl!r}")
    if impl in ("fused", "absorbed") and normalizer != "softmax":
        raise ValueError(f"impl={impl} cannot compute normalizer={normalizer}; use impl=auto")


def choose_backend(layer: ContentAttention, x: Tensor) -> str:
    """Return the name of the backend for x: the layer's `impl`, or for "auto" the fastest one measured.

    On a CPU, written-out probabilities were faster than the fused kernel at every size measured
    (`scripts/bench_attention.py`, LOG.md). On a GPU, not measured yet, they would fill the memory.
    """
    if layer.impl != "auto":
        return layer.impl
    # On the "meta" device nothing is computed: FLOPs are counted from the definition.
    if layer.normalizer != "softmax" or x.device.type == "meta":
        return "dense"
    if x.device.type != "cpu":
        return "fused"
    if not all(part is None or is_plain_linear(part) for part in (layer.query, layer.key)):
        return "dense"  # only this backend calls the projections; the absorbed one would skip hooks
    # The product of the weights has D rows per head: it does not pay for fewer positions than that.
    return "absorbed" if x.shape[:3].numel() >= layer.width else "dense"


def dense(layer: ContentAttention, x: Tensor) -> Tensor:
    """Average the inputs as the formula reads, for any normalizer."""
    probs = to_probs(layer.scores(x), layer.normalizer, layer.allowed_pairs(x))
    probs = F.dropout(probs, layer.attention_dropout, layer.training)
    return torch.einsum("bnqk,bkd->bqnd", probs, x.flatten(1, 2).to(probs.dtype))


def fused(layer: ContentAttention, x: Tensor) -> Tensor:
    """Average the inputs by one fused kernel, with row and column terms as further channels."""
    batch, height, width, _ = x.shape
    terms = layer.terms(x)
    queries, keys = [] if terms.query is None else [terms.query], [] if terms.key is None else [terms.key]
    if terms.axis_terms is not None:
        queries += [term.expand(batch, -1, -1, -1) for term in terms.axis_terms]
        keys += [one_hot.expand(batch, layer.heads, -1, -1) for one_hot in _one_hot_axes(height, width, x)]
    # Under autocast, positions are float32 and projections bf16; elsewhere all terms have one type.
    kind = x.dtype if terms.query is None else terms.query.dtype
    mask = layer.allowed_pairs(x)
    if terms.bias is not None:
        bias = terms.bias.to(kind)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    query, key = (torch.cat([part.to(kind) for part in parts], dim=-1) for parts in (queries, keys))
    channels = math.ceil(max(key.shape[-1], layer.width) / ALIGNMENT) * ALIGNMENT
    query, key = (F.pad(part, (0, channels - part.shape[-1])) for part in (query, key))
    values = x.flatten(1, 2)[:, None].expand(-1, layer.heads, -1, -1).to(kind)
    if channels <= WIDEST_FLASH:
        # Flash kernels need queries, keys and values of one width.
        values = F.pad(values, (0, channels - layer.width))
    mask = None if mask is None else mask[None]
    dropout = layer.attention_dropout if layer.training else 0.0
    averages = F.scaled_dot_product_attention(query, key, values, attn_mask=mask, dropout_p=dropout, scale=1.0)
    return averages[..., : layer.width].transpose(1, 2)


def absorbed(layer: ContentAttention, x: Tensor) -> Tensor:
    """Average the inputs with the weights of queries multiplied into those of keys.

    The rows of all products are (query, head), and keys have no heads: each image needs one product of each kind, and
    nothing is transposed.
    """
    batch, height, width, _ = x.shape
    layer.check_map(height, width)
    inputs = x.flatten(1, 2)
    queries, keys = [], []
    if layer.key is not None:
        query = layer.query if layer.content else None
        queries.append(_absorbed_query(inputs, query, layer.key, layer.key_bias, layer.heads))
        keys.append(inputs)
    if layer.relative is not None and (layer.query_relative or layer.relative_bias is not None):
        query = layer.query if layer.query_relative else None
        queries += _absorbed_axis_terms(x, query, layer.relative, layer.relative_bias, layer.heads)
        keys += [one_hot.expand(batch, -1, -1) for one_hot in _one_hot_axes(height, width, x)]
    kind = queries[0].dtype  # bf16 under autocast
    all_queries = torch.cat([part.to(kind) for part in queries], dim=-1)
    all_keys = torch.cat([part.to(kind) for part in keys], dim=-1)
    scores = (all_queries.flatten(1, 2) @ all_keys.transpose(1, 2)).unflatten(1, (-1, layer.heads))  # (B, Q, N, K)
    if layer.encoding is not None:
        with exact_positions(x.device):
            scores = scores + layer.encoding(grid_shifts(height, width, x.device)).transpose(0, 1)
    allowed = layer.allowed_pairs(x)
    probs = to_probs(scores, layer.normalizer, None if allowed is None else allowed.transpose(0, 1))
    probs = F.dropout(probs, layer.attention_dropout, layer.training)
    return (probs.flatten(1, 2) @ inputs.to(probs.dtype)).unflatten(1, (-1, layer.heads))


BACKENDS: dict[str, Callable[[ContentAttention, Tensor], Tensor]] = {
    "fused": fused,
    "absorbed": absorbed,
    "dense": dense,
}


def _absorbed_query(
    inputs: Tensor, query: nn.Linear | None, key: nn.Linear, key_bias: Tensor | None, heads: int
) -> Tensor:
    """Return what the inputs, as keys, are multiplied with to give (query + u) . key / sqrt(D), (B, Q, N, D).

    (W_q x + b_q + u) . (W_k y + b_k) is y . W_k^T (W_q x + b_q + u) plus a term that all keys y share.

    Args:
        inputs: of the queries, x, (B, Q, D).
        query, key: D -> N*D; without a query only u is compared with the keys.
        key_bias: u (N, D), or None.
    """
    width = inputs.shape[-1]
    by_head = key.weight.unflatten(0, (heads, width)) / math.sqrt(width)  # (N, D, D)
    constant = torch.zeros_like(by_head[:, 0])
    if query is not None:
        constant = constant + query.bias.view(heads, width)
    if key_bias is not None:
        constant = constant + key_bias
    # The bias of the keys has no effect. Its gradient is 0 here, as in the other backends, and not missing.
    bias = (constant[:, None] @ by_head)[:, 0] + 0 * key.bias.sum()
    if query is None:
        return bias.expand(*inputs.shape[:2], -1, -1)
    weight = by_head.transpose(1, 2) @ query.weight.unflatten(0, (heads, width))
    return F.linear(inputs, weight.flatten(0, 1), bias.flatten()).unflatten(-1, (heads, width))


def _absorbed_axis_terms(
    x: Tensor, query: nn.Linear | None, relative: RelativeVectors, relative_bias: Tensor | None, heads: int
) -> list[Tensor]:
    """Return (query + v) . r / sqrt(D) for each key row, (B, Q, N, H), and for each key column, (B, Q, N, W).

    Args:
        x: (B, H, W, D).
        query: D -> N*D, or None if only v is compared with r.
        relative: r; its first half describes rows, its second half columns.
        relative_bias: v (N, D), or None.
    """
    batch, height, width, channels = x.shape
    half = channels // 2
    terms = []
    for axis, (size, vectors) in enumerate(((height, relative.row_vectors), (width, relative.column_vectors))):
        own = slice(axis * half, (axis + 1) * half)
        table = vectors(torch.arange(1 - size, size, device=x.device)) / math.sqrt(channels)  # (2S-1, D/2)
        which = axis_shifts(size, x.device) + size - 1  # (S, S): the table's entry for each query and key
        constant = table.new_zeros(heads, half)
        if relative_bias is not None:
            constant = constant + relative_bias[:, own]
        if query is not None:
            constant = constant + query.bias.view(heads, channels)[:, own]
        term = (constant @ table.T)[:, which].transpose(0, 1)  # (S, N, S)
        term = term.reshape(*([1, size, 1] if axis == 0 else [1, 1, size]), heads, size)
        if query is not None:
            weight = query.weight.unflatten(0, (heads, channels))[:, own]  # (N, D/2, D)
            by_shift = (table @ weight)[:, which]  # (N, S, S, D)
            term = torch.einsum("bijd,nikd->bijnk" if axis == 0 else "bijd,njkd->bijnk", x, by_shift) + term
        terms.append(term.expand(batch, height, width, -1, -1).flatten(1, 2))
    return terms


def _one_hot_axes(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each position of a map, (K, H), and its column, (K, W), one-hot."""
    row = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    column = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return row, column
