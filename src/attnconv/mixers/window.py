"""Stand-alone self-attention in a K x K window (Ramachandran et al. 2019, arXiv 1906.05909).

Each head of D/N channels scores the K^2 positions around its query, q.k + q.r with learned relative vectors, and
averages their values. `border` says how windows continue beyond the map:

    zero    padded with zeros, as in the paper: a position outside has key and value 0 and scores q.r;
    shift   moved inside the map, as in neighborhood attention (NAT): always K^2 real positions.

There are two ways to compute it, with equal results:

    gathered   gathers the keys and values of each window: cost linear in K^2, nothing of size Q x K;
    dense      multiplies all queries with all positions and masks: faster if windows cover much of the map.

Axes: B batch, H W rows and columns, N heads, D width, E = D/N channels of a head, Q K query and key positions, S = K^2
positions of a window (where K is the side of the window, as in the paper).

Differences from that paper: scores are divided by sqrt(E), and queries, keys and values have biases.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import AttentionMixer, axis_shifts, check_normalizer, to_probs
from attnconv.mixers.patterns import axis_window, both_axes, check_window
from attnconv.mixers.relative import LearnedRelativeVectors, axis_products, outer_sum

IMPLEMENTATIONS = ("auto", "dense", "gathered")

# If the map has at most this many times as many positions as the window, one product with all of them is faster than
# gathering. LOG.md has the ratios, and `python scripts/bench_attention.py` measures them.
DENSE_UP_TO_WINDOWS = 8

CACHE_BYTES = 8 * 2**20  # of gathered keys, in float32


class AxisWindows(NamedTuple):
    """The windows of all positions of one axis; windows of the map are products of these."""

    positions: Tensor  # (size, K), clamped to the axis
    inside: Tensor  # (size, K) bool: whether they were inside before clamping
    shifts: Tensor  # (size, K), from a position to those of its window


class WindowAttention(AttentionMixer):
    """Attention within K x K positions, (B, H, W, D) -> (B, H, W, D).

    Args:
        width: D; each head has D/N channels of queries, keys and values.
        heads: N.
        grid: (H, W) of the maps to expect, in positions.
        attention_dropout: probability of zeroing an attention probability while training.
        kernel_size: K, odd.
        border: "zero" or "shift".
        normalizer: turns scores into probabilities (attnconv.mixers.base).
        impl: "gathered", "dense", or "auto" for the fastest one measured.

    Raises:
        ValueError: width is not divisible by heads, the window does not fit into the map, or a name is unknown.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        attention_dropout: float = 0.0,
        kernel_size: int = 7,
        border: str = "zero",
        normalizer: str = "softmax",
        impl: str = "auto",
    ):
        super().__init__()
        check_normalizer(normalizer)
        check_window(grid, kernel_size, border)
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}")
        if width // heads % 2:
            raise ValueError(
                f"width={width} over heads={heads} is odd: half of a head's channels are for rows, half for columns"
            )
        self.heads, self.kernel_size, self.border, self.impl = heads, kernel_size, border, impl
        self.attention_dropout, self.normalizer = attention_dropout, normalizer
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        # A shifted window extends K - 1 positions to one side, a centered one K // 2.
        self.reach = kernel_size - 1 if border == "shift" else kernel_size // 2
        self.relative = LearnedRelativeVectors(width // heads, (self.reach + 1, self.reach + 1))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        check_window((height, width), self.kernel_size, self.border)
        few = height * width <= DENSE_UP_TO_WINDOWS * self.kernel_size**2
        dense = self.impl == "dense" or (self.impl == "auto" and few)
        averages = self._averages_dense(x) if dense else self._averages_in_parts(x)
        return averages.transpose(1, 2).reshape(x.shape)

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities without dropout, (B, N, Q, K), of the maps x (B, H, W, D).

        With border="zero", a row near the border sums to less than 1: the rest goes to the zeros outside.

        Raises:
            ValueError: x is missing, or is not height x width positions large.
        """
        if x is None or x.shape[1:3] != (height, width):
            raise ValueError(f"content attention needs x of {height}x{width} positions")
        check_window((height, width), self.kernel_size, self.border)
        return self._dense_probs(x)

    def _averages_dense(self, x: Tensor) -> Tensor:
        """Return the averaged values (B, N, Q, E), from all queries and all positions."""
        probs = F.dropout(self._dense_probs(x), self.attention_dropout, self.training)
        value = self._split(self.value(x))
        return probs.to(value.dtype) @ value

    def _dense_probs(self, x: Tensor) -> Tensor:
        """Return probabilities (B, N, Q, K), 0 outside of the windows."""
        _, height, width, _ = x.shape
        query, key = self._queries(x), self._split(self.key(x))
        # Shifts outside of the window have no vector; their scores are masked.
        shifts = (axis_shifts(size, x.device).clamp(-self.reach, self.reach) for size in (height, width))
        scores = query @ key.transpose(-1, -2) + outer_sum(*axis_products(self.relative, query, *shifts))
        allowed = both_axes(*(axis_window(n, self.kernel_size, self.border, x.device) for n in (height, width)))
        if self.border == "zero":
            # Positions outside have key 0, so their score is q.r, and they take a share of the sum.
            rows, columns = (self._axis_windows(size, x.device) for size in (height, width))
            beyond = outer_sum(*axis_products(self.relative, query, rows.shifts, columns.shifts))
            scores = torch.cat([scores, beyond], dim=-1)
            allowed = torch.cat([allowed, ~both_axes(rows.inside, columns.inside)], dim=-1)
        return to_probs(scores, self.normalizer, allowed)[..., : height * width]

    def _averages_in_parts(self, x: Tensor) -> Tensor:
        """Return the same from gathered windows.

        On a CPU, it takes a few images at a time, so that their windows stay in the cache.
        """
        images = self._share(len(x), x.shape[1:].numel(), x.device)
        return torch.cat([self._averages_gathered(part) for part in x.split(images)])

    def _share(self, count: int, numbers: int, device: torch.device) -> int:
        """Return how many of `count` items, with `numbers` numbers each, to gather windows for at once, at least 1."""
        if device.type != "cpu":
            return max(1, count)
        return max(1, min(count, CACHE_BYTES // max(1, 4 * numbers * self.kernel_size**2)))

    def _averages_gathered(self, x: Tensor) -> Tensor:
        """Return the same, gathering keys and values for some rows of windows at a time."""
        _, height, width, _ = x.shape
        rows, columns = (self._axis_windows(size, x.device) for size in (height, width))
        query, key, value = self._queries(x).unflatten(2, (height, width)), self.key(x), self.value(x)
        averages = []
        step = self._share(height, len(x) * x.shape[2:].numel(), x.device)
        for part in (slice(start, start + step) for start in range(0, height, step)):
            index = rows.positions[part, None, :, None] * width + columns.positions[None, :, None, :]
            index, inside = index.reshape(-1, self.kernel_size**2), both_axes(rows.inside[part], columns.inside)
            asked, keys = query[:, :, part].flatten(2, 3), self._gather(key, index, inside)
            scores = torch.einsum("bnqe,bqsne->bnqs", asked, keys)
            scores = scores + outer_sum(*axis_products(self.relative, asked, rows.shifts[part], columns.shifts))
            probs = F.dropout(to_probs(scores, self.normalizer), self.attention_dropout, self.training)
            values = self._gather(value, index, inside)
            averages.append(torch.einsum("bnqs,bqsne->bnqe", probs.to(values.dtype), values))
        return torch.cat(averages, dim=2)

    def _gather(self, projected: Tensor, index: Tensor, inside: Tensor) -> Tensor:
        """Return the positions (Q, S) of all windows, (B, Q, S, N, E); those outside of the map are 0."""
        # index_select, because the backward pass of [:, index] takes twenty times as long on a CPU.
        windows = projected.flatten(1, 2).index_select(1, index.flatten()).unflatten(1, index.shape)
        return (windows * inside[..., None].to(projected.dtype)).unflatten(-1, (self.heads, -1))

    def _axis_windows(self, size: int, device: torch.device) -> AxisWindows:
        half = self.kernel_size // 2
        shifts = (torch.arange(self.kernel_size, device=device) - half).expand(size, -1)
        places = torch.arange(size, device=device)
        if self.border == "shift":
            first = (places - half).clamp(0, size - self.kernel_size)
            shifts = shifts + (first + half - places)[:, None]
        positions = places[:, None] + shifts
        return AxisWindows(positions.clamp(0, size - 1), (positions >= 0) & (positions < size), shifts)

    def _queries(self, x: Tensor) -> Tensor:
        """Return queries (B, N, Q, E), divided by sqrt(E)."""
        query = self._split(self.query(x))
        return query / math.sqrt(query.shape[-1])

    def _split(self, projected: Tensor) -> Tensor:
        """Split the heads: (B, H, W, D) -> (B, N, Q, E)."""
        return projected.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
