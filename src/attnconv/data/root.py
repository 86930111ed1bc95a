"""Whether the data is where data.root says: absent, a level off and damaged are different things.

Imports no torch, so that a wrong place is named at once.
"""

from pathlib import Path

from attnconv.config import DataConfig
from attnconv.errors import DataError

ARRAYS = tuple(f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels"))
FROM_FOLDERS = ("cifar10", "arrays")  # the values of data.source that read data.root
ARCHIVE, BATCHES = "cifar-10-python.tar.gz", "cifar-10-batches-py"  # of CIFAR-10, as its authors name them


def check_root(config: DataConfig) -> None:
    """Check that data.root is the folder that holds the data, if there is any near it.

    Raises:
        DataError: it is a file, no folder, or the data is a level higher or lower; the message says what to type.
    """
    if config.source not in FROM_FOLDERS:
        return
    if not config.root:
        raise DataError("data.root is empty: set data.root=FOLDER, the folder of the images")
    root = Path(config.root).expanduser()
    if root.is_file():
        raise DataError(f"data.root={root} is a file; set data.root={root.parent}, the folder that holds it")
    if config.source == "arrays" and not root.is_dir():
        files = ", ".join(f"{name}.npy" for name in ARRAYS)
        raise DataError(f"the folder {root} does not exist; data.root must be the folder of {files}")
    if holds_data(root, config.source) or not root.is_dir():
        return
    for place, off in ((root.parent, "up"), *((child, "down") for child in sorted(root.iterdir()))):
        if (off == "down" or _belongs_to(root)) and holds_data(place, config.source):
            raise DataError(f"the images are not in data.root={root}, but one level {off}; set data.root={place}")
    if config.source == "cifar10" and _belongs_to(root):
        raise DataError(f"data.root={root} holds batches that belong into a folder of it; move them into {BATCHES}/")


def holds_data(folder: Path, source: str) -> bool:
    """Whether a folder has some of the files that the source reads."""
    names = [f"{name}.npy" for name in ARRAYS] + ([ARCHIVE, BATCHES] if source == "cifar10" else [])
    return any((folder / name).exists() for name in names)


def files_of(config: DataConfig) -> dict[str, list[int]]:
    """The files that `config` would read: by name, bytes and the time of the last change, in nanoseconds.

    Who finds them unchanged need not read them again.
    """
    if config.source not in FROM_FOLDERS:
        return {}
    root = Path(config.root).expanduser()
    files = [*(root / f"{name}.npy" for name in ARRAYS), root / ARCHIVE, *sorted((root / BATCHES).glob("*"))]
    found = {file.relative_to(root).as_posix(): file.stat() for file in files if file.is_file()}
    # Not the time of modification, which copying may keep.
    return {name: [status.st_size, status.st_ctime_ns] for name, status in found.items()}


def _belongs_to(folder: Path) -> bool:
    """Whether a folder is what the archive unpacks to."""
    return folder.resolve().name == BATCHES or (folder / "data_batch_1").exists()
