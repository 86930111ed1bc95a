"""Convolution in place of attention: the matched control."""

from torch import Tensor, nn


class Convolution(nn.Module):
    """A K x K convolution, zero-padded to keep the map, (B, H, W, D) -> (B, H, W, D).

    With K = 3, it has exactly the weights of the value projection of nine heads: it is attention whose heads have fixed
    positions. `heads` and `grid` are part of the mixer contract and are ignored here.

    Raises:
        ValueError: kernel_size is even, below 1, or larger than any shift within the map needs.
    """

    def __init__(
        self, width: int, heads: int, grid: tuple[int, int], kernel_size: int = 3, attention_dropout: float = 0.0
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, not {kernel_size}")
        if kernel_size > 2 * max(grid) - 1:
            largest = 2 * max(grid) - 1
            raise ValueError(f"kernel_size={kernel_size} must be at most {largest} on {grid[0]}x{grid[1]} positions")
        self.convolution = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch calls a permuted channels-last map channels_last, so neither direction copies.
        return self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
