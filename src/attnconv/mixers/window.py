"""Stand-alone self-attention in a K x K window (Ramachandran et al. 2019, arXiv 1906.05909), at a cost linear in K^2.

Each head of D/N channels scores the K^2 pixels around its query, q.k + q.r with learned relative vectors, and averages
their values. Keys and values are gathered per window, so that nothing of size Q x K is ever written.

At the border the window is, by name,

    zero    filled up with zeros, as in the paper: a pixel outside has key and value 0 and scores q.r;
    shift   moved inside the map, as in neighbourhood attention (NAT): always K^2 real pixels.

Axes: B batch, H W rows and columns, N heads, D width, E = D/N a head's channels, Q query pixels, S = K^2 in a window.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.normalizers import check_normalizer, to_probs
from attnconv.mixers.patterns import check_window
from attnconv.mixers.relative import LearnedRelativeVectors


class WindowAttention(nn.Module):
    """Attention within K x K pixels, (B, H, W, D) -> (B, H, W, D).

    Args:
        width: D; each head has D/N channels of queries, keys and values.
        heads: N.
        grid: (H, W) of the maps to expect, in pixels.
        attention_dropout: probability of zeroing an attention probability while training.
        kernel_size: K, odd.
        border: "zero" or "shift".
        normalizer: what turns scores into probabilities (attnconv.mixers.normalizers).

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
    ):
        super().__init__()
        check_normalizer(normalizer)
        check_window(grid, kernel_size, border)
        if width % heads:
            raise ValueError(f"width={width} is not divisible by heads={heads}, which split it")
        self.heads, self.kernel_size, self.border, self.grid = heads, kernel_size, border, grid
        self.attention_dropout, self.normalizer = attention_dropout, normalizer
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        # A shifted window reaches K - 1 pixels to one side, a centred one K // 2.
        reach = kernel_size if border == "shift" else kernel_size // 2 + 1
        self.relative = LearnedRelativeVectors(width // heads, (reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        index, inside, shifts = self._windows(height, width, x.device)
        probs = F.dropout(self._window_probs(x, index, inside, shifts), self.attention_dropout, self.training)
        values = self._gather(self.value(x), index, inside)
        return torch.einsum("bnqs,bqsne->bqne", probs.to(values.dtype), values).reshape(x.shape)

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Probabilities without dropout, (B, N, Q, K), of the maps x (B, H, W, D), scattered from the windows.

        With border="zero" a row near the border sums to less than 1: the rest went to the zeros outside.

        Raises:
            ValueError: x is missing, or not of that size.
        """
        if x is None or x.shape[1:3] != (height, width):
            raise ValueError(f"attention to content needs x of {height}x{width} pixels")
        index, inside, shifts = self._windows(height, width, x.device)
        probs = self._window_probs(x, index, inside, shifts) * inside
        dense = probs.new_zeros(*probs.shape[:3], height * width)
        return dense.scatter_add(-1, index.expand_as(probs), probs)

    def _window_probs(self, x: Tensor, index: Tensor, inside: Tensor, shifts: Tensor) -> Tensor:
        """(B, N, Q, S), of the windows that `_windows` gives."""
        query = self.query(x).flatten(1, 2).unflatten(-1, (self.heads, -1))
        query = query / math.sqrt(query.shape[-1])
        keys = self._gather(self.key(x), index, inside)
        vectors = torch.cat(
            [self.relative.row_vectors(shifts[..., 0]), self.relative.column_vectors(shifts[..., 1])], dim=-1
        )
        scores = torch.einsum("bqne,bqsne->bnqs", query, keys) + torch.einsum("bqne,qse->bnqs", query, vectors)
        return to_probs(scores, self.normalizer)

    def _gather(self, projected: Tensor, index: Tensor, inside: Tensor) -> Tensor:
        """The pixels of every window, (B, Q, S, N, E); those outside the map are 0."""
        # index_select, not [:, index], whose backward pass on a CPU takes twenty times as long.
        windows = projected.flatten(1, 2).index_select(1, index.flatten()).unflatten(1, index.shape)
        return (windows * inside[..., None].to(projected.dtype)).unflatten(-1, (self.heads, -1))

    def _windows(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Of every window: key pixels (Q, S), which of them are inside the map (Q, S), and shifts (Q, S, 2)."""
        check_window((height, width), self.kernel_size, self.border)
        rows, rows_inside = self._axis_windows(height, device)
        columns, columns_inside = self._axis_windows(width, device)
        index = rows[:, None, :, None] * width + columns[None, :, None, :]
        inside = rows_inside[:, None, :, None] & columns_inside[None, :, None, :]
        row_shifts = self._axis_shifts(height, device)[:, None, :, None].expand(inside.shape)
        column_shifts = self._axis_shifts(width, device)[None, :, None, :].expand(inside.shape)
        flat = height * width, self.kernel_size**2
        shifts = torch.stack([row_shifts, column_shifts], dim=-1).reshape(*flat, 2)
        return index.reshape(flat), inside.reshape(flat), shifts

    def _axis_shifts(self, size: int, device: torch.device) -> Tensor:
        """Shifts from each position of an axis to its window, (size, K)."""
        steps = torch.arange(self.kernel_size, device=device) - self.kernel_size // 2
        if self.border == "zero":
            return steps.expand(size, -1)
        positions = torch.arange(size, device=device)
        half = self.kernel_size // 2
        first = (positions - half).clamp(0, size - self.kernel_size)
        return first[:, None] + steps + half - positions[:, None]

    def _axis_windows(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions in each window, clamped into the axis, and which are truly inside, (size, K) each."""
        positions = torch.arange(size, device=device)[:, None] + self._axis_shifts(size, device)
        return positions.clamp(0, size - 1), (positions >= 0) & (positions < size)
