"""Position scores from a small network on the shift, in place of a table, as a review of the paper suggested (B. Duke).

The network takes log-spaced shifts: the continuous relative position bias of Swin Transformer V2 (Liu et al. 2022,
arXiv 2111.09883, section 3.3), with GELU in place of ReLU and without its bound on the bias.

Entries of a table are independent: what it learns at a shift of 14 does not affect 15. A smooth function generalizes.
There are two kinds: `axes`, a function of the row shift plus one of the column shift, and `radial`, a function of the
Euclidean distance alone.

Axes: N heads; ... any shape of shifts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.encodings import AdditiveEncoding, Encoding

KINDS = ("axes", "radial")


class AxisDistanceEncoding(AdditiveEncoding):
    """A function of the signed row shift plus a function of the signed column shift."""

    def __init__(self, heads: int, width: int, grid: tuple[int, int], hidden: int = 32):
        super().__init__()
        self.row_function = ScoreFunction(heads, hidden)
        self.column_function = ScoreFunction(heads, hidden)

    def row_scores(self, shifts: Tensor) -> Tensor:
        return self.row_function(shifts)

    def column_scores(self, shifts: Tensor) -> Tensor:
        return self.column_function(shifts)


class RadialDistanceEncoding(Encoding):
    """A function of the Euclidean length of the shift: each head attends to rings around the query."""

    def __init__(self, heads: int, width: int, grid: tuple[int, int], hidden: int = 32):
        super().__init__()
        self.function = ScoreFunction(heads, hidden)

    def forward(self, shifts: Tensor) -> Tensor:
        return self.function(shifts.to(self.function.expand.weight.dtype).square().sum(-1).sqrt())


def distance_encoding(heads: int, width: int, grid: tuple[int, int], kind: str = "axes", hidden: int = 32) -> Encoding:
    """Return the encoding named `kind`, with `hidden` units in each function.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    encoding = AxisDistanceEncoding if kind == "axes" else RadialDistanceEncoding
    return encoding(heads, width, grid, hidden)


class ScoreFunction(nn.Module):
    """Map distances (...) in positions to scores (N, ...) by a small network.

    Its input is sign(d) log(1 + |d|), which resolves small distances better than large ones.
    """

    def __init__(self, heads: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(1, hidden)
        self.contract = nn.Linear(hidden, heads, bias=False)

    def forward(self, distances: Tensor) -> Tensor:
        distances = distances.to(self.expand.weight.dtype)
        compressed = distances.sign() * torch.log1p(distances.abs())
        return self.contract(F.gelu(self.expand(compressed[..., None]))).movedim(-1, 0)
