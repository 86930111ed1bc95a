"""Convolution in the place of attention: the matched control."""

from torch import Tensor, nn


class Convolution(nn.Module):
    """A K x K convolution, zero-padded to keep the map, (B, H, W, D) -> (B, H, W, D).

    With K = 3 it has exactly the weights of nine heads' value projection, and nothing else:
    what remains of attention when the heads may not choose where to look. `heads` and `grid` are part of the mixer
    contract and have no meaning here.

    Raises:
        ValueError: kernel_size is even, below 1, or reaches further than any two pixels of the map are apart.
    """

    def __init__(
        self, width: int, heads: int, grid: tuple[int, int], kernel_size: int = 3, attention_dropout: float = 0.0
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, not {kernel_size}")
        if kernel_size > 2 * max(grid) - 1:
            raise ValueError(f"kernel_size={kernel_size} is larger than the map of {grid[0]}x{grid[1]} pixels can use")
        self.convolution = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        # A permuted channels-last map is what PyTorch calls channels_last: no copy in either direction.
        return self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
