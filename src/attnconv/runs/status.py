"""How a run stands, read from its folder alone and at any time, while it is being written too."""

import fcntl
import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnconv.files import reading
from attnconv.runs.records import Damaged, read_config, read_finished, read_lines, read_result

CELLS_FILE = "cells.json"  # of a sweep, in .sweeps/<time of its start>/
STATUSES = ("done", "running", "interrupted", "unfinished", "failed", "damaged", "waiting")


@dataclass(frozen=True)
class State:
    """How a run stands.

    Attributes:
        status: done; running; interrupted (it stopped itself); unfinished (it was killed); failed; damaged; waiting
            (nobody has begun).
        detail: why, or who.
        epoch, epochs: epochs recorded, and to be trained.
        result: of result.json; empty without one.
    """

    status: str
    detail: str
    epoch: int
    epochs: int
    result: dict[str, Any]

    @property
    def share_left(self) -> float:
        """Of the epochs, what is not recorded yet."""
        return 1 - self.epoch / self.epochs if self.epochs else 1.0


def look(folder: Path) -> State:
    """The state of the run in `folder`; what is wrong with a damaged one is in `detail`."""
    try:
        return _look(folder)
    except Damaged as damage:
        return State("damaged", damage.detail, 0, 0, {})


def collected_folder(results: Path, run: str) -> Path:
    """Where results/ keeps the run of that name (attnconv.report.collect)."""
    return results / "runs" / run


def collected_weights(results: Path, run: str) -> Path:
    """Where results/ keeps the weights of the run of that name, if it does (attnconv.report.weights)."""
    return results / "weights" / f"{run}.safetensors"


def find_folders(outputs: Path) -> list[Path]:
    """The run folders that there are below `outputs`, in order of their names."""
    # Not Path.glob, which does not follow links: a study may lie on another disk.
    found = glob.glob("**/frac*/seed*", root_dir=outputs, recursive=True)
    return sorted(outputs / place for place in found if (outputs / place).is_dir())


def survey(outputs: Path, noted: dict[Path, dict[str, Any]]) -> dict[Path, State]:
    """The state of every run below `outputs`, those included that a sweep noted there and nobody has begun.

    Args:
        noted: see `noted_cells`.
    """
    states = {folder: look(folder) for folder in find_folders(outputs)}
    for folder, cell in noted.items():
        if states.setdefault(folder, State("waiting", "", 0, 0, {})).status == "waiting" and "reason" in cell:
            states[folder] = State("failed", cell["reason"], 0, 0, {})  # before it had a folder
    return dict(sorted(states.items()))


def noted_cells(outputs: Path) -> dict[Path, dict[str, Any]]:
    """What the sweeps started in `outputs` noted of their runs, by folder: what a later start says holds.

    Raises:
        FileError: it is damaged.
    """
    noted: dict[Path, dict[str, Any]] = {}
    for file in sorted(outputs.glob(f".sweeps/*/{CELLS_FILE}")):
        with reading(file):
            noted |= {outputs / cell["folder"]: cell for cell in json.loads(file.read_text())}
    return noted


def _look(folder: Path) -> State:
    owner = who_is_at_work(folder)
    if not (folder / "config.yaml").exists() and not (folder / "result.json").exists():
        # A run that has just begun has its folder, and no configuration in it yet.
        return State("running" if owner else "waiting", owner or "", 0, 0, {})
    config, result = read_config(folder), read_result(folder)
    epochs = config["epochs"]
    if owner:
        return State("running", owner, _epochs_recorded(folder), epochs, result or {})
    if result is None:
        return State("unfinished", "killed before it ended", _epochs_recorded(folder), epochs, {})
    if result["status"] == "done":
        read_finished(folder)
    return State(result["status"], result.get("reason", ""), _epochs_recorded(folder), epochs, result)


def who_is_at_work(folder: Path) -> str | None:
    """The process that holds the folder's lock, in words; None if nobody does."""
    lock = folder / ".lock"
    if not lock.exists():
        return None
    with lock.open() as file:
        try:
            # The run's own lock is exclusive; a shared one stands in no other looker's way, and needs no permission
            # to write.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            pass
    try:
        return (folder / ".owner").read_text().strip()
    except FileNotFoundError:
        return "a process that has just begun"


def _epochs_recorded(folder: Path) -> int:
    return len(read_lines(folder, "metrics.jsonl"))
