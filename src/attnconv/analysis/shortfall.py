"""Where attention falls short of a convolution: at an image's border, with too few heads, and with low-rank heads.

Shares are shares of the squared weights that no values can represent. For inputs with independent pixels and channels,
these equal the squared error of the outputs divided by their square.

Axes: O outputs, C inputs, T taps of a kernel (row-major).
"""

from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.conv_to_attention import ALPHA, check_alpha
from attnconv.analysis.plain_convolution import read_convolution
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention


@torch.no_grad()
def with_image_keys(convolution: nn.Conv2d, height: int, width: int, alpha: float = ALPHA) -> PositionalAttention:
    """Build the heads of the paper's Theorem 1: they look at an image's own pixels, at the border at the nearest one.

    Away from the border, they compute the convolution, permuted: (B, H, W, D) -> (B, H, W, D).

    Args:
        convolution: with as many outputs as inputs, an odd kernel, one group, and neither stride nor dilation.
        height, width: of the map, in pixels.
        alpha: sharpness of the heads, in 1/pixels^2.

    Raises:
        Inconvertible: the layer computes anything but a convolution (see `read_convolution`).
        ValueError: the convolution is of another kind, or alpha is not above 0 or above LARGEST_ALPHA.
    """
    check_alpha(alpha)
    plain = read_convolution(convolution)
    outputs, inputs, *kernel = plain.weight.shape
    spaced = {*plain.stride, *plain.dilation, plain.groups} != {1}
    if outputs != inputs or spaced or len(kernel) != 2 or not all(size % 2 for size in kernel):
        raise ValueError("needs a 2-D convolution with as many outputs as inputs, an odd kernel, no stride or groups")
    rows, columns = kernel
    attention = PositionalAttention(outputs, rows * columns, (height, width), QuadraticEncoding)
    encoding: Any = attention.encoding
    value: Any = attention.value
    taps = torch.cartesian_prod(torch.arange(rows) - rows // 2, torch.arange(columns) - columns // 2)
    encoding.centers.copy_(taps)
    encoding.spreads.fill_((2 * alpha) ** 0.5)
    value.weight.copy_(plain.weight.permute(0, 2, 3, 1).flatten(1))
    value.bias.copy_(torch.zeros(outputs) if plain.bias is None else plain.bias)
    return attention.to(plain.weight)


def missed_by_heads(weight: Tensor) -> tuple[list[float], list[float]]:
    """Return the share of a kernel (O, C, ...) that 1 to T heads cannot compute, at best.

    Returns:
        Shares with one tap per head, leaving out the smallest taps; and with the best possible maps, the bound of
        Eckart and Young for T x CO matrices of rank N.
    """
    by_tap = weight.detach().double().flatten(2).permute(2, 0, 1).flatten(1)
    return _left_out(by_tap.square().sum(1).sort(descending=True).values), _left_out(_squared_sizes(by_tap))


def missed_by_rank(weight: Tensor) -> list[float]:
    """Return the share of a kernel (O, C, ...) that one head per tap cannot compute, for D_h from 1 to min(C, O).

    The values of a head are a C x D_h matrix times a D_h x O matrix: a matrix of rank D_h, which is best chosen by the
    tap's singular vectors (Eckart and Young).
    """
    sizes = _squared_sizes(weight.detach().double().flatten(2).permute(2, 0, 1))
    return _left_out(sizes.sum(0))


def _squared_sizes(matrices: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrices).square()


def _left_out(squares: Tensor) -> list[float]:
    """Return the share of a sum left out by its first term, first two terms, ... and all terms; exactly 0 for all."""
    total = squares.sum()
    behind = squares.flip(0).cumsum(0).flip(0) / (total if total > 0 else 1)  # a kernel of zeros lacks nothing
    return [*behind[1:].tolist(), 0.0]
