"""Convolution without weight sharing, and also without locality: separates the two assumptions of a convolution.

    LocallyConnected   each output position has its own K x K kernel: local, but not shared;
    FullyConnected     each output position has its own weights for all input positions: neither local nor shared.

Axes: B batch, H W rows and columns, D width, Q = H*W positions, K side of the kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import check_map
from attnconv.mixers.patterns import check_window


class LocallyConnected(nn.Module):
    """A K x K zero-padded convolution with a separate kernel at each position, (B, H, W, D) -> (B, H, W, D).

    `weight` is (Q, D_in * K^2, D_out), its middle axis as `torch.nn.functional.unfold` orders it: channel, row, column.
    `heads` is ignored. It has H*W times the weights of the convolution, so use it on small maps only.

    Raises:
        ValueError: kernel_size is even, below 1 or larger than the map, or the map is not of size `grid`.
    """

    def __init__(
        self, width: int, heads: int, grid: tuple[int, int], kernel_size: int = 3, attention_dropout: float = 0.0
    ):
        super().__init__()
        check_window(grid, kernel_size, "zero")
        self.grid, self.kernel_size = grid, kernel_size
        inputs, positions = width * kernel_size**2, grid[0] * grid[1]
        bound = inputs**-0.5  # PyTorch's default for a convolution
        self.weight = nn.Parameter(torch.empty(positions, inputs, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(positions, width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.grid)
        patches = F.unfold(x.permute(0, 3, 1, 2), self.kernel_size, padding=self.kernel_size // 2)
        out = torch.bmm(patches.permute(2, 0, 1), self.weight.to(patches.dtype))  # (Q, B, D)
        return (out.transpose(0, 1) + self.bias.to(out.dtype)).reshape(x.shape)


class FullyConnected(nn.Module):
    """One linear function of the whole map, (B, H, W, D) -> (B, H, W, D), with (H*W*D)^2 weights: small maps only.

    Raises:
        ValueError: the map is not of size `grid`.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], attention_dropout: float = 0.0):
        super().__init__()
        self.grid = grid
        size = grid[0] * grid[1] * width
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.grid)
        return self.linear(x.flatten(1)).reshape(x.shape)
