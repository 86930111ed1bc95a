"""MLP-Mixer's token mixing (Tolstikhin et al. 2021, arXiv 2105.01601), without weight sharing between positions.

A two-layer perceptron over the positions of the map, the same for all channels. Each position has its own weights, so a
shifted map does not give a shifted output.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import check_map


class TokenMlp(nn.Module):
    """A perceptron over positions, (B, H, W, D) -> (B, H, W, D). `heads` is ignored.

    Args:
        width, heads, grid: as for all mixers; grid fixes the size of the maps.
        hidden: number of hidden units.
        attention_dropout: ignored.

    Raises:
        ValueError: hidden is below 1, or the map is not of size `grid`.
    """

    def __init__(
        self, width: int, heads: int, grid: tuple[int, int], hidden: int = 256, attention_dropout: float = 0.0
    ):
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, not {hidden}")
        self.grid = grid
        self.expand = nn.Linear(grid[0] * grid[1], hidden)
        self.contract = nn.Linear(hidden, grid[0] * grid[1])

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.grid)
        over_positions = x.flatten(1, 2).transpose(1, 2)
        mixed = self.contract(F.gelu(self.expand(over_positions)))
        return mixed.transpose(1, 2).reshape(x.shape)
