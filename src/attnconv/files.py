"""Write files completely or not at all, and read them with errors that name the file."""

import codecs
import csv
import difflib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import yaml

from attnconv.errors import UserError, line_of_user

LONGEST = 200  # characters of an error of another program in our messages
UNFINISHED = ".partial"
STREAMS = (Path("/dev"), Path("/dev/fd"))  # folders of devices


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it has either all of its new content or its old content.

    Raises:
        OSError: the file cannot be written; the old file is unchanged.
    """
    if _is_stream(path):
        with path.open("ab", buffering=0) as stream:
            stream.write(content)
        return
    given, path = path, Path(os.path.realpath(path))  # a link stays one
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)  # a full disk has no room for a partial file
        if isinstance(error, OSError):
            error.filename = str(given)  # the name that the caller knows
        raise
    # The rename is stored in the folder, which must also reach the disk.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_targets(*paths: Path) -> None:
    """Check that files can be written, all of them before the first of several is.

    Raises:
        FileError: one is a folder, or may not be written; the message names it.
    """
    for path in paths:
        if path.is_dir():
            raise FileError(f"{path} cannot be written: it is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise FileError(f"{path} cannot be written: you have no permission")
        if _is_stream(path):
            continue
        above = next(parent for parent in path.absolute().parents if parent.exists())
        if not above.is_dir():
            raise FileError(f"{path} cannot be written: {above} is not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise FileError(f"{path} cannot be written: you have no permission to write in {above}")


def _is_stream(path: Path) -> bool:
    """Return whether a path is a pipe or a device, such as /dev/stdout, which a file must not replace."""
    return path.exists() and (path.parent in STREAMS or path.is_fifo())


def forget_unfinished(folder: Path) -> None:
    """Remove partial files of an earlier process; call this only while holding the folder's lock."""
    for path in folder.glob(f"*{UNFINISHED}"):
        path.unlink()


# Offset, the bytes at that offset, and the file type in words.
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
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"%PDF", "a PDF document"),
)
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", flags=re.IGNORECASE)
# The first field is a small number (a version); a string or a message follows.
PROTOBUF = re.compile(rb"\x08[\x01-\x20][\x0a\x12\x1a\x22\x2a\x32\x3a\x42]")
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


# What readers of CSV, JSON, YAML, .npy and .npz raise for damaged content, and what is made from their content.
UNREADABLE = (
    ValueError, TypeError, AttributeError, ArithmeticError, LookupError, EOFError, MemoryError, RecursionError,
    NotImplementedError, TokenError, csv.Error, yaml.YAMLError, zipfile.BadZipFile,
)  # fmt: skip


class FileError(UserError):
    """A file that is missing, unreadable or not of the expected kind."""


def first_bytes(path: Path, count: int = 512) -> bytes:
    """Return the first bytes of a file.

    Raises:
        FileError: the file does not exist (similar names are listed), is a folder, a pipe or empty, or is not readable.
    """
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder, not a file")
        if path.is_symlink() and not path.exists():
            raise FileError(f"{path} is a link to {os.readlink(path)}, which does not exist")
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


def near(path: Path, but: Collection[str] = ()) -> str:
    """Return a suffix with similar names in the folder of `path`, or saying that the folder does not exist.

    Args:
        but: names that are no mistakes.
    """
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    names = [other.name for other in path.parent.iterdir() if other.name not in but]
    close = [name for name in names if name.startswith(f"{path.name}.")]  # without its suffix
    close = close[:3] or difflib.get_close_matches(path.name, names, n=3)
    return f"; {path.parent} has {', '.join(sorted(close))}" if close else ""


def kind_of(head: bytes) -> str:
    """Return the type of a file that begins with `head`, in words."""
    if not head:
        return "empty (0 bytes)"
    for offset, signature, kind in SIGNATURES:
        if head[offset:].startswith(signature):
            return kind
    if WEB_PAGE.match(head):
        return "a web page: the download failed"
    if not head.strip(b"\0"):
        return "filled with zeros, like an unfinished download"
    if head.startswith(b"\x80") and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a pickle, which can run any code when it is loaded"
    if PROTOBUF.match(head):
        return "a protocol buffer, as ONNX and TensorFlow write"
    if not CONTROL.search(head) and _is_utf8(head):
        line = head.decode(errors="ignore").strip().partition("\n")[0]
        return f"text, beginning {line[:40]!r}"
    return f"of an unknown type (it begins with the bytes {head[:8].hex(' ')})"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors from reading and parsing a file into one line that names it.

    Raises:
        FileError: the file is missing or unreadable, or lacks a key that the block looks up.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise FileError(f"{path} lacks {error}") from error
    except UNREADABLE as error:
        kind = kind_of(first_bytes(path))
        what = "has unexpected content" if kind.startswith("text") else f"is {kind}"
        if (kind, path.suffix) in (("a NumPy array", ".npy"), ("a zip archive", ".npz")):
            what = "is damaged"
        raise FileError(f"{path} {what} ({in_one_line(error)})") from error


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, 20 times as fast as OmegaConf.

    Raises:
        FileError: see `reading`; or a key occurs twice.
    """
    with reading(path):
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's loader, which by itself takes the last of several values of one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            where = f"line {node.start_mark.line + 1}"
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(map(str, twice))} twice ({where})")
        return dict(super().construct_mapping(node, deep))


def read_json(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the object in a .json file and check that it has these keys.

    Raises:
        FileError: see `reading`.
    """
    with reading(path):
        return _object(path.read_text("utf-8"), keys, parse_constant=_refuse)


def read_json_lines(
    path: Path, keys: Collection[str] = (), torn_end: bool = False, needed: bool = False
) -> list[dict[str, Any]]:
    """Return the objects in a .jsonl file, one per line, and check that each has these keys.

    Args:
        needed: refuse a file without lines.
        torn_end: another process may be writing the file: ignore a last line without a line end.

    Raises:
        FileError: see `reading`.
    """
    with reading(path):
        *lines, last = path.read_text("utf-8").split("\n")
        if needed and not lines and not last:
            raise ValueError("the file has no lines")
        return [_object(line, keys) for line in (lines if torn_end or not last else [*lines, last])]


def append_json_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append an object to a .jsonl file, on a line of its own even if the last one has no end.

    Raises:
        OSError: the file cannot be written; the error names it.
    """
    before = path.read_bytes() if path.is_file() else None
    torn = before is not None and before[-1:] not in (b"", b"\n")
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")
    except OSError as error:
        if before is not None:  # half a line would make the file unreadable
            os.truncate(path, len(before))
        error.filename = str(path)
        raise


def read_csv(path: Path, columns: Collection[str] = ()) -> list[dict[str, str]]:
    """Return the rows of a .csv file as dictionaries and check that they have these columns.

    Raises:
        FileError: see `reading`.
    """
    with reading(path), path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets add a mark
        rows = list(csv.DictReader(file, strict=True))
        for number, row in enumerate(rows, 1):
            for column in columns:
                row[column]  # a missing column is a KeyError
            if None in row or None in row.values():
                raise ValueError(f"row {number} has more or fewer cells than columns")
        if not rows:
            raise ValueError("the file has no rows")
        return rows


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as the text of a .csv file with these columns.

    Raises:
        ValueError: a row has another column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def in_one_line(error: BaseException) -> str:
    """Return an error's message in one line of at most LONGEST characters, or its type if it has none."""
    text = repr(error) if isinstance(error, KeyError) else str(error)
    if isinstance(error, SystemExit):
        text = "it exits the program"
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def with_line(error: BaseException) -> str:
    """Return an error's message in one line, followed by the line of the user's own code that it came from, if any."""
    line = line_of_user(error)
    return in_one_line(error) + (f" ({line})" if line else "")


def _object(text: str, keys: Collection[str], **options: Any) -> dict[str, Any]:
    found = json.loads(text, **options)
    if not isinstance(found, dict):
        raise ValueError(f"found a {type(found).__name__} instead of an object")
    for key in keys:
        found[key]  # a missing key is a KeyError
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"found {constant} instead of a number")
