"""MLP-Mixer's token mixing (Tolstikhin et al. 2021, arXiv 2105.01601): no sharing between places at all.

A two-layer perceptron over the positions of the map, the same for every channel. Every pair of places has weights of
its own, so nothing makes a shifted map give a shifted output.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.shifts import check_map


class TokenMlp(nn.Module):
    """A perceptron over positions, (B, H, W, D) -> (B, H, W, D). `heads` has no meaning here.

    Args:
        width, heads, grid: as every mixer; grid fixes the size of the maps.
        hidden: units between its two layers.
        attention_dropout: ignored.

    Raises:
        ValueError: hidden is below 1, or a map of another size than `grid`.
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
