"""Files: written whole or not at all; whatever is wrong with one that is read is a line that names it."""

import codecs
import csv
import difflib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from attnconv.errors import UserError

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
    except OSError as error:
        unfinished.unlink(missing_ok=True)  # a full disk has no room for half a file
        error.filename = str(path)  # which is what the caller knows
        raise
    # The rename itself is in the folder, which has to reach the disk as well.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def forget_unfinished(folder: Path) -> None:
    """Remove what was being written when an earlier process died; only for the process that has the folder."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink()


# Offset, the bytes there, and what a file is that has them.
SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: git lfs pull fetches it"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
    (0, b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (0, b"BZh", "compressed with bzip2: unpack it first"),
    (0, b"\xfd7zXZ\x00", "compressed with xz: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"PK\3\4", "a zip archive"),
)
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", flags=re.IGNORECASE)
# Its first field is a small number (a version), and a string or a message follows.
PROTOBUF = re.compile(rb"\x08[\x01-\x20][\x0a\x12\x1a\x22\x2a\x32\x3a\x42]")
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class FileError(UserError):
    """A file from outside that is missing, unreadable, or not what it should be."""


def first_bytes(path: Path, count: int = 512) -> bytes:
    """How a file begins.

    Raises:
        FileError: it does not exist (near names are listed), is a folder, a pipe or empty, or may not be read.
    """
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder, not a file")
        if not path.exists():
            raise FileError(f"{path} does not exist{near(path)}")
        if not path.is_file():  # opening a pipe would wait for its other end
            raise FileError(f"{path} is a pipe or a device, not a file")
        with path.open("rb") as file:
            head = file.read(count)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise FileError(f"{path} is {kind_of(head)}")
    return head


def near(path: Path) -> str:
    """A suffix with what exists instead of `path`: similar names in its folder, or that there is no such folder."""
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    names = [other.name for other in path.parent.iterdir()]
    close = [name for name in names if name.startswith(f"{path.name}.")]  # a suffix was left out
    close = close[:3] or difflib.get_close_matches(path.name, names, n=3)
    return f"; {path.parent} has {', '.join(sorted(close))}" if close else ""


def kind_of(head: bytes) -> str:
    """What a file is that begins with `head`, in words."""
    if not head:
        return "empty (0 bytes)"
    for offset, signature, kind in SIGNATURES:
        if head[offset:].startswith(signature):
            return kind
    if WEB_PAGE.match(head):
        return "a web page: the download did not give the file"
    if not head.strip(b"\0"):
        return "zeros from its first byte on, as an unfinished download is"
    if head.startswith(b"\x80") and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle, which could run any code when it is read"
    if PROTOBUF.match(head):
        return "a protocol buffer, as ONNX and TensorFlow write"
    if not CONTROL.search(head) and _is_utf8(head):
        line = head.decode(errors="ignore").strip().partition("\n")[0]
        return f"text, beginning {line[:40]!r}"
    return f"of an unknown kind (it begins with the bytes {head[:8].hex(' ')})"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading and using a table from outside raises into one line that names the file.

    Raises:
        FileError: it is missing or unreadable, or lacks what the block looks up in it.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise FileError(f"{path} lacks {error}") from error
    except (ValueError, TypeError, AttributeError, EOFError, csv.Error, yaml.YAMLError, RecursionError) as error:
        kind = kind_of(first_bytes(path))
        what = "has content that does not belong there" if kind.startswith("text") else f"is {kind}"
        if kind == "a NumPy array" and path.suffix == ".npy":
            what = "is damaged"
        raise FileError(f"{path} {what} ({in_one_line(error)})") from error


def read_yaml(path: Path) -> Any:
    """The content of a YAML file that OmegaConf wrote, in a twentieth of the time that OmegaConf takes.

    Raises:
        FileError: see `reading`.
    """
    with reading(path):
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_json(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """The object in a .json file, which has these keys.

    Raises:
        FileError: see `reading`.
    """
    with reading(path):
        return _object(path.read_text(), keys)


def read_json_lines(path: Path, keys: Collection[str] = (), torn_end: bool = False) -> list[dict[str, Any]]:
    """The objects in a .jsonl file, one a line, each of which has these keys.

    Args:
        torn_end: the file may be in the middle of being written: leave out a last line without its end.

    Raises:
        FileError: see `reading`.
    """
    with reading(path):
        *lines, last = path.read_text().split("\n")
        return [_object(line, keys) for line in (lines if torn_end or not last else [*lines, last])]


def read_csv(path: Path, columns: Collection[str] = ()) -> list[dict[str, str]]:
    """The rows of a .csv file as dictionaries, which have these columns and a cell in each.

    Raises:
        FileError: see `reading`.
    """
    with reading(path), path.open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
        for number, row in enumerate(rows, 1):
            for column in columns:
                row[column]  # a missing column is a KeyError
            if None in row or None in row.values():
                raise ValueError(f"row {number} has not one cell per column")
        if not rows:
            raise ValueError("it has no row")
        return rows


def in_one_line(error: Exception) -> str:
    """An error's message without line breaks, cut after 200 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _object(text: str, keys: Collection[str]) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} stands where an object should")
    for key in keys:
        found[key]  # a missing key is a KeyError
    return found
