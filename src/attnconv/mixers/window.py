"""Stand-alone self-attention in a K x K window (Ramachandran et al. 2019, arXiv 1906.05909).

Each head of D/N channels scores the K^2 pixels around its query, q.k + q.r with learned relative vectors, and averages
their values. At the border the window is, by name,

    zero    filled up with zeros, as in the paper: a pixel outside has key and value 0 and scores q.r;
    shift   moved inside the map, as in neighborhood attention (NAT): always K^2 real pixels.

There are two ways to compute it, with equal results:

    gathered   keys and values of every window side by side: cost linear in K^2, nothing of size Q x K;
    dense      every query against every pixel, masked: no gathering, faster where the window covers much of the map.

Axes: B batch, H W rows and columns, N heads, D width, E = D/N a head's channels, Q K query and key pixels, S = K^2 in a
window (K is the window's side there, as in the paper).

Differences from that paper: scores are divided by sqrt(E), and queries, keys and values have biases.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import AttentionMixer
from attnconv.mixers.normalizers import check_normalizer, to_probs
from attnconv.mixers.patterns import axis_window, both_axes, check_window
from attnconv.mixers.relative import LearnedRelativeVectors, axis_products, outer_sum
from attnconv.mixers.shifts import axis_shifts

IMPLEMENTATIONS = ("auto", "dense", "gathered")

# Up to this many times as many pixels as the window has, one product with all of them beats gathering the window's:
# LOG.md has the ratios, and `python scripts/bench_attention.py` measures them.
DENSE_UP_TO_WINDOWS = 8

CACHE_BYTES = 8 * 2**20  # of gathered keys, in float32


class AxisWindows(NamedTuple):
    """The window of every position of one axis: its part of all windows of the map."""

    positions: Tensor  # (size, K), in pixels, clamped into the axis
    inside: Tensor  # (size, K) bool: which were inside before that
    shifts: Tensor  # (size, K), in pixels, from the position to its window's


class WindowAttention(AttentionMixer):
    """Attention within K x K pixels, (B, H, W, D) -> (B, H, W, D).

    Args:
        width: D; each head has D/N channels of queries, keys and values.
        heads: N.
        grid: (H, W) of the maps to expect, in pixels.
        attention_dropout: probability of zeroing an attention probability while training.
        kernel_size: K, odd.
        border: "zero" or "shift".
        normalizer: what turns scores into probabilities (attnconv.mixers.normalizers).
        impl: "gathered", "dense", or "auto" for the one measured faster.

    Raises:
        ValueError: width is not divisible by heads, the window fits no map of this size, or an unknown name.
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
            raise ValueError(f"width={width} is not divisible by heads={heads}, which split it")
        if width // heads % 2:
            raise ValueError(
                f"width={width} over heads={heads} is odd: half of a head's channels are for rows, half for columns"
            )
        self.heads, self.kernel_size, self.border, self.impl = heads, kernel_size, border, impl
        self.attention_dropout, self.normalizer = attention_dropout, normalizer
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        # A shifted window reaches K - 1 pixels to one side, a centered one K // 2.
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
        """Probabilities without dropout, (B, N, Q, K), of the maps x (B, H, W, D).

        With border="zero" a row near the border sums to less than 1: the rest went to the zeros outside.

        Raises:
            ValueError: x is missing, or not of that size.
        """
        if x is None or x.shape[1:3] != (height, width):
            raise ValueError(f"content attention needs x of {height}x{width} pixels")
        check_window((height, width), self.kernel_size, self.border)
        return self._dense_probs(x)

    def _averages_dense(self, x: Tensor) -> Tensor:
        """Averaged values (B, N, Q, E), from every query against every pixel."""
        probs = F.dropout(self._dense_probs(x), self.attention_dropout, self.training)
        value = self._split(self.value(x))
        return probs.to(value.dtype) @ value

    def _dense_probs(self, x: Tensor) -> Tensor:
        """(B, N, Q, K), 0 outside the windows."""
        _, height, width, _ = x.shape
        query, key = self._queries(x), self._split(self.key(x))
        # Shifts beyond the window's reach have no vector; whatever they score is masked.
        shifts = (axis_shifts(size, x.device).clamp(-self.reach, self.reach) for size in (height, width))
        scores = query @ key.transpose(-1, -2) + outer_sum(*axis_products(self.relative, query, *shifts))
        allowed = both_axes(*(axis_window(n, self.kernel_size, self.border, x.device) for n in (height, width)))
        if self.border == "zero":
            # Pixels outside have key 0: what they score is q.r, and they take their share of the sum.
            rows, columns = (self._axis_windows(size, x.device) for size in (height, width))
            beyond = outer_sum(*axis_products(self.relative, query, rows.shifts, columns.shifts))
            scores = torch.cat([scores, beyond], dim=-1)
            allowed = torch.cat([allowed, ~both_axes(rows.inside, columns.inside)], dim=-1)
        return to_probs(scores, self.normalizer, allowed)[..., : height * width]

    def _averages_in_parts(self, x: Tensor) -> Tensor:
        """The same from gathered windows; on a CPU of so few images at a time that their windows stay in its cache."""
        images = self._share(len(x), x[0].numel(), x.device)
        return torch.cat([self._averages_gathered(part) for part in x.split(images)])

    def _share(self, count: int, numbers: int, device: torch.device) -> int:
        """Return how many of `count` items of `numbers` numbers each to gather windows for at once, at least 1."""
        if device.type != "cpu":
            return count
        return min(count, max(1, CACHE_BYTES // (4 * numbers * self.kernel_size**2)))

    def _averages_gathered(self, x: Tensor) -> Tensor:
        """The same from keys and values gathered for the windows of some rows at a time, (B, Q, S, N, E)."""
        _, height, width, _ = x.shape
        rows, columns = (self._axis_windows(size, x.device) for size in (height, width))
        query, key, value = self._queries(x).unflatten(2, (height, width)), self.key(x), self.value(x)
        averages = []
        step = self._share(height, len(x) * x[0, 0].numel(), x.device)
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
        """The pixels (Q, S) of every window, (B, Q, S, N, E); those outside the map are 0."""
        # index_select, not [:, index], whose backward pass on a CPU takes twenty times as long.
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
        """(B, N, Q, E), divided by sqrt(E)."""
        query = self._split(self.query(x))
        return query / math.sqrt(query.shape[-1])

    def _split(self, projected: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, N, Q, E)."""
        return projected.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
