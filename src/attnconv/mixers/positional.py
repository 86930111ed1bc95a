"""Attention whose probabilities depend on position only: the paper's quadratic, learned and sinusoidal layers.

Each head averages the whole D-vectors of the positions with its probabilities. The N averages are concatenated and
projected back, N*D -> D; for N = 9 these are exactly as many weights as in a 3 x 3 convolution. The paper has a value
matrix per head and an output matrix; its code, and ours, only has their product.

The probabilities are the same for all images, so they are computed once per step. There are two ways to apply them,
with equal results; both process a few images at a time on a CPU (attnconv.mixers.blocked):

    dense      A (N, Q, K) times x: cost Q*K per channel and head.
    separable  A_rows (N, H, H), then A_columns (N, W, W): cost H*W*(H+W). Exact for an additive encoding, whose softmax
               factorizes over rows and columns, but not with dropout on A.

Axes: B batch, H W rows and columns, N heads, D width, Q K query and key positions (row-major over H x W).
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import AttentionMixer, axis_shifts, check_normalizer, grid_shifts, to_probs
from attnconv.mixers.blocked import average_and_project
from attnconv.mixers.encodings import AdditiveEncoding, Encoding, exact_positions

IMPLEMENTATIONS = ("auto", "dense", "separable")

# From this many positions on, two small products are faster than one large one on a CPU. LOG.md has the ratios, and
# `python scripts/bench_attention.py` measures them. They have not been measured on a GPU.
SEPARABLE_FROM_POSITIONS = 12 * 12


class PositionalAttention(AttentionMixer):
    """Multi-head attention with input-independent probabilities, (B, H, W, D) -> (B, H, W, D).

    Args:
        width: D, channels of the map.
        heads: N.
        grid: (H, W) of the maps to expect, in positions; encodings with tables are sized by it.
        encoding: builds the encoding, called as `encoding(heads=, width=, grid=)`.
        attention_dropout: probability of zeroing an attention probability while training.
        impl: "dense", "separable", or "auto" for the fastest exact one, as measured.
        normalizer: turns scores into probabilities (attnconv.mixers.base).

    Raises:
        ValueError: impl or normalizer is unknown, or `separable` is not exact.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        encoding: Callable[..., Encoding],
        attention_dropout: float = 0.0,
        impl: str = "auto",
        normalizer: str = "softmax",
    ):
        super().__init__()
        check_normalizer(normalizer)
        self.normalizer = normalizer
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.encoding = encoding(heads=heads, width=width, grid=grid)
        self.impl = choose_impl(impl, self.encoding, attention_dropout, grid, normalizer)
        self.value: nn.Module = nn.Linear(heads * width, width)

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities without dropout, (1, N, Q, K). Rows sum to 1. They are the same for all images x."""
        return self._whole_probs(height, width, self._device() if x is None else x.device)[None]

    def axis_probs(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the row and column factors, (N, H, H) and (N, W, W), of an additive encoding's softmax."""
        return self._factors(height, width, self._device())

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        dropout = self.attention_dropout if self.training else 0.0
        # Code may have changed the layer since `impl` was chosen.
        if self.impl == "separable" and not _obstacle(self.encoding, dropout, self.normalizer):
            return average_and_project(self._factors(height, width, x.device), x, self.value)
        # Reference, at 9ffaa30: probabilities have no batch axis, so all images of the batch share one dropout mask.
        probs = F.dropout(self._dense_probs(height, width, x.device), self.attention_dropout, self.training)
        return average_and_project((probs,), x, self.value)

    def _device(self) -> torch.device:
        # An encoding may have no parameters, and as a part of a gate the layer has no projection. `forward` takes the
        # device of its input, because replicas of nn.DataParallel list no parameters.
        return next(itertools.chain(self.parameters(), self.buffers())).device

    def _axis_scores(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the row and column terms, (N, H, H) and (N, W, W), of an additive encoding."""
        assert isinstance(self.encoding, AdditiveEncoding)
        rows, columns = axis_shifts(height, device), axis_shifts(width, device)
        return self.encoding.row_scores(rows), self.encoding.column_scores(columns)

    def _factors(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        self.encoding.check_map(height, width)
        with exact_positions(device):
            rows, columns = self._axis_scores(height, width, device)
            return rows.softmax(dim=-1), columns.softmax(dim=-1)

    def _whole_probs(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return probabilities without dropout, (N, Q, K)."""
        self.encoding.check_map(height, width)
        with exact_positions(device):
            if isinstance(self.encoding, AdditiveEncoding):
                rows, columns = self._axis_scores(height, width, device)
                scores = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
            else:
                scores = self.encoding(grid_shifts(height, width, device))
            return to_probs(scores, self.normalizer)

    def _dense_probs(self, height: int, width: int, device: torch.device) -> Tensor:
        if not isinstance(self.encoding, AdditiveEncoding) or self.normalizer != "softmax":
            return self._whole_probs(height, width, device)
        # The outer product of the factors is the same softmax, without exponentials of all Q*K shifts.
        rows, columns = self._factors(height, width, device)
        return torch.einsum("nij,nkl->nikjl", rows, columns).flatten(3).flatten(1, 2)


def choose_impl(
    impl: str, encoding: Encoding, attention_dropout: float, grid: tuple[int, int], normalizer: str = "softmax"
) -> str:
    """Resolve `auto`, and raise ValueError if `separable` would not be exact."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, not {impl!r}")
    obstacle = _obstacle(encoding, attention_dropout, normalizer)
    if impl == "separable" and obstacle:
        raise ValueError(f"impl={impl} is not exact here: {obstacle}; use impl=auto")
    if impl == "auto":
        large = grid[0] * grid[1] >= SEPARABLE_FROM_POSITIONS
        return "separable" if large and not obstacle else "dense"
    return impl


def _obstacle(encoding: Encoding, attention_dropout: float, normalizer: str) -> str | None:
    """Return why factored probabilities would not be exact, or None."""
    if not isinstance(encoding, AdditiveEncoding):
        return f"{type(encoding).__name__} is not a row term plus a column term"
    if normalizer != "softmax":
        return f"normalizer={normalizer} does not factorize over rows and columns"
    if attention_dropout > 0:
        return f"attention_dropout={attention_dropout} acts on whole probabilities, not on their factors"
    return None
