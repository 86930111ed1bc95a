"""ResNet for 32 x 32 images, the reference's convolutional baseline (PAPER: section 2.5).

The CIFAR variant of He et al. (2016): a 3 x 3 stem without pooling, four stages of basic blocks at strides 1, 2, 2, 2.
ResNet-18 is (2, 2, 2, 2) blocks at width 64: 11,173,962 parameters. Initialisation is PyTorch's default, as in the
reference, not torchvision's.

Axes: B batch, C image channels, H W rows and columns.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut, (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A CIFAR ResNet of basic blocks: images (B, C, height, width) -> logits (B, classes).

    Args:
        image_shape: (C, height, width) of the images, in pixels.
        classes: number of classes.
        blocks: basic blocks in each stage.
        width: channels of the first stage; each later stage doubles them.

    Raises:
        ValueError: a width or a number of blocks below 1.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, blocks: Sequence[int], width: int):
        super().__init__()
        if width < 1 or not blocks or min(blocks) < 1:
            raise ValueError(f"width and every number of blocks must be at least 1, not {width} and {list(blocks)}")
        self.stem = nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        stages, channels = [], width
        for index, count in enumerate(blocks):
            out, stride = width * 2**index, 1 if index == 0 else 2
            stages.append(BasicBlock(channels, out, stride))
            stages.extend(BasicBlock(out, out, 1) for _ in range(count - 1))
            channels = out
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem_norm(self.stem(images))))
        return self.head(x.mean(dim=(2, 3)))
