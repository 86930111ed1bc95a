"""Images of any size and mode become arrays of the size and channels that a network takes."""

import numpy as np
import pytest
from PIL import Image

from attnconv.data.images import as_arrays
from attnconv.errors import DataError


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image = image.quantize() if mode == "P" else image.convert(mode)
    gray = as_arrays(image, (1, 8, 8), resize=True)[0, ..., 0]
    assert gray[:, :4].tolist() == [[0] * 4] * 8
    assert gray[:, 4:].tolist() == [[255] * 4] * 8


def test_images_in_lab_become_gray():
    assert as_arrays([Image.new("LAB", (4, 6))], (1, 4, 6), resize=True).shape == (1, 4, 6, 1)


def test_resizing_crops_the_middle_of_an_oblong_image():
    ramp = np.tile(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (10, 1, 3))  # columns differ, rows do not
    (found,) = as_arrays([Image.fromarray(ramp)], (3, 4, 6), resize=True)
    assert found.shape == (4, 6, 3)
    assert np.ptp(found, axis=0).max() == 0
    assert (np.diff(found[0, :, 0].astype(int)) > 0).all()
    assert 85 < found.min() < found.max() < 155, "the middle 15 of 60 columns"


def test_images_without_pixels_are_refused():
    with pytest.raises(DataError, match="the image is 0x0: it has no pixels"):
        as_arrays(Image.new("L", (0, 0)), (1, 8, 8), resize=True)


def test_a_memoryview_is_an_array():
    images = np.arange(384, dtype=np.uint16).astype(np.uint8).reshape(2, 8, 8, 3)
    assert np.array_equal(as_arrays(memoryview(images), (3, 8, 8)), images)
