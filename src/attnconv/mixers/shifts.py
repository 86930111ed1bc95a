"""Shifts between pixels: the only input of a relative encoding.

A shift is `key - query`, rows before columns (paper, section 2.3: delta = k - q).
"""

import torch
from torch import Tensor


def axis_shifts(size: int, device: torch.device | None = None) -> Tensor:
    """Return the shifts along one axis: (size queries, size keys), int64, in pixels."""
    positions = torch.arange(size, device=device)
    return positions[None, :] - positions[:, None]


def grid_shifts(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the shifts between all pixels of a map, row-major: (H*W queries, H*W keys, 2), int64, in pixels."""
    rows, columns = axis_shifts(height, device), axis_shifts(width, device)
    shape = (height, width, height, width)
    pairs = torch.stack([rows[:, None, :, None].expand(shape), columns[None, :, None, :].expand(shape)], dim=-1)
    return pairs.reshape(height * width, height * width, 2)


def sinusoids(shifts: Tensor, like: Tensor, base: float) -> Tensor:
    """Return the sines, then the cosines, of shifts (...): (..., F), where F is the last size of `like`, in its type.

    The wavelengths run from 2 pi to `base` * 2 pi pixels.
    """
    features = like.shape[-1]
    exponents = torch.arange(0, features, 2, dtype=like.dtype, device=shifts.device) / features
    angles = shifts[..., None] * base**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def check_covered(grid: tuple[int, int], height: int, width: int) -> None:
    """Raise ValueError for a map that is larger than `grid`, for which tables were made."""
    if height > grid[0] or width > grid[1]:
        raise ValueError(f"the learned tables cover maps up to {grid[0]}x{grid[1]}, this one is {height}x{width}")


def check_map(x: Tensor, grid: tuple[int, int]) -> None:
    """Raise ValueError for maps (B, H, W, D) of another size than `grid`."""
    if x.shape[1:3] != grid:
        raise ValueError(
            f"its weights fit maps of {grid[0]}x{grid[1]} pixels only, this one is {x.shape[1]}x{x.shape[2]}"
        )
