"""A data set on the device: uint8 tensors, normalized and augmented there, without worker processes.

A run trains on all images but a fixed validation set, or on nested, stratified fractions of these.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from attnconv.config import DataConfig
from attnconv.data.augmentation import EpochPlan, ImageSize, crop_and_flip, normalize, pad, scale
from attnconv.data.sources import load_source
from attnconv.errors import DataError, counted, require_memory

LEVELS = 256  # of uint8
COUNTED_AT_ONCE = 1024  # images

# The validation set is the same for all seeds and fractions, so that all choices are made on the same images.
HOLDOUT_STREAM = 1
SUBSET_STREAM = 2

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAIRS = {"agreement": ("different", "same"), "texture": ("horizontal", "vertical")}


@dataclass(frozen=True)
class Split:
    """The images (N, H, W, C) uint8 and labels (N,) int64 of one split, on the device."""

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalized images (B, C, H, W) and labels (B,) in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            chunk = slice(start, start + size)
            yield normalize(self.images[chunk], self.mean, self.std), self.labels[chunk]

    def examples(self, count: int) -> Tensor:
        """Return up to `count` normalized images (B, C, H, W) that represent the split."""
        return normalize(self.images[self.representative(count)], self.mean, self.std)

    def representative(self, count: int) -> Tensor:
        """Return the indices of up to `count` images: the first ones.

        If the split is sorted by class, they are of all classes in turn.
        """
        labels = self.labels.cpu().numpy()
        order, ends = np.arange(len(labels)), np.flatnonzero(labels[1:] != labels[:-1]) + 1
        if len(ends) == len(np.unique(labels)) - 1:
            turns = [np.arange(len(members)) for members in np.split(order, ends)]
            order = np.argsort(np.concatenate(turns), kind="stable")
        return torch.from_numpy(order[:count]).to(self.images.device)


@dataclass(frozen=True)
class TrainSplit(Split):
    """The training images, and `padded` (N, H + 2p, W + 2p, C) to crop from."""

    padded: Tensor

    def augmented(self, plan: EpochPlan, size: ImageSize | None = None) -> tuple[Tensor, Tensor]:
        """Return the normalized, augmented images (B, C, H, W) and labels (B,) of a plan.

        Args:
            size: of the images; None for their own size.
        """
        _, height, width, _ = self.images.shape
        smaller = size.of(height, width) if size and size.cropped else None
        images = crop_and_flip(self.padded, plan, height, width, smaller)
        images = scale(normalize(images, self.mean, self.std), None if size is None else size.side)
        return images, self.labels[plan.order]


@dataclass(frozen=True)
class DataSet:
    """The train, test and (with data.holdout) validation splits, and the facts that a run folder records about them."""

    train: TrainSplit
    epoch_images: int  # images shown in an epoch; with data.equal=steps, some are shown several times
    validation: Split | None
    test: Split
    classes: int
    image_shape: tuple[int, int, int]  # (C, H, W)
    origin: str
    source_sha256: str
    subset_sha256: str  # of the indices of the training images in use


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of images to a network's input, and the names of its outputs.

    Attributes:
        image_shape: (C, H, W) in pixels.
        class_names: one per output.
        mean, std: per channel, of pixels in 0..1.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: DataConfig, data: DataSet) -> "Preprocessing":
        """Return the preprocessing of a data set."""
        mean, std = (tuple(values.tolist()) for values in (data.train.mean, data.train.std))
        return cls(data.image_shape, class_names(config, data.classes), mean, std)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def normalize(self, images: Tensor) -> Tensor:
        """Convert images (B, H, W, C) uint8 to the network's input (B, C, H, W), on their device."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return normalize(images, mean, std)

    def encode(self) -> bytes:
        """Return the content of preprocessing.json."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def class_names(config: DataConfig, classes: int) -> tuple[str, ...]:
    """Return the names of the classes, or their labels if they have no names."""
    named = {"cifar10": CIFAR10, "pairs": PAIRS.get(config.task, ())}.get(config.source, ())
    return named if len(named) == classes else tuple(str(label) for label in range(classes))


def load_dataset(config: DataConfig, device: torch.device) -> DataSet:
    """Read a data set, split it, and move it to the device.

    Raises:
        DataError: see `load_source`, `split_holdout`, `nested_fraction`, `_normalization`, `pad`.
    """
    source = load_source(config, device)
    labels = source.train.labels
    remaining, held = split_holdout(labels, config.holdout)
    used = remaining
    if config.fraction < 1:
        used = nested_fraction(labels, remaining, config.fraction, config.subset_seed)

    images = source.train.images[used]  # a copy
    mean, std = (torch.as_tensor(values, device=device) for values in _normalization(config, images))

    def on_device(images: np.ndarray, targets: np.ndarray) -> Split:
        return Split(torch.from_numpy(images).to(device), torch.from_numpy(targets).to(device), mean, std)

    train = on_device(images, labels[used])
    _, height, width, channels = source.train.images.shape
    padding = 2 * config.crop_padding
    padded_bytes = len(used) * (height + padding) * (width + padding) * channels
    require_memory(padded_bytes, "padded images", f"data.crop_padding (now {config.crop_padding})")
    padded = pad(train.images, config.crop_padding, config.padding_mode)
    return DataSet(
        train=TrainSplit(train.images, train.labels, mean, std, padded),
        epoch_images=len(used) if config.equal == "epochs" else len(remaining),
        validation=on_device(source.train.images[held], labels[held]) if len(held) else None,
        test=on_device(source.test.images, source.test.labels),
        classes=source.classes,
        image_shape=(channels, height, width),
        origin=source.origin,
        source_sha256=source.sha256,
        subset_sha256=hashlib.sha256(used.astype(np.int64).data).hexdigest(),
    )


def split_holdout(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into training and validation: `share` of each class goes to validation, always the same images.

    Raises:
        DataError: a share above 0 selects no image or all images of a class.
    """
    if share == 0:
        return np.arange(len(labels)), np.arange(0)
    kept, held = [], []
    for label, members in _shuffled_classes(labels, np.arange(len(labels)), HOLDOUT_STREAM):
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise DataError(
                f"data.holdout={share} of the {len(members)} images of class {label} is {count} images; "
                "keep at least one for training and one for validation"
            )
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def nested_fraction(labels: np.ndarray, candidates: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the sorted indices of `fraction` of each class among `candidates`.

    Smaller fractions are subsets of larger ones.

    Raises:
        DataError: the fraction is less than one image of some class.
    """
    chosen = []
    for label, members in _shuffled_classes(labels, candidates, SUBSET_STREAM, seed):
        count = round(fraction * len(members))
        if count < 1:
            raise DataError(
                f"data.fraction={fraction} of the {len(members):,} images of class {label} is less than one image; "
                f"set data.fraction={1 / len(members):.2g} or more"
            )
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def _shuffled_classes(labels: np.ndarray, candidates: np.ndarray, *key: int) -> list[tuple[int, np.ndarray]]:
    """Return each class with its candidates in an order that depends only on `key` and the class."""
    return [
        (int(label), np.random.default_rng([*key, int(label)]).permutation(candidates[labels[candidates] == label]))
        for label in np.unique(labels[candidates])
    ]


def _normalization(config: DataConfig, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and std per channel, of pixels in 0..1: the configured values, or those of the images.

    Raises:
        DataError: the number of values is not the number of channels, or a std is 0.
    """
    own_mean, own_std = _moments(images) if config.mean is None or config.std is None else (None, None)
    mean = own_mean if config.mean is None else config.mean
    std = own_std if config.std is None else config.std
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if values.shape != (channels,):
            raise DataError(f"data.{name} needs {counted(channels, 'value')}, one per channel, not {values.tolist()}")
    if not (std > 0).all():
        usable = ",".join(f"{value or 1:.4g}" for value in std)
        raise DataError(
            f"data.std must be above 0 in every channel, not {std.tolist()}: channel {np.argmin(std)} (from 0) has one "
            f"value in all images; if it should, set data.std=[{usable}]"
        )
    return mean, std


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact mean and std per channel of uint8 images (N, H, W, C), as pixels in 0..1.

    Integer histograms use little memory; float images would take eight times the memory of the images.
    """
    counts = np.zeros((images.shape[-1], LEVELS), np.int64)
    for start in range(0, len(images), COUNTED_AT_ONCE):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(images[start : start + COUNTED_AT_ONCE, ..., channel].ravel(), minlength=LEVELS)
    levels = np.arange(LEVELS)
    pixels = counts.sum(axis=1)
    mean = counts @ levels / pixels
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / pixels
    return mean / (LEVELS - 1), np.sqrt(variance) / (LEVELS - 1)
