"""How a run stands, read from its folder alone and at any time, while it is being written too."""

import fcntl
import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from attnconv.config import up_to_date
from attnconv.files import read_yaml, reading
from attnconv.runs.folder import ACCURACIES, FORMAT, name_of

CELLS_FILE = "cells.json"  # of a sweep, in .sweeps/<time of its start>/
# What result.json of every finished run says, of any version.
RESULT_KEYS = ("name", "model", "recipe", "scale", "data", "fraction", "seed", "test_acc", "dirty", "versions")
STATUSES = ("done", "running", "interrupted", "unfinished", "failed", "damaged", "waiting")


class Damaged(Exception):
    """A run folder that does not hold what a run writes; the message says what is wrong."""


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
        return State("damaged", str(damage), 0, 0, {})


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


def survey(outputs: Path) -> dict[Path, State]:
    """The state of every run below `outputs`, those included that a sweep noted there and nobody has begun.

    Raises:
        FileError: what a sweep noted is damaged.
    """
    states = {folder: look(folder) for folder in find_folders(outputs)}
    for folder, cell in noted_cells(outputs).items():
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


def read_finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """config.yaml, result.json and the lines of metrics.jsonl of a finished run, checked against each other.

    Raises:
        Damaged: one is missing or unreadable, or they contradict each other.
    """
    config, result = read_config(folder), read_result(folder)
    if result is None or result["status"] != "done":
        raise Damaged("the run is not done")
    missing = [key for key in RESULT_KEYS if key not in result]
    if missing:
        raise Damaged(f"result.json lacks {', '.join(missing)}")
    metrics = read_lines(folder / "metrics.jsonl")
    for file, lines in (("metrics.jsonl", metrics), ("timing.jsonl", read_lines(folder / "timing.jsonl"))):
        if [record.get("epoch") for record in lines] != list(range(1, config["epochs"] + 1)):
            raise Damaged(f"{file} has {len(lines)} of {config['epochs']} epochs")
    if result.get("format", 1) >= 3 and not (folder / "predictions.npy").exists():
        raise Damaged("no predictions.npy")
    for name in ACCURACIES:
        said, recorded = result.get(name.replace("/", "_")), metrics[-1].get(name)
        if said != recorded:
            raise Damaged(f"result.json says {name} {said}, metrics.jsonl {recorded}")
    return config, result, metrics


def read_config(folder: Path) -> dict[str, Any]:
    """What config.yaml holds.

    Raises:
        Damaged: it is missing, or no configuration of a run.
    """
    try:
        config = read_yaml(folder / "config.yaml")
    except FileNotFoundError as error:
        raise Damaged("no config.yaml") from error
    except (YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"config.yaml: {_first_line(error)}") from error
    try:
        name_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("config.yaml is no configuration of a run") from error
    if not isinstance(config.get("epochs"), int) or config["epochs"] < 1:
        raise Damaged(f"config.yaml is no configuration of a run (epochs: {config.get('epochs')})")
    return up_to_date({str(key): value for key, value in config.items()})


def read_result(folder: Path) -> dict[str, Any] | None:
    """What result.json holds; None without one.

    Raises:
        Damaged: it is no result, or a newer version wrote it.
    """
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise Damaged(f"result.json: {_first_line(error)}") from error
    if not isinstance(result, dict) or "status" not in result or not isinstance(result.get("format", 1), int):
        raise Damaged("result.json holds no result")
    if result.get("format", 1) > FORMAT:
        raise Damaged(
            f"result.json has format {result['format']}, of a newer version; this one knows {FORMAT}: update it"
        )
    return result


def _look(folder: Path) -> State:
    owner = _who_is_at_work(folder)
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


def _who_is_at_work(folder: Path) -> str | None:
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file; a last one without its end is being written, or was torn."""
    try:
        records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return []
    except (ValueError, OSError, RecursionError) as error:
        raise Damaged(f"{path.name}: {_first_line(error)}") from error
    if not all(isinstance(record, dict) for record in records):
        raise Damaged(f"{path.name} has a line that is not a record")
    return records


def _epochs_recorded(folder: Path) -> int:
    return len(read_lines(folder / "metrics.jsonl"))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
