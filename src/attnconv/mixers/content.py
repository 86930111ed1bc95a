"""Attention whose probabilities depend on content: queries, keys and relative positions.

The score of key pixel k for query pixel q is, per head (the paper's section 2.3, with Transformer-XL's four terms),

    (query_q + u) . key_k / sqrt(D)  +  (query_q + v) . r(k - q) / sqrt(D)  +  e(k - q)

with r from `relative` (attnconv.mixers.relative) and e from `encoding` (attnconv.mixers.encodings). Each of the four
terms of the two products has its switch: `content` (query . key), `key_bias` (u . key), `query_relative` (query . r)
and `relative_bias` (v . r). As in the reference, queries and keys have D channels per
head, and the values are the pixels themselves: N averages of D channels, projected N*D -> D.

r and every additive encoding are a row term plus a column term for each query. Written as products with one-hot row and
column keys these are H + W further channels of queries and keys, exactly, so that no Q x K bias need be written. The
layer is computed in one of three ways with equal results:

    dense      as the formula reads: queries, keys, all probabilities written out.
    absorbed   x W_q . x W_k = (x W_q W_k^T) . x, and likewise for r: the product of the weights is formed once per
               step, keys are the pixels themselves, for all heads, and neither queries nor keys are projected. With D
               channels per head that is one projection instead of two, and all heads share one matrix product.
    fused      one kernel that never writes the probabilities.

Axes: B batch, H W rows and columns, N heads, D width, Q K query and key pixels (row-major over H x W).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.absorbed import absorbed_axis_terms, absorbed_question
from attnconv.mixers.base import AttentionMixer
from attnconv.mixers.blocked import is_plain_linear
from attnconv.mixers.encodings import AdditiveEncoding, Encoding, exact_positions
from attnconv.mixers.normalizers import check_normalizer, to_probs
from attnconv.mixers.relative import RelativeVectors, axis_products, outer_sum
from attnconv.mixers.shifts import axis_shifts, grid_shifts

IMPLEMENTATIONS = ("auto", "fused", "absorbed", "dense")

WIDEST_FLASH = 256  # channels of a head; above that only kernels remain that take values of another width
ALIGNMENT = 8  # fused kernels take heads whose channels are a multiple of this


class ContentAttention(AttentionMixer):
    """Multi-head attention over queries, keys and positions, (B, H, W, D) -> (B, H, W, D).

    Args:
        width: D, channels of the map, of every query and of every key.
        heads: N.
        grid: (H, W) of the maps to expect, in pixels.
        attention_dropout: probability of zeroing an attention probability while training, per image.
        content: the term query . key.
        relative: builds relative vectors r, called as `relative(width=, grid=)`; or None.
        encoding: builds a position-only score, called as `encoding(heads=, width=, grid=)`; or None.
        key_bias: the term u . key, with u learned per head.
        relative_bias: the term v . r, with v learned per head.
        query_relative: the term query . r, if there is an r.
        pattern: who may see whom, called as `pattern(grid=, heads=)` (attnconv.mixers.patterns); or None for everyone.
        normalizer: what turns scores into probabilities (attnconv.mixers.normalizers).
        impl: "fused", "absorbed", "dense", or "auto" for the one measured faster: fused, absorbed on a CPU, dense for
            normalizers other than softmax, which alone forgets what all keys of a query have in common.

    Raises:
        ValueError: nothing to score with, a bias of a term that is absent, an unknown name, or another normalizer than
            softmax for an impl that needs it.
    """

    allowed: Tensor | None

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        attention_dropout: float = 0.0,
        content: bool = True,
        relative: Callable[..., RelativeVectors] | None = None,
        encoding: Callable[..., Encoding] | None = None,
        key_bias: bool = False,
        relative_bias: bool = False,
        query_relative: bool = True,
        pattern: Callable[..., Tensor] | None = None,
        normalizer: str = "softmax",
        impl: str = "auto",
    ):
        super().__init__()
        check_normalizer(normalizer)
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
        if impl in ("fused", "absorbed") and normalizer != "softmax":
            raise ValueError(f"impl={impl} cannot do normalizer={normalizer}; use impl=auto")
        asks_where = relative is not None and query_relative
        if not (content or key_bias or asks_where):
            raise ValueError("without content, key_bias and query_relative no content is seen: use PositionalAttention")
        if relative_bias and relative is None:
            raise ValueError("relative_bias needs relative vectors")
        self.heads, self.width, self.attention_dropout = heads, width, attention_dropout
        self.normalizer, self.pattern, self.grid, self.impl = normalizer, pattern, grid, impl
        self.asks_what, self.asks_where = content, asks_where
        self.query = nn.Linear(width, heads * width) if content or asks_where else None
        self.key = nn.Linear(width, heads * width) if content or key_bias else None
        self.relative = relative(width=width, grid=grid) if relative is not None else None
        self.encoding = encoding(heads=heads, width=width, grid=grid) if encoding is not None else None
        # Transformer-XL draws u and v like weights; here they start at 0, so that their terms are learned, not given.
        self.key_bias = nn.Parameter(torch.zeros(heads, width)) if key_bias else None
        self.relative_bias = nn.Parameter(torch.zeros(heads, width)) if relative_bias else None
        self.value: nn.Module = nn.Linear(heads * width, width)
        allowed = pattern(grid=grid, heads=heads).to(self.value.weight.device) if pattern is not None else None
        self.register_buffer("allowed", allowed, persistent=False)

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Probabilities without dropout, (B, N, Q, K), of the maps x (B, H, W, D); rows sum to 1.

        Raises:
            ValueError: x is missing, or not of that size.
        """
        if x is None or x.shape[1:3] != (height, width):
            raise ValueError(f"attention to content needs x of {height}x{width} pixels")
        return to_probs(self.dense_scores(x), self.normalizer, self._allowed(x))

    def dense_scores(self, x: Tensor) -> Tensor:
        """The scores as the formula reads, (B, N, Q, K): the oracle of `forward`, and what analysis looks at."""
        _, height, width, _ = x.shape
        self._check_map(height, width)
        shifts = grid_shifts(height, width, x.device)
        what, where = self._questions(x)
        scores = x.new_zeros(())
        if what is not None and self.key is not None:
            scores = scores + what @ self._split(self.key(x)).transpose(-1, -2)
        if where is not None and self.relative is not None:
            rows, columns = (self.relative.row_vectors(shifts[..., 0]), self.relative.column_vectors(shifts[..., 1]))
            vectors = torch.cat([rows, columns], dim=-1)
            scores = scores + torch.einsum("bnqd,qkd->bnqk", where, vectors)
        if self.encoding is not None:
            with exact_positions(x.device):
                scores = scores + self.encoding(shifts)
        return scores

    def forward(self, x: Tensor) -> Tensor:
        averages = getattr(self, f"_averages_{self._impl_for(x)}")(x)
        return self.value(averages.flatten(2).unflatten(1, x.shape[1:3]))

    def _check_map(self, height: int, width: int) -> None:
        for positions in (self.relative, self.encoding):
            if positions is not None:
                positions.check_map(height, width)

    def _impl_for(self, x: Tensor) -> str:
        # On a CPU written-out probabilities were faster than the fused kernel at every size measured
        # (`scripts/bench_attention.py`, LOG.md); on a GPU, not measured yet, they would fill the memory. Without memory
        # ("meta") a layer is only counted, by its definition.
        if self.impl != "auto":
            return self.impl
        if self.normalizer != "softmax" or x.device.type == "meta":
            return "dense"
        if x.device.type != "cpu":
            return "fused"
        if not all(part is None or is_plain_linear(part) for part in (self.query, self.key)):
            return "dense"  # which calls them
        # The product of the weights has D rows: for fewer pixels than that it is not worth its making.
        return "absorbed" if x.shape[:3].numel() >= self.width else "dense"

    def _averages_fused(self, x: Tensor) -> Tensor:
        """Averaged pixels (B, Q, N, D) by one fused kernel, row and column terms as further channels."""
        batch, height, width, _ = x.shape
        query, key, axis_terms, bias = self._terms(x)
        queries, keys = [] if query is None else [query], [] if key is None else [key]
        if axis_terms is not None:
            queries += [term.expand(batch, -1, -1, -1) for term in axis_terms]
            keys += [one_hot.expand(batch, self.heads, -1, -1) for one_hot in _one_hot_axes(height, width, x)]
        pixels = x.flatten(1, 2)[:, None].expand(-1, self.heads, -1, -1)
        # Outside autocast the terms share a type; under it positions come in float32, what is projected in bf16.
        kind = x.dtype if query is None else query.dtype
        mask = self._allowed(x)
        if bias is not None:
            mask = bias.to(kind) if mask is None else bias.to(kind).masked_fill(~mask, float("-inf"))
        query, key = (torch.cat([part.to(kind) for part in parts], dim=-1) for parts in (queries, keys))
        dropout = self.attention_dropout if self.training else 0.0
        values = pixels.to(kind)
        channels = math.ceil(max(key.shape[-1], self.width) / ALIGNMENT) * ALIGNMENT
        query, key = (F.pad(part, (0, channels - part.shape[-1])) for part in (query, key))
        if channels <= WIDEST_FLASH:
            # Flash kernels want queries, keys and values of one width.
            values = F.pad(values, (0, channels - self.width))
        averages = F.scaled_dot_product_attention(
            query, key, values, attn_mask=None if mask is None else mask[None], dropout_p=dropout, scale=1.0
        )
        return averages[..., : self.width].transpose(1, 2)

    def _averages_absorbed(self, x: Tensor) -> Tensor:
        """The same with the weights of queries multiplied into those of keys, (B, Q, N, D).

        Rows of all products are (query, head) and keys have no heads, so that every image has one product of each kind
        and nothing is transposed.
        """
        batch, height, width, _ = x.shape
        self._check_map(height, width)
        pixels = x.flatten(1, 2)
        questions, keys = [], []
        if self.key is not None:
            query = self.query if self.asks_what else None
            questions.append(absorbed_question(pixels, query, self.key, self.key_bias, self.heads))
            keys.append(pixels)
        if self.relative is not None and (self.asks_where or self.relative_bias is not None):
            query = self.query if self.asks_where else None
            questions += absorbed_axis_terms(x, query, self.relative, self.relative_bias, self.heads)
            keys += [one_hot.expand(batch, -1, -1) for one_hot in _one_hot_axes(height, width, x)]
        kind = questions[0].dtype  # bf16 under autocast
        question = torch.cat([part.to(kind) for part in questions], dim=-1)
        key = torch.cat([part.to(kind) for part in keys], dim=-1)
        scores = (question.flatten(1, 2) @ key.transpose(1, 2)).unflatten(1, (-1, self.heads))
        if self.encoding is not None:
            with exact_positions(x.device):
                scores = scores + self.encoding(grid_shifts(height, width, x.device)).transpose(0, 1)
        allowed = self._allowed(x)
        probs = to_probs(scores, self.normalizer, None if allowed is None else allowed.transpose(0, 1))
        probs = F.dropout(probs, self.attention_dropout, self.training)
        return (probs.flatten(1, 2) @ pixels.to(probs.dtype)).unflatten(1, (-1, self.heads))

    def _averages_dense(self, x: Tensor) -> Tensor:
        """The same as the formula reads, (B, Q, N, D), for any normalizer."""
        query, key, axis_terms, bias = self._terms(x)
        scores = torch.zeros((), device=x.device)
        if query is not None and key is not None:
            scores = query @ key.transpose(-1, -2)
        if axis_terms is not None:
            scores = scores + outer_sum(*axis_terms)
        if bias is not None:
            scores = scores + bias
        probs = to_probs(scores, self.normalizer, self._allowed(x))
        probs = F.dropout(probs, self.attention_dropout, self.training)
        return torch.einsum("bnqk,bkd->bqnd", probs, x.flatten(1, 2).to(probs.dtype))

    def _terms(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, list[Tensor] | None, Tensor | None]:
        """Queries and keys to multiply, row and column terms, and a (N, Q, K) bias; None for what there is not."""
        _, height, width, _ = x.shape
        self._check_map(height, width)
        what, where = self._questions(x)
        bias = None
        if self.encoding is not None and not isinstance(self.encoding, AdditiveEncoding):
            with exact_positions(x.device):
                bias = self.encoding(grid_shifts(height, width, x.device))
        key = self._split(self.key(x)) if self.key is not None else None
        return what, key, self._axis_terms(x, where), bias

    def _questions(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What keys and what relative vectors are multiplied with, (B, N, Q, D) each, or None."""
        query = self._split(self.query(x)) if self.query is not None else None
        questions: list[Tensor | None] = []
        for asks, bias in ((self.asks_what, self.key_bias), (self.asks_where, self.relative_bias)):
            question = query if asks else None
            if bias is not None:
                constant = bias[:, None].expand(len(x), -1, x.shape[1] * x.shape[2], -1)
                question = constant if question is None else question + constant
            questions.append(None if question is None else question / math.sqrt(self.width))
        return questions[0], questions[1]

    def _allowed(self, x: Tensor) -> Tensor | None:
        """Who may see whom on maps x, (1 or N, Q, K) bool, or None for everyone."""
        grid = (x.shape[1], x.shape[2])
        if self.pattern is None or grid == self.grid:
            return self.allowed
        return self.pattern(grid=grid, heads=self.heads).to(x.device)

    def _axis_terms(self, x: Tensor, where: Tensor | None) -> list[Tensor] | None:
        """The score of every key row (B or 1, N, Q, H) and column (B or 1, N, Q, W), or None without positions."""
        _, height, width, _ = x.shape
        rows, columns = axis_shifts(height, x.device), axis_shifts(width, x.device)
        terms: list[tuple[Tensor, Tensor]] = []
        if where is not None and self.relative is not None:
            terms.append(axis_products(self.relative, where, rows, columns))
        if isinstance(self.encoding, AdditiveEncoding):
            with exact_positions(x.device):
                row_term = self.encoding.row_scores(rows).repeat_interleave(width, dim=1)
                column_term = self.encoding.column_scores(columns).repeat(1, height, 1)
            terms.append((row_term[None], column_term[None]))
        if not terms:
            return None
        return [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]

    def _split(self, projected: Tensor) -> Tensor:
        """(B, H, W, N*D) -> (B, N, Q, D)."""
        return projected.flatten(1, 2).unflatten(-1, (self.heads, self.width)).transpose(1, 2)


def _one_hot_axes(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The row of every pixel of a map, (K, H), and its column, (K, W), one-hot."""
    row = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    column = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return row, column
