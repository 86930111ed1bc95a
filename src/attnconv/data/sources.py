"""Sources of images: arrays on disk, the CIFAR-10 archive or its download, digits, and synthetic pairs of marks.

Each source returns the same four arrays and a content hash, so later code does not depend on the source.
"""

import hashlib
import os
import tempfile
import urllib.request
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import torch

from attnconv.config import DataConfig
from attnconv.data.images import how_to_convert
from attnconv.data.root import ARRAYS, FROM_FOLDERS, check_root, files_of, holds_data
from attnconv.data.synthetic_pairs import SIDE, make_pairs
from attnconv.errors import DataError, require_memory
from attnconv.files import UNREADABLE, first_bytes, in_one_line, kind_of, near

PAIR_BYTES = 3 * SIDE * SIDE * 9  # of one image: int64 while it is drawn, and uint8 afterwards


@dataclass(frozen=True)
class Images:
    """The images (N, H, W, C) uint8 and labels (N,) int64 in 0..classes-1 of one split."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Source:
    """A data set before splitting. `sha256` covers shapes, types and bytes of all four arrays."""

    train: Images
    test: Images
    classes: int
    origin: str
    sha256: str


def load_source(config: DataConfig, device: torch.device) -> Source:
    """Read or generate the data set that `config` describes.

    Raises:
        DataError: it is missing or damaged, or has a wrong shape, type or label range.
    """
    check_root(config)
    root = Path(os.path.expanduser(config.root))
    if config.source == "pairs":
        images = config.train_images, config.test_images
        lower = "data.train_images (now {}), data.test_images (now {})".format(*images)
        require_memory(PAIR_BYTES * sum(images), f"{sum(images):,} images", lower)
        pairs = make_pairs(config.task, config.distance, config.clutter, *images, config.images_seed, device)
        return _checked(pairs, f"pairs of marks {config.distance} pixels apart, class: {config.task}")
    if config.source == "digits":
        return _checked(_digits(), "scikit-learn digits")
    if config.source == "arrays" or any(os.path.lexists(root / f"{name}.npy") for name in ARRAYS):
        found = _checked(_read_arrays(root), f"arrays in {root}")
        # It may be a part of CIFAR-10. The results of another data set would be called those of CIFAR-10.
        if config.source == "cifar10" and (found.train.images.shape[1:], found.classes) != ((32, 32, 3), 10):
            raise DataError(f"{root} does not hold CIFAR-10, which has 32x32x3 pixels and 10 classes: set data=arrays")
        return found
    return _checked(_cifar10_archive(root), f"CIFAR-10 archive in {root}")


def load_test(config: DataConfig, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return test images uint8 (N, H, W, C) and labels (N,) from a folder.

    Args:
        config: the run's; the folder may hold its data set in any format, or only the two test arrays.

    Raises:
        DataError: the folder holds neither, or they are damaged or have a wrong shape, type or label range.
    """
    folder = Path(os.path.expanduser(folder))
    images, labels = (folder / f"test_{kind}.npy" for kind in ("images", "labels"))
    has_images, has_labels = os.path.isfile(images), os.path.isfile(labels)  # false for names that no file can have
    if has_images != has_labels:
        there, missing = (images, labels) if has_images else (labels, images)
        raise DataError(f"{folder} has {there.name}, but no {missing.name}")
    if has_images:
        found = _read_array(images), _read_array(labels)
        _check_split("test", *found, origin=f"arrays in {folder}")
        return found
    if not os.path.isdir(folder):
        is_file = f"{folder} is a file; choose {folder.parent}, the folder that holds it"
        raise DataError(is_file if os.path.exists(folder) else f"the folder {folder} does not exist{near(folder)}")
    if config.source not in FROM_FOLDERS or not holds_data(folder, config.source):
        raise DataError(f"{folder} has no {images.name} and {labels.name}{near(images)}")
    source = load_source(replace(config, root=str(folder)), torch.device("cpu"))
    return source.test.images, source.test.labels


def data_hash(config: DataConfig) -> str:
    """Return the content hash of the data set that `config` describes.

    Hashes of files are cached until the files change.

    Raises:
        DataError: see `load_source`.
    """
    stamp = tuple((name, *status) for name, status in files_of(config).items())
    return _hash_of_files(config.source, os.path.abspath(os.path.expanduser(config.root)), stamp)


@cache
def _hash_of_files(source: str, root: str, stamp: tuple[tuple[str | int, ...], ...]) -> str:
    return load_source(DataConfig(name=source, source=source, root=root), torch.device("cpu")).sha256


def _read_arrays(root: Path) -> dict[str, np.ndarray]:
    files = [f"{name}.npy" for name in ARRAYS]
    missing = [file for file in files if not os.path.lexists(root / file)]
    if missing:
        raise DataError(
            f"{root} lacks {', '.join(missing)}: images are uint8 N x H x W x 3, and labels integers 0..classes-1; "
            f"save image files as such arrays with numpy.save{near(root / missing[0], files)}"
        )
    return {name: _read_array(root / f"{name}.npy") for name in ARRAYS}


def _read_array(path: Path) -> np.ndarray:
    if not path.is_file():
        first_bytes(path)  # says that it is a folder, a pipe, or a link to nothing
    try:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
            more = file.read(1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        kind = kind_of(head)
        reason = in_one_line(error) if kind == "a NumPy array" else f"it is {kind}"
        raise DataError(f"{path} is not a readable .npy array: {reason}") from error
    if more:
        raise DataError(f"{path} holds more than one array: join them with np.concatenate")
    return np.asarray(array)


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Digits are stored as 0..16; scale them to 0..255, the range of the other sources.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    is_test = np.arange(len(images)) % 5 == 4
    return {
        "train_images": images[~is_test],
        "train_labels": digits.target[~is_test],
        "test_images": images[is_test],
        "test_labels": digits.target[is_test],
    }


def _cifar10_archive(root: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, check_md5

    archive, batches = root / CIFAR10.filename, root / CIFAR10.base_folder
    if archive.is_file() and not check_md5(str(archive), CIFAR10.tgz_md5):
        raise DataError(f"{archive} is damaged: its md5 is not {CIFAR10.tgz_md5}; delete it to download it again")
    files = (*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"]))
    damaged = [name for name, md5 in files if not check_integrity(str(batches / name), md5)]
    if damaged and not archive.is_file():
        if batches.exists():
            raise DataError(
                f"{batches} is damaged: {', '.join(damaged)} are missing or not as published; "
                "delete that folder to download it again"
            )
        _require_download(CIFAR10.url, root, CIFAR10.filename)
    try:
        return _unpacked(root, archive) if damaged else _read_batches(root)
    except (RuntimeError, OSError) as error:
        raise DataError(f"CIFAR-10 in {root} cannot be read: {error}") from error


def _unpacked(root: Path, archive: Path) -> dict[str, np.ndarray]:
    """Return the images of the archive, downloaded if it does not exist, and keep its files in `root`.

    It is unpacked into a folder of its own, and its files are moved, because other processes may do the same.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive, extract_archive

    if not archive.is_file():
        root.mkdir(parents=True, exist_ok=True)
    keeps = os.access(root, os.W_OK | os.X_OK)
    with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root if keeps else None) as place:
        if archive.is_file():
            extract_archive(str(archive), place)
        else:
            download_and_extract_archive(CIFAR10.url, place, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        found = _read_batches(Path(place))
        for file in sorted(Path(place).rglob("*")) if keeps else ():
            if file.is_file():
                target = root / file.relative_to(place)
                target.parent.mkdir(exist_ok=True)
                file.replace(target)
    return found


def _read_batches(root: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR10

    train, test = (CIFAR10(str(root), train=train) for train in (True, False))
    return {
        "train_images": train.data,
        "train_labels": np.asarray(train.targets),
        "test_images": test.data,
        "test_labels": np.asarray(test.targets),
    }


def _require_download(url: str, root: Path, filename: str, timeout: float = 3.0) -> None:
    """Fail at once, with a list of solutions, where torchvision would wait for a missing network."""
    request = urllib.request.Request(url, method="HEAD")
    answers: list[OSError | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
            answers.append(None)
        except OSError as error:
            answers.append(error)

    # In a thread, because urlopen's timeout does not cover the name lookup. Python does not wait for it at exit.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    error = answers[0] if answers else TimeoutError(f"no answer within {timeout:g} s")
    if error is not None:
        raise DataError(
            f"CIFAR-10 is not in {root} and cannot be downloaded ({error}). Three solutions: "
            f"(1) put {filename} into {root}; "
            f"(2) put {', '.join(f'{name}.npy' for name in ARRAYS)} there, uint8 N x 32 x 32 x 3 and labels 0..9; "
            f"(3) set data.root=FOLDER to where one of these already is"
        ) from error


def _checked(arrays: dict[str, np.ndarray], origin: str) -> Source:
    """Check shapes, types and labels, and hash the content."""
    for split in ("train", "test"):
        _check_split(split, arrays[f"{split}_images"], arrays[f"{split}_labels"], origin)
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        shapes = " and ".join(str(arrays[f"{split}_images"].shape[1:]) for split in ("train", "test"))
        raise DataError(f"{origin}: train and test images differ in shape: {shapes}")
    classes = int(arrays["train_labels"].max()) + 1
    if arrays["test_labels"].max() >= classes:
        raise DataError(
            f"{origin}: test labels go up to {arrays['test_labels'].max()}, train labels only to {classes - 1}"
        )
    absent = np.setdiff1d(np.arange(classes), arrays["train_labels"])
    if len(absent):
        start = "; labels start at 0: subtract 1" if absent.tolist() == [0] else ""
        raise DataError(f"{origin}: class {absent[0]} has no training image, but labels go up to {classes - 1}{start}")
    if classes == 1:
        raise DataError(f"{origin}: all training labels are 0; classification needs at least two classes")
    digest = hashlib.sha256()
    for name in ARRAYS:
        array = arrays[name] = np.ascontiguousarray(arrays[name], np.uint8 if name.endswith("images") else np.int64)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    splits = {s: Images(arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in ("train", "test")}
    return Source(**splits, classes=classes, origin=origin, sha256=digest.hexdigest())


def _check_split(split: str, images: np.ndarray, labels: np.ndarray, origin: str) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{origin}: {split}_images must be uint8 N x H x W x 3 (or 1), not {images.dtype} {images.shape}"
            + how_to_convert(images)
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{origin}: {split}_labels must be {len(images)} integers, one per image, not {labels.dtype} {labels.shape}"
            + _how_to_flatten(labels, len(images))
        )
    if len(labels) == 0:
        raise DataError(f"{origin}: the {split} split is empty")
    if images.size == 0:
        raise DataError(f"{origin}: {split}_images have no pixels: their shape is {images.shape}")
    if labels.min() < 0 or labels.max() >= 1000:
        raise DataError(
            f"{origin}: {split}_labels must lie in 0..classes-1, at most 999; they span {labels.min()}..{labels.max()}"
        )


def _how_to_flatten(labels: np.ndarray, images: int) -> str:
    """Return how to make labels from an array of another shape or type; empty if it is unclear."""
    if labels.shape == (images, 1):
        return "; use labels[:, 0]"
    if labels.ndim == 2 and len(labels) == images:
        return "; if these are one-hot, use labels.argmax(1)"
    return "; use labels.astype(int)" if labels.shape == (images,) and labels.dtype.kind in "fb" else ""
