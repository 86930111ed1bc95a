"""The preprocessing that a trained network needs to be used without its data set.

It consists of the image size, the normalization and the class names.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnconv.config import DataConfig
from attnconv.data.augmentation import normalize
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.files import read_json, reading
from attnconv.runs.folder import PREPROCESSING_FILE

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAIRS = {"agreement": ("different", "same"), "texture": ("horizontal", "vertical")}
KEYS = ("image_shape", "class_names", "mean", "std")


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


def read_preprocessing(folder: Path, config: DataConfig) -> Preprocessing:
    """Return the preprocessing of the run in `folder`.

    Without preprocessing.json, as in results/ and in older runs, mean and std of CIFAR-10 come from config.yaml. Other
    data sets must be read again.

    Raises:
        FileError: the file is damaged; DataError: neither the file nor the data set exists.
    """
    path = folder / PREPROCESSING_FILE
    if path.exists():
        found = read_json(path, KEYS)
        with reading(path):
            _check(found)
            channels, height, width = found["image_shape"]
            names, mean, std = (tuple(found[key]) for key in KEYS[1:])
        return Preprocessing((channels, height, width), names, mean, std)
    if config.source == "cifar10" and config.mean is not None and config.std is not None:
        return Preprocessing((3, 32, 32), CIFAR10, tuple(config.mean), tuple(config.std))
    return Preprocessing.of(config, load_dataset(config, torch.device("cpu")))


def _check(found: dict[str, Any]) -> None:
    """Raise one of UNREADABLE for the content of a preprocessing.json that no data set has."""
    shape, names, mean, std = (found[key] for key in KEYS)
    good = {
        "image_shape": len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape),
        "class_names": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "mean": len(mean) == shape[0] and all(map(math.isfinite, mean)),
        "std": len(std) == shape[0] and all(math.isfinite(value) and value > 0 for value in std),
    }
    for key in KEYS:
        if not good[key]:
            raise ValueError(f"{key}: {found[key]}")
