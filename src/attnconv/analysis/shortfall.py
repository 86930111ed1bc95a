"""Where attention falls short of a convolution: at an image's border, with too few heads, and with heads too thin.

Shares are of the squared weights that no values can make good, which is the squared error of the outputs over their
square for inputs of independent pixels and channels.

Axes: O outputs, C inputs, T taps of a kernel (row-major).
"""

from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.conv_to_attention import ALPHA
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention


@torch.no_grad()
def with_image_keys(convolution: nn.Conv2d, height: int, width: int, alpha: float = ALPHA) -> PositionalAttention:
    """Build the paper's Theorem 1: heads that look at an image's own pixels, and at its border at the nearest one.

    Off the border it computes the convolution, permuted: (B, H, W, D) -> (B, H, W, D).

    Args:
        convolution: of as many outputs as inputs, an odd kernel, one group, neither stride nor dilation.
        height, width: of the map, in pixels.
        alpha: sharpness of the heads, in 1/pixels^2.

    Raises:
        ValueError: another convolution.
    """
    outputs, inputs, rows, columns = convolution.weight.shape
    spaced = {*convolution.stride, *convolution.dilation, convolution.groups} != {1}
    if outputs != inputs or spaced or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError("needs a convolution with as many outputs as inputs, an odd kernel, and no stride or groups")
    attention = PositionalAttention(outputs, rows * columns, (height, width), QuadraticEncoding)
    encoding: Any = attention.encoding
    value: Any = attention.value
    taps = torch.cartesian_prod(torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2)
    encoding.centers.copy_(taps)
    encoding.spreads.fill_((2 * alpha) ** 0.5)
    value.weight.copy_(convolution.weight.permute(0, 2, 3, 1).flatten(1))
    value.bias.copy_(torch.zeros(outputs) if convolution.bias is None else convolution.bias)
    return attention.to(convolution.weight)


def missed_by_heads(weight: Tensor) -> tuple[list[float], list[float]]:
    """Share of a kernel (O, C, ...) that 1 to T heads cannot compute, at best.

    Returns:
        with heads on one tap each, which leave out the smallest taps; and with any maps that one can think of, the
        bound of Eckart and Young for T x CO matrices of rank N.
    """
    by_tap = weight.detach().double().flatten(2).permute(2, 0, 1).flatten(1)
    return _left_out(by_tap.square().sum(1).sort(descending=True).values), _left_out(_squared_sizes(by_tap))


def missed_by_rank(weight: Tensor) -> list[float]:
    """Share of a kernel (O, C, ...) that a head per tap cannot compute at best, with D_h from 1 to min(C, O).

    The values of a head are C x D_h numbers times D_h x O: a matrix of rank D_h, nearest to a tap's by its singular
    vectors (Eckart and Young).
    """
    sizes = _squared_sizes(weight.detach().double().flatten(2).permute(2, 0, 1))
    return _left_out(sizes.sum(0))


def _squared_sizes(matrices: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrices).square()


def _left_out(squares: Tensor) -> list[float]:
    """Share of a sum that is left out by its first term, first two, ... and all; exactly 0 by all."""
    behind = squares.flip(0).cumsum(0).flip(0) / squares.sum()
    return [*behind[1:].tolist(), 0.0]
