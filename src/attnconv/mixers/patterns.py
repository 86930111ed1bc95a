"""Who may see whom: boolean masks over query and key pixels.

Window, random and global are BigBird's three patterns (Zaheer et al. 2020, arXiv 2007.14062) on a 2-D map; `bigbird` is
their union. Here they act on single pixels, not on blocks of a sequence. Every pixel sees itself in every pattern, so
that no row is empty. A pattern is built as `pattern(grid=, heads=)`. As in BigBird's own code every head has its random
pixels; unlike there, they are the same in every layer.

Axes: H W rows and columns, N heads, Q K query and key pixels (row-major over H x W).
"""

import numpy as np
import torch
from torch import Tensor

from attnconv.mixers.shifts import axis_shifts
from attnconv.training.memory import require_memory

BORDERS = ("shift", "zero")

BYTES_DRAWN = 17  # of a query and a key while their pattern is drawn: a float64, an int64 and a bool

CPU = torch.device("cpu")  # where patterns are made; whoever uses one moves it


def window(grid: tuple[int, int], kernel_size: int, border: str = "shift", heads: int = 1) -> Tensor:
    """The K x K pixels around each query, (1, Q, K) bool: the same for all heads.

    Args:
        grid: (H, W).
        kernel_size: K, odd.
        border: "shift" moves the window inside the map, so that it always has K^2 pixels; "zero" cuts it off.

    Raises:
        ValueError: K is even, below 1 or larger than the map, or the border is unknown.
    """
    check_window(grid, kernel_size, border)
    return both_axes(*(axis_window(size, kernel_size, border) for size in grid))[None]


def both_axes(rows: Tensor, columns: Tensor) -> Tensor:
    """What holds in a pixel's row, (H, S), and in its column, (W, T): (H*W, S*T) bool, row-major."""
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(len(rows) * len(columns), -1)


def check_window(grid: tuple[int, int], kernel_size: int, border: str) -> None:
    """Raise ValueError for a window that fits no map of this size."""
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, not {border!r}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 1, not {kernel_size}")
    if kernel_size > max(grid) or (border == "shift" and kernel_size > min(grid)):
        raise ValueError(f"kernel_size={kernel_size} is larger than the map of {grid[0]}x{grid[1]} pixels")


def axis_window(size: int, kernel_size: int, border: str, device: torch.device = CPU) -> Tensor:
    """Which positions of one axis each position sees, (size, size) bool."""
    if border == "zero":
        return axis_shifts(size, device).abs() <= kernel_size // 2
    positions = torch.arange(size, device=device)
    first = (positions - kernel_size // 2).clamp(0, size - kernel_size)[:, None]
    return (positions >= first) & (positions < first + kernel_size)


def random(grid: tuple[int, int], density: float, seed: int = 0, heads: int = 1) -> Tensor:
    """Each query of each head sees itself and random others, `density` of the map in all, (N, Q, K) bool.

    Raises:
        ValueError: density is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, not {density}")
    pixels = grid[0] * grid[1]
    count = max(1, round(density * pixels))
    pairs = f"random patterns of {heads} heads on {grid[0]}x{grid[1]} positions"
    require_memory(BYTES_DRAWN * heads * pixels**2, pairs, f"heads={heads}, or raise the patch")
    draws = np.stack([np.random.default_rng([seed, head]).random((pixels, pixels)) for head in range(heads)])
    draws[:, np.arange(pixels), np.arange(pixels)] = -1  # itself before all others
    chosen = np.argsort(draws, axis=-1)[..., :count]
    mask = torch.zeros(heads, pixels, pixels, dtype=torch.bool, device=CPU)
    return mask.scatter_(-1, torch.from_numpy(chosen.copy()), True)


def global_tokens(grid: tuple[int, int], count: int, heads: int = 1) -> Tensor:
    """`count` pixels, spread over the map, see all and are seen by all; everyone sees itself, (1, Q, K) bool.

    Raises:
        ValueError: count is below 1 or above the number of pixels.
    """
    pixels = grid[0] * grid[1]
    if not 1 <= count <= pixels:
        raise ValueError(f"count of global pixels must be in 1..{pixels}, the pixels of the map, not {count}")
    chosen = spread_pixels(grid, count)
    mask = torch.eye(pixels, dtype=torch.bool, device=CPU)
    mask[chosen, :] = True
    mask[:, chosen] = True
    return mask[None]


def spread_pixels(grid: tuple[int, int], count: int) -> list[int]:
    """Row-major indices of `count` pixels far from each other: farthest-point sampling from the center of the map."""
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
    """The union of `window`, `random` and `global_tokens`, (N, Q, K) bool."""
    return window(grid, kernel_size, border) | random(grid, density, seed, heads) | global_tokens(grid, count)
