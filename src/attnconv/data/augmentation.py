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

from attnconv.errors import DataError

EPOCH_STREAM = 3
FLIP_STREAM = 6
PLACE_BITS = 31  # so finely are places drawn for crops of any size


@dataclass(frozen=True)
class EpochPlan:
    """Everything random about an epoch's data, in the order in which images are seen, on the device."""

    order: Tensor  # (n,) int64: indices into the training images, each once per pass
    tops: Tensor  # (n,) int64: first row of the crop, in the padded image
    lefts: Tensor  # (n,) int64: first column of the crop
    flips: Tensor  # (n,) bool: mirrored left to right
    downs: Tensor  # (n,) int64 below 2^PLACE_BITS: where in the crop a smaller one lies, from the highest place down
    rights: Tensor  # (n,) int64 below 2^PLACE_BITS: from the leftmost place to the right

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, positions: slice) -> "EpochPlan":
        """The plan of some positions of the epoch alone."""
        return EpochPlan(**{name: drawn[positions] for name, drawn in vars(self).items()})


@dataclass(frozen=True)
class ImageSize:
    """What becomes of the augmented training images of a step.

    Args:
        side: their height in pixels; width is in proportion.
        cropped: cut out at a random place, pixels as they are, instead of the whole image scaled.
    """

    side: int
    cropped: bool = False

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that images of height x width get, in pixels."""
        return self.side, round(width * self.side / height)


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
        shown: length of the epoch: one pass over the images by default, else as many whole passes, each in
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
    places = draw.integers(0, 2**PLACE_BITS, size=(2, shown))  # last: all else is drawn as if there were none
    on_device = [torch.from_numpy(array).to(device) for array in (order, *offsets, flips, *places)]
    return EpochPlan(*on_device)


def pad(images: Tensor, padding: int, mode: str = "constant") -> Tensor:
    """So many pixels on each side of images (N, H, W, C), once for all epochs.

    Args:
        mode: as in torchvision's RandomCrop: "constant" (black) or "reflect" (the image mirrored at its border, whose
            own pixels are not repeated).

    Raises:
        DataError: "reflect" needs more pixels than an image has.
    """
    if not padding:
        return images
    if mode == "constant":
        # Reference: RandomCrop pads before normalization, so the border is black, not the mean color.
        return F.pad(images, (0, 0, padding, padding, padding, padding))
    height, width = images.shape[1:3]
    if padding >= min(height, width):
        raise DataError(
            f"data.padding_mode=reflect: images of {height}x{width} pixels are too small to mirror {padding} pixels at "
            f"a border; lower data.crop_padding={padding}"
        )
    # By index: torch's own reflection does not take uint8 on every device.
    return images[:, _reflected(height, padding, images.device)][:, :, _reflected(width, padding, images.device)]


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """Indices of an axis of `size` mirrored at both ends: 2 1 0 1 2 1 0 for 3 pixels and a padding of 2."""
    places = torch.arange(-padding, size + padding, device=device).abs()
    return size - 1 - (size - 1 - places).abs()


def crop_and_flip(
    padded: Tensor, plan: EpochPlan, height: int, width: int, size: tuple[int, int] | None = None
) -> Tensor:
    """The augmented images of a plan: (B, height, width, C) uint8.

    Args:
        size: height and width of smaller crops out of those; then they are what is returned.
    """
    rows, columns = size or (height, width)
    # Shifted, not divided: exact on every device.
    tops = plan.tops + (plan.downs * (height - rows + 1) >> PLACE_BITS)
    lefts = plan.lefts + (plan.rights * (width - columns + 1) >> PLACE_BITS)
    across = torch.arange(columns, device=padded.device).expand(len(plan), columns)
    across = lefts[:, None] + torch.where(plan.flips[:, None], columns - 1 - across, across)
    down = tops[:, None] + torch.arange(rows, device=padded.device)
    return padded[plan.order[:, None, None], down[:, :, None], across[:, None, :]]


def scale(images: Tensor, side: int | None) -> Tensor:
    """Scale images (B, C, H, W) to `side` rows, in proportion and antialiased; None leaves them as they are."""
    height, width = images.shape[2:]
    if side is None or side == height:
        return images
    scaled = F.interpolate(images, ImageSize(side).of(height, width), mode="bilinear", antialias=True)
    return scaled.contiguous(memory_format=torch.channels_last)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W) in channels-last memory; mean and std (C,), of pixels in 0..1."""
    return ((images.float() - 255 * mean) / (255 * std)).permute(0, 3, 1, 2)
