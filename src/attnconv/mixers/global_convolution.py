"""Depthwise convolution as large as the map: attention's reach at H*W weights per channel, without any attention.

Each channel has its own kernel over all shifts, applied by FFT in O(H W log(H W)) per channel. Channels are mixed by
the layer's projection alone, as in the global filter networks of Rao et al. (2021, arXiv 2107.00645), which learn the
same kernels as spectra. At the border the map is, by name,

    circular   wrapped around, as an FFT does by itself: H x W shifts;
    zeros      surrounded by zeros: (2H - 1) x (2W - 1) shifts, all that two pixels of the map can have.

Axes: B batch, H W rows and columns, D width.
"""

import torch
from torch import Tensor, nn

from attnconv.mixers.encodings import exact_positions
from attnconv.mixers.shifts import check_map

PADDINGS = ("circular", "zeros")


class DepthwiseGlobal(nn.Module):
    """A depthwise convolution over all shifts, (B, H, W, D) -> (B, H, W, D). `heads` has no meaning here.

    `weight[d, i, j]` belongs to the shift (i - rows // 2, j - columns // 2) from output to input pixel, of channel d.

    Raises:
        ValueError: an unknown padding, or a map of another size than `grid`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        padding: str = "circular",
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, not {padding!r}")
        self.grid, self.padding = grid, padding
        # In 2H - 1 positions zeros fill what a map of H leaves, so that no shift comes around to another pixel.
        rows, columns = grid if padding == "circular" else (2 * grid[0] - 1, 2 * grid[1] - 1)
        bound = (rows * columns) ** -0.5  # PyTorch's default for a convolution with as many inputs
        self.weight = nn.Parameter(torch.empty(width, rows, columns).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.grid)
        _, height, width, _ = x.shape
        size = self.weight.shape[1:]
        with exact_positions(x.device):  # FFTs know no bf16
            kernels = torch.fft.rfft2(torch.fft.ifftshift(self.weight, dim=(1, 2)))
            maps = torch.fft.rfft2(x.to(self.weight.dtype).permute(0, 3, 1, 2), s=size)
            # The conjugate makes it a correlation: what deep learning calls a convolution.
            out = torch.fft.irfft2(maps * kernels.conj(), s=size)[..., :height, :width]
        return (out + self.bias[:, None, None]).permute(0, 2, 3, 1).to(x.dtype)
