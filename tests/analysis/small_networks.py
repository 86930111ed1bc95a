"""Images and a small network that the tests of exchange change."""

import torch
from torch import nn

from attnconv.data.dataset import Split


def images(count=6, side=9):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=draw)
    return Split(pixels, torch.arange(count) % 4, torch.full((3,), 0.5), torch.full((3,), 0.25))


class Logits(nn.Sequential):
    """A convolution and the layers given by a test, averaged over pixels to logits of four classes."""

    def __init__(self, *more):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 4, 3, stride=2, padding=1), *more)

    def forward(self, x):
        return super().forward(x).mean((2, 3))
