"""Convert images from files, PIL images or arrays to arrays of the size and channels that a network takes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from attnconv.errors import DataError
from attnconv.files import first_bytes, in_one_line, kind_of

MODES = {1: "L", 3: "RGB"}  # PIL's names, by channels
# PIL modes that can be converted to either.
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")

Images = Any  # a path, a PIL image, a list of these, or uint8 (N, H, W, C) or (H, W, C)


def as_arrays(images: Images, image_shape: tuple[int, int, int], resize: bool = False) -> np.ndarray:
    """Return images as uint8 (N, H, W, C).

    Args:
        images: a path, a PIL image, a list of these, or an array or tensor uint8 (N, H, W, C) or (H, W, C).
        image_shape: (C, H, W) that the network takes.
        resize: convert other sizes and modes: transparent pixels become white; crop to the network's
            aspect ratio around the center, then scale.

    Raises:
        DataError: an image has another size or mode and `resize` is false, or it is not an image.
        FileError: a file does not exist or cannot be read.
    """
    if isinstance(images, memoryview):  # whose parts cannot be looked at if it has several axes
        images = np.asarray(images)
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if isinstance(images, Sequence) and all(isinstance(one, str | os.PathLike | Image.Image) for one in images):
        if not images:
            raise DataError("there are no images")
        if "" in images:  # the path of nothing is the working folder
            raise DataError("the path of an image is empty (an unset variable?)")
        # One at a time: photos are large before they are scaled.
        opened = (_upright(one) if isinstance(one, Image.Image) else open_image(Path(one)) for one in images)
        names = ["the image" if isinstance(one, Image.Image) else str(one) for one in images]
    else:
        array = _checked(_as_array(images), image_shape)
        if array.shape[1:] == (*image_shape[1:], image_shape[0]):
            return np.ascontiguousarray(array)  # PyTorch does not support negative strides
        opened = (_from_array(one) for one in array)
        names = [f"image {index}" for index in range(len(array))]
    return np.stack([_fitted(one, name, image_shape, resize) for one, name in zip(opened, names, strict=True)])


def open_image(path: Path) -> Image.Image:
    """Read an image file and apply its EXIF orientation.

    Raises:
        FileError: it does not exist or cannot be read; DataError: it is not an image.
    """
    path = Path(os.path.expanduser(path))
    head = first_bytes(path)
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError as error:
        kind = kind_of(head)
        if kind.endswith(" image"):
            raise DataError(f"{path} is {kind} that is damaged or of a kind that Pillow cannot read") from error
        raise DataError(f"{path} is not an image: it is {kind}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} has too many pixels ({in_one_line(error)})") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} is damaged, or not an image ({in_one_line(error)})") from error


def _upright(image: Image.Image) -> Image.Image:
    """Return an opened image with its EXIF orientation applied."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the image is damaged, or closed ({in_one_line(error)})") from error


def _as_array(images: Any) -> np.ndarray:
    """Return arrays or tensors, on any device, or a list of them, as one array."""
    try:
        if isinstance(images, list | tuple):
            return np.stack([_as_array(one) for one in images]) if images else np.asarray(images)
        if isinstance(images, Image.Image):
            images = _upright(images)
            if images.mode not in ("L", "RGB", "RGBA"):
                raise DataError(f"a list of arrays has an image of mode {images.mode}; convert it to RGB or L")
        return np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"these are not images of one size: {in_one_line(error)}") from error


def _checked(array: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return the array with four axes.

    Raises:
        DataError: type or shape is wrong.
    """
    channels, height, width = image_shape
    wanted = f"images must be uint8 (N, {height}, {width}, {channels}) or one ({height}, {width}, {channels})"
    if array.dtype != np.uint8:
        raise DataError(f"{wanted}, not {array.dtype} {array.shape}{how_to_convert(array)}")
    array = array[None] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[3] not in (1, 3, 4) and array.shape[1] in (1, 3):
        raise DataError(f"{wanted}, not {array.shape}{how_to_convert(array)}")
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in array.shape:
        raise DataError(f"{wanted}, not {array.shape}")
    return array


def how_to_convert(images: np.ndarray) -> str:
    """Return how to make uint8 images (N, H, W, 1 or 3) from an array of another kind; empty if it is unclear."""
    steps = []
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3):
        steps.append("put channels last: images.transpose(0, 2, 3, 1)")
    elif images.ndim == 4 and images.shape[3] == 4:
        steps.append("drop the alpha channel: images[..., :3]")
    elif images.ndim == 3 and images.shape[2] not in (1, 3):
        steps.append("add an axis of channels: images[..., None]")
    if np.issubdtype(images.dtype, np.floating) or images.dtype == bool:
        steps.append("scale values to 0..255 and convert them with .astype('uint8')")
    elif images.dtype == np.int8:
        steps.append("use .view('uint8') if unsigned bytes were read as signed ones, or add 128 if 128 was subtracted")
    elif images.dtype.itemsize > 1 and images.dtype.kind in "iu":
        steps.append("convert values in 0..255 with .astype('uint8'), and divide 16-bit ones by 257 before")
    return "; " + "; ".join(steps) if steps else ""


def _from_array(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _fitted(image: Image.Image, name: str, image_shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """Return one image as (H, W, C).

    Raises:
        DataError: size or mode is wrong and `resize` is false, or a channel has more than 8 bits.
    """
    channels, height, width = image_shape
    mode = MODES[channels]
    if 0 in image.size:
        raise DataError(f"{name} is {image.width}x{image.height}: it has no pixels")
    if image.mode not in EIGHT_BITS:
        raise DataError(f"{name} has more than 8 bits per channel (mode {image.mode}); save it as 8-bit {mode}")
    if (image.mode, image.size) != (mode, (width, height)):
        if not resize:
            raise DataError(
                f"{name} is {image.width}x{image.height} {image.mode}, and the network takes {width}x{height} {mode}; "
                "resize=True converts it (--resize on the command line)"
            )
        if image.mode == "LAB":
            image = image.convert("RGB")  # Pillow converts it to nothing else
        elif image.has_transparency_data:  # whose color is often black
            opaque = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
        image = ImageOps.fit(image.convert(mode), (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(height, width, channels)
