"""Random crops and flips on the device, per image, drawn from counters.

The draws of an epoch depend on (seed, epoch) alone and are indexed by the position in the epoch. A run that resumes at
any step therefore sees the same images; there is no generator state to lose.

Axes: B batch, C channels, H W rows and columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnconv.config import RecipeConfig
from attnconv.errors import DataError

EPOCH_STREAM = 3
FLIP_STREAM = 6
PLACE_BITS = 31  # resolution of random places, for crops of any size


@dataclass(frozen=True)
class EpochPlan:
    """All random draws of one epoch, in the order in which the images are shown, on the device."""

    order: Tensor  # (n,) int64: indices into the training images, each once per pass
    tops: Tensor  # (n,) int64: first row of the crop, in the padded image
    lefts: Tensor  # (n,) int64: first column of the crop
    flips: Tensor  # (n,) bool: mirror left to right
    downs: Tensor  # (n,) int64 below 2^PLACE_BITS: row of a smaller crop within the crop, from top to bottom
    rights: Tensor  # (n,) int64 below 2^PLACE_BITS: its column, from left to right

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, positions: slice) -> "EpochPlan":
        """Return the plan of some positions of the epoch."""
        return EpochPlan(**{name: drawn[positions] for name, drawn in vars(self).items()})


@dataclass(frozen=True)
class ImageSize:
    """The size of the augmented training images of a step.

    Args:
        side: their height in pixels; the width is in proportion.
        cropped: crop at a random place instead of scaling the whole image.
    """

    side: int
    cropped: bool = False

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width, in pixels, of images that are height x width large."""
        return self.side, max(1, round(width * self.side / height))


def image_size(recipe: RecipeConfig, height: int, epochs: int, images: int) -> Callable[[int], ImageSize | None]:
    """Return the size of the training images as a function of the step (0-based); None keeps them as they are.

    Args:
        recipe: sizes, cropped_from, batch_size.
        height: of the original images.
        epochs, images: length of training, and images in an epoch.
    """
    crops = math.inf if recipe.cropped_from is None else recipe.cropped_from
    sizes = [ImageSize(round(size * height), cropped=size >= crops) for size in recipe.sizes]
    total = epochs * math.ceil(images / recipe.batch_size)
    return lambda step: sizes[step * len(sizes) // total] if sizes else None


def plan_epoch(
    images: int,
    seed: int,
    epoch: int,
    crop_padding: int,
    flip: bool,
    device: torch.device,
    shown: int | None = None,
    alternating: bool = False,
) -> EpochPlan:
    """Draw the plan of an epoch from the counter (seed, epoch).

    Args:
        images: number of training images.
        alternating: mirror each image in every second pass, starting with a random one of the first two passes, instead
            of drawing a flip in each pass (airbench: Jordan 2024, arXiv 2404.00498, section 3.6).
        shown: number of images in the epoch. By default one pass over the images; else whole passes, each in its own
            order, and the beginning of another.
    """
    draw = np.random.default_rng([EPOCH_STREAM, seed, epoch])
    shown = images if shown is None else shown
    passes = -(-shown // images)
    order = np.concatenate([draw.permutation(images) for _ in range(passes)])[:shown]
    offsets = draw.integers(0, 2 * crop_padding + 1, size=(2, shown))
    flips = draw.random(shown) < (0.5 if flip else 0.0)
    if flip and alternating:
        first = np.random.default_rng([FLIP_STREAM, seed]).random(images) < 0.5
        flips = first[order] ^ ((epoch * passes + np.arange(shown) // images) % 2 == 1)
    places = draw.integers(0, 2**PLACE_BITS, size=(2, shown))  # drawn last, so that the other draws do not depend on it
    on_device = [torch.from_numpy(array).to(device) for array in (order, *offsets, flips, *places)]
    return EpochPlan(*on_device)


def pad(images: Tensor, padding: int, mode: str = "constant") -> Tensor:
    """Pad each side of images (N, H, W, C), once for all epochs.

    Args:
        mode: as in torchvision's RandomCrop: "constant" (black) or "reflect" (the image mirrored at its border, whose
            pixels are not repeated).

    Raises:
        DataError: a crop could miss the image, and "reflect" would need more pixels than it has.
    """
    height, width = images.shape[1:3]
    if padding >= min(height, width):
        raise DataError(
            f"data.crop_padding={padding} must be smaller than the images, which have {height}x{width} pixels"
        )
    if not padding:
        return images
    if mode == "constant":
        # Reference: RandomCrop pads before normalization, so the border is black, not the mean color.
        return F.pad(images, (0, 0, padding, padding, padding, padding))
    # By index: PyTorch's own reflection does not support uint8 on all devices.
    rows, columns = (torch.from_numpy(np.pad(np.arange(side), padding, mode="reflect")) for side in (height, width))
    return images[:, rows.to(images.device)][:, :, columns.to(images.device)]


def crop_and_flip(
    padded: Tensor, plan: EpochPlan, height: int, width: int, size: tuple[int, int] | None = None
) -> Tensor:
    """Return the augmented images of a plan, (B, height, width, C) uint8.

    Args:
        size: height and width of smaller crops, to cut from those of the plan; None for the plan's own.
    """
    rows, columns = size or (height, width)
    # Shift instead of divide: exact on all devices.
    tops = plan.tops + (plan.downs * (height - rows + 1) >> PLACE_BITS)
    lefts = plan.lefts + (plan.rights * (width - columns + 1) >> PLACE_BITS)
    across = torch.arange(columns, device=padded.device).expand(len(plan), columns)
    across = lefts[:, None] + torch.where(plan.flips[:, None], columns - 1 - across, across)
    down = tops[:, None] + torch.arange(rows, device=padded.device)
    return padded[plan.order[:, None, None], down[:, :, None], across[:, None, :]]


def scale(images: Tensor, side: int | None) -> Tensor:
    """Scale images (B, C, H, W) to `side` rows, in proportion and antialiased; None leaves them unchanged."""
    height, width = images.shape[2:]
    if side is None or side == height:
        return images
    scaled = F.interpolate(images, ImageSize(side).of(height, width), mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize uint8 (B, H, W, C) to float32 (B, C, H, W) in channels-last memory.

    `mean` and `std` are (C,), of pixels in 0..1.
    """
    return ((images.float() - 255 * mean) / (255 * std)).permute(0, 3, 1, 2)
