"""Random crops and flips on the device, per image, drawn from counters.

An epoch's draws are a function of (seed, epoch) alone and are indexed by the position in the epoch, so a run that
resumes at any step sees what it would have seen; there is no generator whose state could be lost.

Axes: B batch, C channels, H W rows and columns.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EPOCH_STREAM = 3
FLIP_STREAM = 6


@dataclass(frozen=True)
class EpochPlan:
    """Everything random about an epoch's data, in the order in which images are seen, on the device."""

    order: Tensor  # (n,) int64: indices into the training images, each once per pass
    tops: Tensor  # (n,) int64: first row of the crop, in the padded image
    lefts: Tensor  # (n,) int64: first column of the crop
    flips: Tensor  # (n,) bool: mirrored left to right


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
    """Draw an epoch from the counter (seed, epoch).

    Args:
        images: training images there are.
        alternating: mirror every other pass an image, beginning with the first or with the second as chance has it for
            that image, instead of by chance every time (airbench: Jordan 2024, arXiv 2404.00498, section 3.6).
        shown: length of the epoch: one pass over the images unless told otherwise; else so many whole passes, each in
            an order of its own, and the beginning of one more.
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
    on_device = [torch.from_numpy(array).to(device) for array in (order, *offsets, flips)]
    return EpochPlan(*on_device)


def pad(images: Tensor, padding: int) -> Tensor:
    """Black pixels around images (N, H, W, C), once for all epochs."""
    # Reference: RandomCrop pads before normalisation, so the border is black, not the mean colour.
    return F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images


def crop_and_flip(padded: Tensor, plan: EpochPlan, start: int, stop: int, height: int, width: int) -> Tensor:
    """The augmented images of positions start..stop of an epoch: (B, height, width, C) uint8."""
    index = plan.order[start:stop]
    rows = plan.tops[start:stop, None] + torch.arange(height, device=padded.device)
    columns = torch.arange(width, device=padded.device).expand(len(index), width)
    columns = torch.where(plan.flips[start:stop, None], width - 1 - columns, columns)
    columns = plan.lefts[start:stop, None] + columns
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def scale(images: Tensor, side: int | None) -> Tensor:
    """Images (B, C, H, W) of `side` rows, in proportion and antialiased; unchanged for None or if they have so many."""
    height, width = images.shape[2:]
    if side is None or side == height:
        return images
    scaled = F.interpolate(images, (side, round(width * side / height)), mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in channels-last memory; mean and std (C,), of pixels in 0..1."""
    return ((images.float() - 255 * mean) / (255 * std)).permute(0, 3, 1, 2)
