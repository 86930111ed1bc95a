"""Check whether the data in data.root is present, missing, or misplaced by one folder level.

This module does not import torch, so that a wrong path is reported at once.
"""

import os
from pathlib import Path

from attnconv.config import DataConfig
from attnconv.errors import DataError

ARRAYS = tuple(f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels"))
FROM_FOLDERS = ("cifar10", "arrays")  # values of data.source that read data.root
ARCHIVE, BATCHES = "cifar-10-python.tar.gz", "cifar-10-batches-py"  # file names of CIFAR-10's authors


def check_root(config: DataConfig) -> None:
    """Check that data.root is the folder that holds the data, and not the folder above or below it.

    Raises:
        DataError: data.root is a file or does not exist, or the data is one level up or down; the message says what to
            set.
    """
    if config.source not in FROM_FOLDERS:
        return
    if not config.root:
        raise DataError("data.root is empty: set data.root=FOLDER, the folder of the images")
    root = Path(os.path.expanduser(config.root))
    if root.is_file():
        raise DataError(f"data.root={root} is a file; set data.root={root.parent}, the folder that holds it")
    if config.source == "arrays" and not root.is_dir():
        files = ", ".join(f"{name}.npy" for name in ARRAYS)
        raise DataError(f"the folder {root} does not exist; data.root must be the folder of {files}")
    if root.is_dir() and not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"you have no permission to read the folder data.root={root}")
    if holds_data(root, config.source) or not root.is_dir():
        return
    below = sorted(child for child in root.iterdir() if not child.name.startswith("."))  # a download may be hidden
    for place, off in ((root.parent, "up"), *((child, "down") for child in below)):
        if (off == "down" or _belongs_to(root)) and holds_data(place, config.source):
            raise DataError(f"the images are not in data.root={root}, but one level {off}; set data.root={place}")
    if config.source == "cifar10" and _belongs_to(root):
        raise DataError(f"data.root={root} holds batches that belong in a subfolder; move them into {BATCHES}/")


def move_root(config: DataConfig, root: str | Path) -> None:
    """Let a configuration read its images from another folder.

    Raises:
        DataError: it does not read its images from a folder.
    """
    if config.source not in FROM_FOLDERS:
        raise DataError(f"the images of data={config.name} are not read from a folder: leave out the folder {root}")
    config.root = os.path.expanduser(root)


def holds_data(folder: Path, source: str) -> bool:
    """Return whether a folder has some of the files that the source reads."""
    names = [f"{name}.npy" for name in ARRAYS] + ([ARCHIVE, BATCHES] if source == "cifar10" else [])
    return any(os.path.exists(folder / name) for name in names)  # False in a folder that cannot be read


def files_of(config: DataConfig) -> dict[str, list[int]]:
    """Return the files that `config` would read: size in bytes and time of the last change in nanoseconds, by name.

    If these are unchanged, the files need not be read again.
    """
    if config.source not in FROM_FOLDERS:
        return {}
    root = Path(os.path.expanduser(config.root))
    files = [*(root / f"{name}.npy" for name in ARRAYS), root / ARCHIVE, *sorted((root / BATCHES).glob("*"))]
    found = {file.relative_to(root).as_posix(): file.stat() for file in files if file.is_file()}
    # Not the modification time, which copying may preserve.
    return {name: [status.st_size, status.st_ctime_ns] for name, status in found.items()}


def _belongs_to(folder: Path) -> bool:
    """Return whether a folder has the name of one that the archive unpacks to."""
    return folder.resolve().name == BATCHES or (folder / "data_batch_1").exists()
