"""The status of a run, read from its folder at any time, also while it runs."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnconv.errors import warn
from attnconv.files import FileError, reading
from attnconv.runs.records import Damaged, Unreadable, read_config, read_finished, read_lines, read_result

CELLS_FILE = "cells.json"  # of a sweep, in .sweeps/<start time>/
WORK = {"model": str, "scale": str, "precision": str, "images": float | int}  # in cells.json: attnconv.runs.estimate
STATUSES = ("done", "running", "interrupted", "unfinished", "failed", "damaged", "unreadable", "waiting")
BROKEN = ("damaged", "unreadable")  # statuses of runs that a sweep leaves alone


@dataclass(frozen=True)
class State:
    """The status of a run.

    Attributes:
        status: done; running; interrupted (by a signal or a full disk); unfinished (killed); failed;
            damaged; unreadable; waiting (not started).
        detail: the reason, or the process.
        epoch, epochs: number of recorded epochs, and of all epochs.
        result: the content of result.json; empty without one.
    """

    status: str
    detail: str
    epoch: int
    epochs: int
    result: dict[str, Any]

    @property
    def share_left(self) -> float:
        """Return the share of the epochs that is not recorded yet."""
        return 1 - self.epoch / self.epochs if self.epochs else 1.0


def read_state(folder: Path) -> State:
    """Return the status of the run in `folder`; `detail` says what is wrong with a damaged or unreadable one."""
    try:
        return _read_state(folder)
    except Damaged as damage:
        return State("unreadable" if isinstance(damage, Unreadable) else "damaged", damage.detail, 0, 0, {})
    except OSError as error:
        return State("unreadable", cannot_be_read(error), 0, 0, {})


def cannot_be_read(error: OSError) -> str:
    """Return which file or folder of a run cannot be read, and why."""
    return f"{Path(error.filename or 'a file').name} cannot be read: {error.strerror}"


def collected_folder(results: Path, run: str) -> Path:
    """Return the folder of that run in results/ (attnconv.report.collect)."""
    return results / "runs" / run


def collected_weights(results: Path, run: str) -> Path:
    """Return the weight file of that run in results/, if it exists (attnconv.report.weights)."""
    return results / "weights" / f"{run}.safetensors"


# Folders of a run, as attnconv.runs.records.name_of writes them.
FRACTION, SEED = re.compile(r"frac\d[\d.e+-]*"), re.compile(r"seed\d+")


def is_run_place(parts: Sequence[str]) -> bool:
    """Return whether a path ends like that of a run folder: frac0.1/seed0."""
    return len(parts) > 1 and bool(FRACTION.fullmatch(parts[-2]) and SEED.fullmatch(parts[-1]))


def find_folders(outputs: Path) -> list[Path]:
    """Return the run folders below `outputs`, sorted by name, or `outputs` itself if it is one."""
    parts = Path(os.path.abspath(outputs)).parts  # without `..`
    if is_run_place(parts):
        return [outputs]
    found = [place for place in _folders_below(outputs) if is_run_place((*parts, *Path(place).parts))]
    # A link may lead to a folder above it: each run counts once, under its shortest name.
    once = {os.path.realpath(outputs / place): place for place in sorted(found, key=len, reverse=True)}
    return sorted(outputs / place for place in once.values() if (outputs / place).is_dir())


def _folders_below(outputs: Path) -> Iterator[str]:
    """Yield the folders below `outputs`, without hidden ones and those in run folders; warn of unreadable ones."""

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            warn(f"{error.filename} cannot be read ({error.strerror}), so runs in it are left out")

    followed: set[str] = set()  # targets of links: a study may be on another disk, and links may form a circle
    for folder, names, _ in os.walk(outputs, onerror=unreadable, followlinks=True):
        paths = {name: os.path.join(folder, name) for name in sorted(names) if not name.startswith(".")}
        links = {name: os.path.realpath(path) for name, path in paths.items() if os.path.islink(path)}
        names[:] = [name for name in paths if name not in links or _is_new(links[name], folder, followed)]
        yield from (os.path.relpath(paths[name], outputs) for name in names)
        if FRACTION.fullmatch(os.path.basename(os.path.abspath(folder))):
            names.clear()


def _is_new(target: str, folder: str, followed: set[str]) -> bool:
    """Return whether a link in `folder` leads elsewhere than to a folder above it, for the first time; note it."""
    new = target not in followed and not Path(os.path.realpath(folder)).is_relative_to(target)
    followed.add(target)
    return new


def shown_name(folder: Path, outputs: Path) -> str:
    """Return the name under which commands show a folder that `find_folders` returned."""
    return (folder if folder == outputs else folder.relative_to(outputs)).as_posix()


def survey(outputs: Path, noted: dict[Path, dict[str, Any]]) -> dict[Path, State]:
    """Return the status of all runs below `outputs`, including those that a sweep recorded there but has not started.

    Args:
        noted: see `noted_cells`.
    """
    states = {folder: read_state(folder) for folder in find_folders(outputs)}
    shown = {os.path.realpath(folder): folder for folder in states}
    for noted_as, cell in noted.items():
        folder = shown.get(os.path.realpath(noted_as), noted_as)  # a link may give it another name
        if states.setdefault(folder, State("waiting", "", 0, 0, {})).status == "waiting" and "reason" in cell:
            states[folder] = State("failed", cell["reason"], 0, 0, {})  # before it had a folder
    return dict(sorted(states.items()))


def noted_cells(outputs: Path, errors: list[str] | None = None) -> dict[Path, dict[str, Any]]:
    """Return the entries that sweeps in `outputs` recorded for their runs, by folder.

    Later sweeps override earlier ones.

    Args:
        errors: gets a line for each damaged file, which is left out.

    Raises:
        FileError: a file is damaged, and there is no list for the error.
    """
    noted: dict[Path, dict[str, Any]] = {}
    for file in sorted(outputs.glob(f".sweeps/*/{CELLS_FILE}")):
        try:
            with reading(file):
                noted |= {outputs / cell["folder"]: _checked_cell(cell) for cell in json.loads(file.read_text("utf-8"))}
        except FileError as error:
            if errors is None:
                raise
            errors.append(str(error))
    return noted


def _checked_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a run in cells.json.

    Raises:
        KeyError, TypeError, ValueError: it is not what a sweep writes; older sweeps write no work.
    """
    work = cell.get("work")
    if work is not None and not (work.keys() == WORK.keys() and all(isinstance(work[key], WORK[key]) for key in WORK)):
        raise ValueError(f"work {work!r}")
    if not isinstance(cell.get("reason", ""), str):
        raise ValueError(f"reason {cell['reason']!r}")
    return cell


def _read_state(folder: Path) -> State:
    owner = running_process(folder)
    if not (folder / "config.yaml").exists() and not (folder / "result.json").exists():
        # A run that has just started has its folder, but no configuration in it yet.
        return State("running" if owner else "waiting", owner or "", 0, 0, {})
    result = read_result(folder)
    if result is not None and result["status"] == "done" and not owner:
        config, result, metrics = read_finished(folder)
        return State("done", "", len(metrics), config["epochs"], result)
    epochs, recorded = read_config(folder)["epochs"], len(read_lines(folder, "metrics.jsonl"))
    if owner:
        return State("running", owner, recorded, epochs, result or {})
    if result is None:
        return State("unfinished", "killed before it ended", recorded, epochs, {})
    return State(result["status"], result.get("reason", ""), recorded, epochs, result)


def running_process(folder: Path) -> str | None:
    """Return the process that holds the folder's lock, in words, or None."""
    lock = folder / ".lock"
    if not lock.exists():
        return None
    with lock.open("rb") as file:
        try:
            # The run's own lock is exclusive. A shared lock does not block other readers, and needs no write
            # permission.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            pass
    try:
        return (folder / ".owner").read_text("utf-8").strip()
    except FileNotFoundError:
        return "a process that has just started"
