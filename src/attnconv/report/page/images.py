"""The images in the page, a few test images of each class with their names, and how arrays are packed into it."""

import base64
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnconv.config import DataConfig
from attnconv.data.dataset import DataSet, class_names
from attnconv.files import reading, write_whole

PER_CLASS = 6
MOST = 60  # images
DTYPES = ("float32", "float16", "uint8")


@dataclass(frozen=True)
class Images:
    """Test images (n, height, width, C) uint8 with their labels and their indices in the test set.

    Attributes:
        class_names: by label.
        data_hash: of their data set.
    """

    pixels: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    class_names: list[str]
    data_hash: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, height, width)."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    def describe(self) -> dict[str, Any]:
        """Return the page's data about them, packed."""
        labels, places = self.labels.tolist(), self.places.tolist()
        return {"pixels": packed(self.pixels), "labels": labels, "places": places, "class_names": self.class_names}


def first_of_each_class(data: DataSet, source: str, task: str = DataConfig.task) -> Images:
    """Return the first test images of each class, PER_CLASS per class and MOST in all.

    Args:
        source, task: of the data set's configuration; they name the classes.
    """
    labels = data.test.labels.cpu().numpy()
    per_class = max(1, min(PER_CLASS, MOST // data.classes))
    chosen = [np.flatnonzero(labels == label)[:per_class] for label in range(data.classes)]
    places = np.sort(np.concatenate(chosen)[:MOST])
    pixels = data.test.images.cpu().numpy()[places]
    names = list(class_names(DataConfig(source=source, task=task), data.classes))
    return Images(pixels, labels[places], places, names, data.source_sha256)


def save_images(images: Images, path: Path) -> None:
    """Write images to a .npz file; equal images give equal bytes."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **vars(images))
    write_whole(path, content.getvalue())


def read_images(path: Path) -> Images:
    """Read the file that `save_images` wrote.

    Raises:
        FileError: it is missing or damaged.
    """
    with reading(path), np.load(path, allow_pickle=False) as file:
        pixels, labels, places = (file[name] for name in ("pixels", "labels", "places"))
        names = file["class_names"].tolist()
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise ValueError(f"its pixels are {pixels.shape} of {pixels.dtype}, not (n, height, width, C) of uint8")
        for name, values, limit in (("labels", labels, len(names)), ("places", places, math.inf)):
            whole = values.shape == pixels.shape[:1] and values.dtype.kind in "iu"
            if not whole or not ((values >= 0) & (values < limit)).all():
                raise ValueError(f"its {name} are not one whole number per image, from 0 on")
        return Images(pixels, labels, places, names, str(file["data_hash"]))


def packed(array: np.ndarray) -> dict[str, Any]:
    """Return {dtype, shape, deflate}: the little-endian bytes, deflated, in base64.

    Raises:
        ValueError: the type is not in DTYPES.
    """
    if array.dtype.name not in DTYPES:
        raise ValueError(f"arrays in the page are {', '.join(DTYPES)}, not {array.dtype}")
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    deflated = base64.b64encode(zlib.compress(content, 9)).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "deflate": deflated}
