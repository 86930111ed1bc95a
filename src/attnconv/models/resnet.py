"""ResNet for 32 x 32 images, the convolutional baseline of the authors' code (kuangliu's pytorch-cifar).

The CIFAR variant of He et al. (2016): a 3 x 3 stem without pooling, four stages of basic blocks at strides 1, 2, 2, 2.
ResNet-18 is (2, 2, 2, 2) blocks at width 64: 11,173,962 parameters; ResNet-10 has one block per stage. Initialization
is PyTorch's default, as in the authors' code, not torchvision's. Two kinds of attention may be added: non-local blocks,
over space, and squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507), over channels.

Axes: B batch, C image channels, H W rows and columns.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut, (B, in, H, W) -> (B, out, H / stride, W / stride).

    With `squeeze_reduction`, squeeze-and-excitation weights the channels of the residual branch.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, squeeze_reduction: int | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.squeeze: nn.Module = nn.Identity()
        if squeeze_reduction is not None:
            self.squeeze = SqueezeExcitation(channels_out, max(1, channels_out // squeeze_reduction))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.squeeze(self.norm2(self.conv2(y))) + self.shortcut(x))


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


class NonLocalStage(NonLocalBlock):
    """A non-local block between convolutional stages, (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResNet(nn.Module):
    """A CIFAR ResNet of basic blocks: images (B, C, height, width) -> logits (B, classes).

    Args:
        image_shape: (C, height, width) of the images, in pixels.
        classes: number of classes.
        blocks: number of basic blocks in each stage.
        width: channels of the first stage; each later stage doubles them. May be fractional: each stage rounds.
        nonlocal_after: stages, from 1, that are followed by a non-local block.
        squeeze_reduction: channels divided by those inside squeeze-and-excitation, in all blocks; None for none.

    Raises:
        ValueError: a width, a number of blocks or a reduction is below 1, or a stage does not exist.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        blocks: Sequence[int],
        width: float,
        nonlocal_after: Sequence[int] = (),
        squeeze_reduction: int | None = None,
    ):
        super().__init__()
        if squeeze_reduction is not None and squeeze_reduction < 1:
            raise ValueError(f"squeeze_reduction must be at least 1, not {squeeze_reduction}")
        if not set(nonlocal_after) <= set(range(1, len(blocks) + 1)):
            raise ValueError(f"nonlocal_after={list(nonlocal_after)} must name stages in 1..{len(blocks)}")
        if width < 1 or not blocks or min(blocks) < 1:
            raise ValueError(f"width and all numbers of blocks must be at least 1, not {width} and {list(blocks)}")
        channels = round(width)
        self.stem = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        stages: list[nn.Module] = []
        for index, count in enumerate(blocks):
            out, stride = round(width * 2**index), 1 if index == 0 else 2
            stages.append(BasicBlock(channels, out, stride, squeeze_reduction))
            stages.extend(BasicBlock(out, out, 1, squeeze_reduction) for _ in range(count - 1))
            if index + 1 in nonlocal_after:
                stages.append(NonLocalStage(out))
            channels = out
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem_norm(self.stem(images))))
        return self.head(x.mean(dim=(2, 3)))
