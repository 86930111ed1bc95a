"""The data of the theorem's figures: a kernel, and a photo in results/. This module does not import matplotlib."""

import numpy as np

from attnconv.files import reading
from attnconv.report.figures.data import Kernel, Photo
from attnconv.report.figures.results import Results

SHOWN = 16  # of the images in results/test_images.npz: a dog's face


def small_kernel(results: Results) -> Kernel:
    """Return a kernel with few enough channels to show all weights."""
    return _random_kernel(outputs=4, inputs=3)


def wide_kernel(results: Results) -> Kernel:
    """Return a kernel with enough channels that what it misses depends little on the draw."""
    return _random_kernel(outputs=16, inputs=16)


def photo(results: Results) -> Photo | None:
    """Return one of the page's test images, if there are enough and they are in color."""
    path = results.path / "test_images.npz"
    if not path.exists():
        return None
    with reading(path):
        pixels = np.load(path)["pixels"]
        return Photo(pixels[SHOWN]) if len(pixels) > SHOWN and pixels.shape[-1] == 3 else None


def _random_kernel(outputs: int, inputs: int) -> Kernel:
    # Whole numbers, so that the digest is the same on all machines.
    return Kernel(np.random.default_rng(0).integers(-9, 10, (outputs, inputs, 3, 3)).astype(float))
