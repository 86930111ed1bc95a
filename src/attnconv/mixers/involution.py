"""Involution (Li et al. 2021, arXiv 2103.06255): kernels that depend on the position and are shared by channels.

A convolution shares its kernel over positions and has one per channel. Here the kernel at a position is computed from
its position and shared by a group of channels:

    kernel at p = W1 ReLU(BN(W0 x_p)), of K x K weights for each of G groups;
    y_p,c = sum over shifts s of kernel[p, group of c, s] x_(p+s),c, zeros outside the map.

Here the reducing projection W0 has a bias before the batch norm, which cancels it; the published code has no bias.

Axes: B batch, H W rows and columns, D width, G groups of C = D/G channels, Q positions, S = K^2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import axis_shifts
from attnconv.mixers.patterns import both_axes, check_window
from attnconv.mixers.window import DENSE_UP_TO_WINDOWS


class Involution(nn.Module):
    """Kernels computed from the position itself, (B, H, W, D) -> (B, H, W, D). `heads` is ignored.

    Args:
        width, heads, grid: as for all mixers.
        kernel_size: K, odd.
        group_width: number of channels that share a kernel.
        reduction: D divided by the channels inside the network that computes kernels.
        attention_dropout: ignored.

    Raises:
        ValueError: width is not divisible by group_width or is below reduction, or the kernel is larger than the map.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        kernel_size: int = 7,
        group_width: int = 16,
        reduction: int = 4,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        check_window(grid, kernel_size, "zero")
        if width % group_width:
            raise ValueError(f"width={width} is not divisible by group_width={group_width}")
        if not 1 <= reduction <= width:
            raise ValueError(f"reduction must be in 1..width={width}, not {reduction}")
        self.kernel_size, self.groups = kernel_size, width // group_width
        self.reduce = nn.Linear(width, width // reduction)
        self.norm = nn.BatchNorm1d(width // reduction)
        self.expand = nn.Linear(width // reduction, self.groups * kernel_size**2)

    def kernels(self, x: Tensor) -> Tensor:
        """Return the kernel of each position and group of maps x (B, H, W, D), (B, Q, G, S)."""
        reduced = F.relu(self.norm(self.reduce(x).flatten(0, 2)))
        return self.expand(reduced).view(x.shape[0], x.shape[1] * x.shape[2], self.groups, self.kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:
        positions = x.shape[1] * x.shape[2]
        few = positions <= DENSE_UP_TO_WINDOWS * self.kernel_size**2
        return (self._apply_dense(x) if few else self._apply_gathered(x)).reshape(x.shape)

    def _apply_dense(self, x: Tensor) -> Tensor:
        """Apply the kernels as a product over all positions, (B, Q, G, C): faster if kernels cover much of the map."""
        _, height, width, _ = x.shape
        kernels = F.pad(self.kernels(x).transpose(1, 2), (0, 1))  # (B, G, Q, S + 1): the last weight is 0
        rows, columns = axis_shifts(height, x.device), axis_shifts(width, x.device)
        half = self.kernel_size // 2
        inside = both_axes(rows.abs() <= half, columns.abs() <= half)
        place = (rows[:, None, :, None] + half) * self.kernel_size + columns[None, :, None, :] + half
        index = torch.where(inside, place.reshape(inside.shape), self.kernel_size**2)
        weights = kernels.gather(-1, index.expand(*kernels.shape[:2], -1, -1))
        inputs = x.to(weights.dtype).flatten(1, 2).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        return (weights @ inputs).transpose(1, 2)

    def _apply_gathered(self, x: Tensor) -> Tensor:
        """Apply the kernels to gathered neighborhoods: cost linear in the number of positions."""
        kernels = self.kernels(x)
        patches = F.unfold(x.permute(0, 3, 1, 2).to(kernels.dtype), self.kernel_size, padding=self.kernel_size // 2)
        # (B, D*S, Q) -> (B, G, C, S, Q)
        patches = patches.unflatten(1, (self.groups, -1, self.kernel_size**2))
        return torch.einsum("bgcsq,bqgs->bqgc", patches, kernels)
