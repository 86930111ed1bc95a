"""Attention whose probabilities depend on content: queries, keys and relative positions.

Per head, the score of key position k for query position q is (section 2.3 of the paper, with the four terms of
Transformer-XL)

    (query_q + u) . key_k / sqrt(D)  +  (query_q + v) . r(k - q) / sqrt(D)  +  e(k - q)

with r from `relative` (attnconv.mixers.relative) and e from `encoding` (attnconv.mixers.encodings). A switch turns each
term of the two products on or off: `content` (query . key), `key_bias` (u . key), `query_relative` (query . r) and
`relative_bias` (v . r). As in the authors' code, queries and keys have D channels per head, and the values are the
inputs themselves: each head averages all D channels, and the N averages are projected, N*D -> D.

This class holds the parameters and writes the scores down as the formula reads. attnconv.mixers.content_backends has
three ways to compute the layer, with equal results, and chooses one of them.

Axes: B batch, H W rows and columns, N heads, D width, Q K query and key positions (row-major over H x W).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnconv.mixers.base import AttentionMixer, axis_shifts, check_normalizer, grid_shifts, to_probs
from attnconv.mixers.content_backends import BACKENDS, check_impl, choose_backend
from attnconv.mixers.encodings import AdditiveEncoding, Encoding, exact_positions
from attnconv.mixers.relative import RelativeVectors, axis_products, outer_sum


class Terms(NamedTuple):
    """The parts of the scores of one batch; parts that the layer does not have are None.

    The scores are query . key + row_term + column_term + bias.
    """

    query: Tensor | None  # (B, N, Q, D), divided by sqrt(D)
    key: Tensor | None  # (B, N, K, D)
    axis_terms: list[Tensor] | None  # scores of key rows, (B or 1, N, Q, H), and of key columns, (B or 1, N, Q, W)
    bias: Tensor | None  # (N, Q, K)


class ContentAttention(AttentionMixer):
    """Multi-head attention over queries, keys and positions, (B, H, W, D) -> (B, H, W, D).

    Args:
        width: D, channels of the map, of each query and of each key.
        heads: N.
        grid: (H, W) of the maps to expect, in positions.
        attention_dropout: probability of zeroing an attention probability while training, per image.
        content: add the term query . key.
        relative: builds relative vectors r, called as `relative(width=, grid=)`; or None.
        encoding: builds a position-only score, called as `encoding(heads=, width=, grid=)`; or None.
        key_bias: add the term u . key, with u learned per head.
        relative_bias: add the term v . r, with v learned per head.
        query_relative: add the term query . r, if there is an r.
        pattern: which positions each query sees, called as `pattern(grid=, heads=)` (attnconv.mixers.patterns); or None
            for all.
        normalizer: turns scores into probabilities (attnconv.mixers.base).
        impl: "fused", "absorbed", "dense", or "auto" for the fastest one measured.

    Raises:
        ValueError: no term depends on content, a bias has no term to belong to, a name is unknown, or `impl` cannot
            compute the normalizer.
    """

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
        check_impl(impl, normalizer)
        query_relative = relative is not None and query_relative
        if not (content or key_bias or query_relative):
            raise ValueError(
                "no score depends on content: turn on content, key_bias or query_relative, or use PositionalAttention"
            )
        if relative_bias and relative is None:
            raise ValueError("relative_bias needs relative vectors: set relative")
        self.heads, self.width, self.attention_dropout = heads, width, attention_dropout
        self.normalizer, self.pattern, self.grid, self.impl = normalizer, pattern, grid, impl
        self.content, self.query_relative = content, query_relative
        self.query = nn.Linear(width, heads * width) if content or query_relative else None
        self.key = nn.Linear(width, heads * width) if content or key_bias else None
        self.relative = relative(width=width, grid=grid) if relative is not None else None
        self.encoding = encoding(heads=heads, width=width, grid=grid) if encoding is not None else None
        # Transformer-XL draws u and v like weights. Here they start at 0, so that training alone turns them on.
        self.key_bias = nn.Parameter(torch.zeros(heads, width)) if key_bias else None
        self.relative_bias = nn.Parameter(torch.zeros(heads, width)) if relative_bias else None
        self.value: nn.Module = nn.Linear(heads * width, width)
        # Not a buffer: it is not in a state_dict, so a network built on "meta" would not get its values.
        self.allowed = pattern(grid=grid, heads=heads) if pattern is not None else None

    def forward(self, x: Tensor) -> Tensor:
        averages = BACKENDS[choose_backend(self, x)](self, x)  # (B, Q, N, D)
        return self.value(averages.flatten(2).unflatten(1, x.shape[1:3]))

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities without dropout, (B, N, Q, K), of the maps x (B, H, W, D); rows sum to 1.

        Raises:
            ValueError: x is missing, or not height x width positions large.
        """
        if x is None or x.shape[1:3] != (height, width):
            raise ValueError(f"content attention needs x of {height}x{width} positions")
        return to_probs(self.scores(x), self.normalizer, self.allowed_pairs(x))

    def scores(self, x: Tensor) -> Tensor:
        """Return the scores of the maps x (B, H, W, D), before the normalizer, (B or 1, N, Q, K)."""
        terms = self.terms(x)
        scores = torch.zeros((), device=x.device)
        if terms.query is not None and terms.key is not None:
            scores = terms.query @ terms.key.transpose(-1, -2)
        if terms.axis_terms is not None:
            scores = scores + outer_sum(*terms.axis_terms)
        if terms.bias is not None:
            scores = scores + terms.bias
        return scores

    def terms(self, x: Tensor) -> Terms:
        """Return the parts of the scores of the maps x (B, H, W, D)."""
        _, height, width, _ = x.shape
        self.check_map(height, width)
        query = self._split(self.query(x)) if self.query is not None else None
        for_keys = self._add_bias(query if self.content else None, self.key_bias, x)
        for_relative = self._add_bias(query if self.query_relative else None, self.relative_bias, x)
        bias = None
        if self.encoding is not None and not isinstance(self.encoding, AdditiveEncoding):
            with exact_positions(x.device):
                bias = self.encoding(grid_shifts(height, width, x.device))
        key = self._split(self.key(x)) if self.key is not None else None
        return Terms(for_keys, key, self._axis_terms(x, for_relative), bias)

    def allowed_pairs(self, x: Tensor) -> Tensor | None:
        """Return which keys each query of the maps x sees, (1 or N, Q, K) bool, or None for all."""
        if self.pattern is None or self.allowed is None:
            return None
        if (x.shape[1], x.shape[2]) != self.grid:
            return self.pattern(grid=(x.shape[1], x.shape[2]), heads=self.heads).to(x.device)
        if x.device.type == "meta":  # has no values to keep
            return self.allowed.to(x.device)
        if self.allowed.device != x.device:
            self.allowed = self.allowed.to(x.device)
        return self.allowed

    def check_map(self, height: int, width: int) -> None:
        """Raise ValueError if a table of positions is too small for a height x width map."""
        for positions in (self.relative, self.encoding):
            if positions is not None:
                positions.check_map(height, width)

    def _split(self, projected: Tensor) -> Tensor:
        """Split the heads: (B, H, W, N*D) -> (B, N, Q, D)."""
        return projected.flatten(1, 2).unflatten(-1, (self.heads, self.width)).transpose(1, 2)

    def _add_bias(self, query: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor | None:
        """Return (query + bias) / sqrt(D), (B, N, Q, D). Either may be None; if both are, return None."""
        if bias is not None:
            constant = bias[:, None].expand(x.shape[0], -1, x.shape[1] * x.shape[2], -1)
            query = constant if query is None else query + constant
        return None if query is None else query / math.sqrt(self.width)

    def _axis_terms(self, x: Tensor, query: Tensor | None) -> list[Tensor] | None:
        """Return the row and column terms of `Terms` for a query (B, N, Q, D) of the relative vectors."""
        _, height, width, _ = x.shape
        rows, columns = axis_shifts(height, x.device), axis_shifts(width, x.device)
        terms: list[tuple[Tensor, Tensor]] = []
        if query is not None and self.relative is not None:
            terms.append(axis_products(self.relative, query, rows, columns))
        if isinstance(self.encoding, AdditiveEncoding):
            with exact_positions(x.device):
                row_term = self.encoding.row_scores(rows).repeat_interleave(width, dim=1)
                column_term = self.encoding.column_scores(columns).repeat(1, height, 1)
            terms.append((row_term[None], column_term[None]))
        if not terms:
            return None
        return [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]
