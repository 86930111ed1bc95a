"""Files of a run folder: written whole or not at all, whatever crashes, and read fast."""

import os
from pathlib import Path
from typing import Any

import yaml

UNFINISHED = ".partial"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that after any crash it is there with all of its content, or as it was before.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)  # a full disk has no room for half a file
        raise
    # The rename itself is in the folder, which has to reach the disk as well.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file that OmegaConf wrote, in a twentieth of the time that OmegaConf takes.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read.
    """
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def forget_unfinished(folder: Path) -> None:
    """Remove what was being written when an earlier process died; only for the process that has the folder."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink()
