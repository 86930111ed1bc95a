"""The embedded-Gaussian non-local block (Wang et al. 2018, arXiv 1711.07971): global attention beside convolutions.

    z = x + BN(W_z y),  y_q = sum over k of softmax_k(theta(x_q) . phi(x_k)) g(x_k)

theta, phi and g project to half the channels; scores are not scaled and know no positions. BN starts with weight 0, so
that a new block is the identity and may be put into any network.

Axes: B batch, H W rows and columns, D width, Q K query and key pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class NonLocalBlock(nn.Module):
    """Global attention over space with its residual, (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, width: int):
        super().__init__()
        inner = max(1, width // 2)
        self.theta, self.phi, self.g = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.norm = nn.BatchNorm1d(width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1, 2)
        y = F.scaled_dot_product_attention(self.theta(pixels), self.phi(pixels), self.g(pixels), scale=1.0)
        z = self.norm(self.out(y).flatten(0, 1))
        return x + z.view(x.shape)
