"""Depthwise convolution as large as the map: as global as attention, with H*W weights per channel.

Each channel has its own kernel over all shifts, applied by FFT in O(H W log(H W)) per channel. Only the layer's
projection mixes channels, as in the global filter networks of Rao et al. (2021, arXiv 2107.00645), which learn the same
kernels as spectra. `padding` says how the map continues beyond its border:

    circular   wrapped around, as in a plain FFT: H x W shifts;
    zeros      with zeros: (2H - 1) x (2W - 1) shifts, all shifts between two positions of the map.

Axes: B batch, H W rows and columns, D width.
"""

import torch
from torch import Tensor, nn

from attnconv.mixers.base import check_map
from attnconv.mixers.encodings import exact_positions

PADDINGS = ("circular", "zeros")


class DepthwiseGlobal(nn.Module):
    """A depthwise convolution over all shifts, (B, H, W, D) -> (B, H, W, D). `heads` is ignored.

    `weight[d, i, j]` is the weight of channel d at shift (i - rows // 2, j - columns // 2) from an output to an
    input position.

    Raises:
        ValueError: the padding is unknown, or the map is not of size `grid`.
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
        # A map of H rows is zero-padded to 2H - 1, so that no shift wraps around to another position.
        rows, columns = grid if padding == "circular" else (2 * grid[0] - 1, 2 * grid[1] - 1)
        bound = (rows * columns) ** -0.5  # PyTorch's default for a convolution with this many inputs
        self.weight = nn.Parameter(torch.empty(width, rows, columns).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        check_map(x, self.grid)
        _, height, width, channels = x.shape
        if channels != len(self.weight) or not x.is_floating_point():  # which the FFTs would take without an error
            raise ValueError(
                f"needs {len(self.weight)} channels of floating-point numbers, not {channels} of {x.dtype}"
            )
        size = self.weight.shape[1:]
        kind = torch.promote_types(self.weight.dtype, torch.float32)  # FFTs do not support 16 bits
        with exact_positions(x.device):
            kernels = torch.fft.rfft2(torch.fft.ifftshift(self.weight.to(kind), dim=(1, 2)))
            maps = torch.fft.rfft2(x.to(kind).permute(0, 3, 1, 2), s=size)
            # The conjugate makes it a correlation, which deep learning calls a convolution.
            out = torch.fft.irfft2(maps * kernels.conj(), s=size)[..., :height, :width]
        return (out + self.bias[:, None, None]).permute(0, 2, 3, 1).to(x.dtype)
