"""Relative vectors: queries are compared with them to attend to positions instead of content.

The relative vector r(shift) is the vector of the row shift followed by that of the column shift, D/2 channels each, as
in the authors' code. So q . r is a row term plus a column term for each query. All are built as `Relative(width,
grid)`.

Axes: B batch, H W rows and columns, N heads, D width, Q query positions; S T numbers of row and column shifts; ... any
shape of shifts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import check_covered, sinusoids


class RelativeVectors(nn.Module):
    """Vectors of row and column shifts; subclasses define the two."""

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        if width % 2:
            raise ValueError(f"a relative vector is half for rows, half for columns: width must be even, not {width}")
        self.width, self.grid = width, grid

    def check_map(self, height: int, width: int) -> None:
        """Raise ValueError if the vectors do not cover the shifts of a height x width map."""

    def row_vectors(self, shifts: Tensor) -> Tensor:
        """Map row shifts (...) in positions to vectors (..., D/2)."""
        raise NotImplementedError

    def column_vectors(self, shifts: Tensor) -> Tensor:
        """Map column shifts (...) in positions to vectors (..., D/2)."""
        raise NotImplementedError


def axis_products(
    relative: RelativeVectors, queries: Tensor, row_shifts: Tensor, column_shifts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the two terms of queries . r: with the row vectors and with the column vectors.

    Args:
        relative: r, of width D.
        queries: (B, N, Q, D), row-major over H x W.
        row_shifts: (H, S), for each row of queries.
        column_shifts: (W, T), for each column of queries.

    Returns:
        (B, N, Q, S) and (B, N, Q, T); their outer sum is the score of all S x T shifts.
    """
    # (B, N, H, W, D): the row of a query determines its row shifts, and the column its column shifts.
    placed = queries.unflatten(2, (len(row_shifts), len(column_shifts)))
    by_row, by_column = placed.split(relative.width // 2, dim=-1)
    rows = torch.einsum("bnijd,ikd->bnijk", by_row, relative.row_vectors(row_shifts))
    columns = torch.einsum("bnijd,jkd->bnijk", by_column, relative.column_vectors(column_shifts))
    return rows.flatten(2, 3), columns.flatten(2, 3)


def outer_sum(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the sums of all pairs: (..., S) and (..., T) -> (..., S*T), row-major."""
    return (rows[..., :, None] + columns[..., None, :]).flatten(-2)


class LearnedRelativeVectors(RelativeVectors):
    """A table of row vectors and one of column vectors, N(0, 1), shared by the heads of a layer."""

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__(width, grid)
        self.row_embeddings = nn.Embedding(2 * grid[0] - 1, width // 2)
        self.column_embeddings = nn.Embedding(2 * grid[1] - 1, width // 2)

    def check_map(self, height: int, width: int) -> None:
        check_covered(self.grid, height, width)

    def row_vectors(self, shifts: Tensor) -> Tensor:
        return F.embedding(shifts + self.grid[0] - 1, self.row_embeddings.weight)

    def column_vectors(self, shifts: Tensor) -> Tensor:
        return F.embedding(shifts + self.grid[1] - 1, self.column_embeddings.weight)


class SinusoidalRelativeVectors(RelativeVectors):
    """Fixed sinusoids of the signed shift under a learned projection per axis, as in Transformer-XL (W_key,r).

    The sines and cosines have wavelengths from 2 pi to `base` * 2 pi positions (Vaswani et al. 2017, section 3.5). Here
    all heads share one W_key,r per axis; Transformer-XL has one per head.
    """

    def __init__(self, width: int, grid: tuple[int, int], base: float = 10_000.0):
        super().__init__(width, grid)
        self.base = base
        self.row_projection = nn.Linear(2 * (width // 4), width // 2, bias=False)
        self.column_projection = nn.Linear(2 * (width // 4), width // 2, bias=False)

    def row_vectors(self, shifts: Tensor) -> Tensor:
        return self.row_projection(sinusoids(shifts, self.row_projection.weight, self.base))

    def column_vectors(self, shifts: Tensor) -> Tensor:
        return self.column_projection(sinusoids(shifts, self.column_projection.weight, self.base))
