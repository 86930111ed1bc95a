"""The images that the page carries: a few test images of each class, and what their classes are called."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnconv.data.dataset import DataSet
from attnconv.files import reading, write_whole
from attnconv.report.page.arrays import packed

PER_CLASS = 6
MOST = 60  # images
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Images:
    """Test images (n, height, width, C) uint8 with their labels and places in the test split, in that order.

    Attributes:
        class_names: what the labels mean.
        data_hash: of the data set that they are from.
    """

    pixels: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    class_names: list[str]
    data_hash: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, height, width)."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    def describe(self) -> dict[str, Any]:
        """Return what the page holds of them, packed."""
        labels, places = self.labels.tolist(), self.places.tolist()
        return {"pixels": packed(self.pixels), "labels": labels, "places": places, "class_names": self.class_names}


def first_of_each_class(data: DataSet, source: str) -> Images:
    """Return the first test images of every class, PER_CLASS of each and MOST in all.

    Args:
        source: where the data is from, by data.source of the configuration.
    """
    labels = data.test.labels.cpu().numpy()
    per_class = max(1, min(PER_CLASS, MOST // data.classes))
    chosen = [np.flatnonzero(labels == label)[:per_class] for label in range(data.classes)]
    places = np.sort(np.concatenate(chosen)[:MOST])
    pixels = data.test.images.cpu().numpy()[places]
    names = list(CIFAR10) if source == "cifar10" else [f"class {label}" for label in range(data.classes)]
    return Images(pixels, labels[places], places, names, data.source_sha256)


def save_images(images: Images, path: Path) -> None:
    """Write images to a .npz file, the same bytes for the same images."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **vars(images))
    write_whole(path, content.getvalue())


def read_images(path: Path) -> Images:
    """Read what `save_images` wrote.

    Raises:
        FileError: it is missing or damaged.
    """
    with reading(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("pixels", "labels", "places")}
        return Images(**arrays, class_names=file["class_names"].tolist(), data_hash=str(file["data_hash"]))
