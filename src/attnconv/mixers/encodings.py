"""Relative positional encodings: shifts in, scores out.

An encoding does not depend on images or values. It maps a shift (row, column), in positions, to one score per head;
softmax over the keys turns scores into attention probabilities. If the score is a row term plus a column term, the
encoding is an `AdditiveEncoding`: exp(r + c) = exp(r) exp(c), so the softmax factorizes exactly over rows and columns,
and the attention can be applied one axis at a time (`attnconv.mixers.positional`).

All encodings are built as `Encoding(heads, width, grid)`; a mixer passes no other argument.

Axes: N heads; ... any shape of shifts.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import check_covered, sinusoids


def exact_positions(device: torch.device) -> AbstractContextManager[None]:
    """Turn autocast off: rounding position scores of 16 and more to bf16 would blur the heads."""
    if device.type == "meta":  # models are only counted there, and autocast does not support it
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class Encoding(nn.Module):
    """Maps each shift to one score per head.

    Subclasses define `forward(shifts)`: shifts (..., 2), as (row, column) in positions, to scores (N, ...).
    """

    def check_map(self, height: int, width: int) -> None:
        """Raise ValueError if this encoding has no scores for the shifts of a height x width map."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of this module's own parameters that train without weight decay, at recipe.centers_lr."""
        return set()


class AdditiveEncoding(Encoding):
    """An encoding whose score is a row term plus a column term; subclasses define both terms."""

    def row_scores(self, shifts: Tensor) -> Tensor:
        """Return the row term: shifts (...) in positions -> scores (N, ...)."""
        raise NotImplementedError

    def column_scores(self, shifts: Tensor) -> Tensor:
        """Return the column term: shifts (...) in positions -> scores (N, ...)."""
        raise NotImplementedError

    def forward(self, shifts: Tensor) -> Tensor:
        return self.row_scores(shifts[..., 0]) + self.column_scores(shifts[..., 1])


class QuadraticEncoding(AdditiveEncoding):
    """Isotropic Gaussian heads: score = -spread^2 / 2 * |shift - center|^2 (paper, Lemma 2, with alpha = spread^2 / 2).

    Lemma 2 drops the constant |center|^2, which cancels in the softmax. Here it is kept, so that the largest score is 0
    and nothing overflows. `spread` is an inverse standard deviation in 1/positions; its sign has no effect.

    Parameters: centers (N, 2) in positions, spreads (N,) in 1/positions.
    """

    def __init__(
        self, heads: int, width: int, grid: tuple[int, int], center_std: float = 2.0, spread_std: float = 0.01
    ):
        super().__init__()
        self.center_std, self.spread_std = center_std, spread_std
        self.centers = nn.Parameter(torch.empty(heads, 2))
        self.spreads = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Reference: centers ~ N(0, 2^2) and spreads ~ 1 + N(0, 0.01^2), so that the initial alpha is about 0.5.
        nn.init.normal_(self.centers, std=self.center_std)
        nn.init.normal_(self.spreads, mean=1.0, std=self.spread_std)

    def no_weight_decay(self) -> set[str]:
        # Reference: neither decays. Our reason: decay would pull heads to the query position and to flat maps.
        return {"centers", "spreads"}

    def _axis_scores(self, shifts: Tensor, axis: int) -> Tensor:
        trailing = (1,) * shifts.dim()
        center = self.centers[:, axis].view(-1, *trailing)
        precision = self.spreads.square().view(-1, *trailing)
        return -0.5 * precision * (shifts - center).square()

    def row_scores(self, shifts: Tensor) -> Tensor:
        return self._axis_scores(shifts, 0)

    def column_scores(self, shifts: Tensor) -> Tensor:
        return self._axis_scores(shifts, 1)


class GeneralizedQuadraticEncoding(Encoding):
    """Gaussian heads with any covariance: score = -1/2 (shift - center)^T S S^T (shift - center), S = spreads.

    Not additive: the term row * column of a tilted Gaussian is neither a row term nor a column term.

    Parameters: centers (N, 2) in positions, spreads (N, 2, 2) = S in 1/positions, with inverse covariance S S^T.
    """

    def __init__(
        self, heads: int, width: int, grid: tuple[int, int], center_std: float = 2.0, spread_std: float = 0.01
    ):
        super().__init__()
        self.center_std, self.spread_std = center_std, spread_std
        self.centers = nn.Parameter(torch.empty(heads, 2))
        self.spreads = nn.Parameter(torch.empty(heads, 2, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Reference: S = I + N(0, 0.01^2) elementwise.
        nn.init.normal_(self.centers, std=self.center_std)
        nn.init.normal_(self.spreads, std=self.spread_std)
        with torch.no_grad():
            self.spreads.diagonal(dim1=1, dim2=2).add_(1.0)

    def no_weight_decay(self) -> set[str]:
        return {"centers", "spreads"}

    def forward(self, shifts: Tensor) -> Tensor:
        offsets = shifts - self.centers.view(-1, *(1,) * (shifts.dim() - 1), 2)
        whitened = torch.einsum("n...i,nij->n...j", offsets, self.spreads)
        return -0.5 * whitened.square().sum(-1)


class LearnedEncoding(AdditiveEncoding):
    """A learned table of row embeddings and one of column embeddings, each projected to a score per head.

    The paper's "learned" encoding without content (Table 1, row 3). Tables cover shifts up to grid - 1; a larger map
    raises an error, because its shifts were never learned.

    Parameters: row_embeddings (2H-1, D), column_embeddings (2W-1, D), and two projections D -> N without bias.
    """

    def __init__(self, heads: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.row_embeddings = nn.Embedding(2 * grid[0] - 1, width)
        self.column_embeddings = nn.Embedding(2 * grid[1] - 1, width)
        self.row_projection = nn.Linear(width, heads, bias=False)
        self.column_projection = nn.Linear(width, heads, bias=False)

    def check_map(self, height: int, width: int) -> None:
        check_covered(self.grid, height, width)

    def row_scores(self, shifts: Tensor) -> Tensor:
        return _look_up(self.row_projection(self.row_embeddings.weight), shifts)

    def column_scores(self, shifts: Tensor) -> Tensor:
        return _look_up(self.column_projection(self.column_embeddings.weight), shifts)


def _look_up(table: Tensor, shifts: Tensor) -> Tensor:
    """Return the scores (N, ...) of shifts (...), from a table (2L-1, N) over the shifts -(L-1)..L-1."""
    reach = table.shape[0] // 2
    return F.embedding(shifts.long() + reach, table).movedim(-1, 0)


class SinusoidalEncoding(AdditiveEncoding):
    """Fixed sinusoids of the row shift and of the column shift, with learned weights per head.

    This is the learned encoding with its tables replaced by Transformer sinusoids (Vaswani et al. 2017, section 3.5) of
    the signed shift: D/2 sines and D/2 cosines with wavelengths from 2 pi to `base` * 2 pi positions. It answers a
    reviewer's question about fixed relative encodings (B. Duke, ml-reading-notes).

    Parameters: two projections D -> N without bias.

    Raises:
        ValueError: width is odd.
    """

    def __init__(self, heads: int, width: int, grid: tuple[int, int], base: float = 10_000.0):
        super().__init__()
        if width % 2:
            raise ValueError(f"sinusoidal features come in sine and cosine pairs: width must be even, not {width}")
        self.base = base
        self.row_projection = nn.Linear(width, heads, bias=False)
        self.column_projection = nn.Linear(width, heads, bias=False)

    def _features(self, shifts: Tensor) -> Tensor:
        return sinusoids(shifts, self.row_projection.weight, self.base)

    def row_scores(self, shifts: Tensor) -> Tensor:
        return self.row_projection(self._features(shifts)).movedim(-1, 0)

    def column_scores(self, shifts: Tensor) -> Tensor:
        return self.column_projection(self._features(shifts)).movedim(-1, 0)
