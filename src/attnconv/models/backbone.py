"""The paper's network with an interchangeable mixer (Cordonnier, Loukas and Jaggi 2020, section 4.1).

Everything except the mixer stays the same: stem, feed-forward network, norms and head.

Axes: B batch, C image channels, H W rows and columns of the map, D width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.mixers.base import MakesMixer


class Layer(nn.Module):
    """Mixer, projection and feed-forward network, each with dropout, a residual and a LayerNorm after it (post-LN)."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int, dropout: float):
        super().__init__()
        self.mixer = mixer
        self.projection = nn.Linear(width, width)
        self.mixer_norm = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer_norm(x + self.dropout(self.projection(self.mixer(x))))
        return self.feed_forward_norm(x + self.dropout(self.contract(F.gelu(self.expand(x)))))


class Backbone(nn.Module):
    """Invertible pooling, a linear stem, `layers` mixing layers, the mean over pixels, a linear head.

    Initialization is PyTorch's default everywhere, as in the authors' code.

    Args:
        image_shape: (C, height, width) of the images, in pixels.
        classes: number of classes.
        mixer: builds one mixer (attnconv.mixers.base).
        patch: side of the squares of pixels that become one position, in pixels (the paper: 2).
        layers, heads, width, hidden: depth, N, D, and channels inside the feed-forward network.
        dropout: after the projection and after the feed-forward network.
        attention_dropout: of attention probabilities, if the mixer has any.

    Shape: images (B, C, height, width) -> logits (B, classes).

    Raises:
        ValueError: a size below 1, a dropout outside [0, 1), or an image that is not divisible by the patch.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        mixer: MakesMixer,
        patch: int,
        layers: int,
        heads: int,
        width: int,
        hidden: int,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        check_sizes(patch=patch, layers=layers, heads=heads, width=width, hidden=hidden)
        check_dropouts(dropout=dropout, attention_dropout=attention_dropout)
        check_patch(image_shape, patch)
        channels, height, columns = image_shape
        self.patch = patch
        self.grid = (height // patch, columns // patch)
        self.stem = nn.Linear(channels * patch * patch, width)
        self.layers = nn.ModuleList(
            Layer(
                mixer(width=width, heads=heads, grid=self.grid, attention_dropout=attention_dropout),
                width,
                hidden,
                dropout,
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(space_to_depth(images.permute(0, 2, 3, 1), self.patch))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=(1, 2)))


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """Concatenate the pixels of each patch, row-major: (B, H*p, W*p, C) -> (B, H, W, p*p*C). No information is lost.

    Raises:
        ValueError: the images do not divide into patches.
    """
    batch, height, width, channels = x.shape
    check_patch((channels, height, width), patch)
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(2, 3).reshape(batch, height // patch, width // patch, patch * patch * channels)


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def check_dropouts(**dropouts: float) -> None:
    """Raise ValueError for a probability outside [0, 1)."""
    for name, probability in dropouts.items():
        if not 0 <= probability < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, not {probability}")


def check_patch(image_shape: tuple[int, int, int], patch: int) -> None:
    """Raise ValueError if images (C, height, width) do not divide into patches."""
    _, height, width = image_shape
    if height % patch or width % patch:
        raise ValueError(
            f"images of {height}x{width} pixels do not divide into patches of {patch}x{patch}: "
            "patch must divide both sides"
        )
