"""Sparse attention patterns: boolean masks that say which key positions each query position sees.

Window, random and global are the three patterns of BigBird (Zaheer et al. 2020, arXiv 2007.14062) on a 2-D map;
`bigbird` is their union. Here they act on single positions, not on blocks of a sequence. In all patterns, each position
sees itself, so no row is empty. A pattern is built as `pattern(grid=, heads=)`. As in BigBird's own code, each head has
its own random positions; unlike there, they are the same in all layers.

Axes: H W rows and columns, N heads, Q K query and key positions (row-major over H x W).
"""

import numpy as np
import torch
from torch import Tensor

from attnconv.errors import require_memory
from attnconv.mixers.base import axis_shifts

BORDERS = ("shift", "zero")

BYTES_DRAWN = 17  # per query and key while a pattern is drawn: a float64, an int64 and a bool

CPU = torch.device("cpu")  # patterns are built on the CPU, and moved by their users


def window(grid: tuple[int, int], kernel_size: int, border: str = "shift", heads: int = 1) -> Tensor:
    """Return the K x K positions around each query, (1, Q, K) bool: the same for all heads.

    Args:
        grid: (H, W).
        kernel_size: K, odd.
        border: "shift" moves the window inside the map, so that it always has K^2 positions; "zero" truncates it.

    Raises:
        ValueError: K is even, below 1 or larger than the map, or the border is unknown.
    """
    check_window(grid, kernel_size, border)
    return both_axes(*(axis_window(size, kernel_size, border) for size in grid))[None]


def both_axes(rows: Tensor, columns: Tensor) -> Tensor:
    """Combine conditions on rows, (H, S), and on columns, (W, T), to (H*W, S*T) bool, row-major."""
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(len(rows) * len(columns), -1)


def check_window(grid: tuple[int, int], kernel_size: int, border: str) -> None:
    """Raise ValueError for a window that does not fit into the map."""
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, not {border!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 1, not {kernel_size}")
    if kernel_size > max(grid) or (border == "shift" and kernel_size > min(grid)):
        raise ValueError(f"kernel_size={kernel_size} is larger than the map of {grid[0]}x{grid[1]} positions")


def axis_window(size: int, kernel_size: int, border: str, device: torch.device = CPU) -> Tensor:
    """Return which positions of an axis each position sees, (size, size) bool."""
    if border == "zero":
        return axis_shifts(size, device).abs() <= kernel_size // 2
    positions = torch.arange(size, device=device)
    first = (positions - kernel_size // 2).clamp(0, size - kernel_size)[:, None]
    return (positions >= first) & (positions < first + kernel_size)


def random(grid: tuple[int, int], density: float, seed: int = 0, heads: int = 1) -> Tensor:
    """Return a mask where each query sees itself and random positions, `density` of the map in all, (N, Q, K) bool.

    Raises:
        ValueError: density is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, not {density}")
    positions = grid[0] * grid[1]
    count = max(1, round(density * positions))
    pairs = f"random patterns of {heads} heads on {grid[0]}x{grid[1]} positions"
    require_memory(BYTES_DRAWN * heads * positions**2, pairs, f"heads (now {heads}), or raise the patch")
    draws = np.stack([np.random.default_rng([seed, head]).random((positions, positions)) for head in range(heads)])
    draws[:, np.arange(positions), np.arange(positions)] = -1  # rank each position itself first
    chosen = np.argsort(draws, axis=-1)[..., :count]
    mask = torch.zeros(heads, positions, positions, dtype=torch.bool, device=CPU)
    return mask.scatter_(-1, torch.from_numpy(chosen.copy()), True)


def global_tokens(grid: tuple[int, int], count: int, heads: int = 1) -> Tensor:
    """Return a mask where `count` positions, spread over the map, see all others and are seen by them, (1, Q, K) bool.

    Raises:
        ValueError: count is below 1 or above the number of positions.
    """
    positions = grid[0] * grid[1]
    if not 1 <= count <= positions:
        raise ValueError(f"count of global positions must be in 1..{positions}, the positions of the map, not {count}")
    chosen = spread_positions(grid, count)
    mask = torch.eye(positions, dtype=torch.bool, device=CPU)
    mask[chosen, :] = True
    mask[:, chosen] = True
    return mask[None]


def spread_positions(grid: tuple[int, int], count: int) -> list[int]:
    """Return row-major indices of `count` distant positions: farthest-point sampling from the center of the map."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    chosen = [grid[0] // 2 * grid[1] + grid[1] // 2]
    distance = np.full(len(rows), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        distance = np.minimum(distance, (rows - rows[last]) ** 2 + (columns - columns[last]) ** 2)
        chosen.append(int(distance.argmax()))
    return chosen


def bigbird(
    grid: tuple[int, int],
    kernel_size: int,
    density: float,
    count: int,
    seed: int = 0,
    border: str = "zero",
    heads: int = 1,
) -> Tensor:
    """Return the union of `window`, `random` and `global_tokens`, (N, Q, K) bool."""
    return window(grid, kernel_size, border) | random(grid, density, seed, heads) | global_tokens(grid, count)
