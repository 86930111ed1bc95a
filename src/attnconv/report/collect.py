"""Collect the records of finished runs.

results/runs/<run>/ keeps the records of a finished run, under the run's name. results/external/<who>/<run>/ keeps those
of runs from other people. Collecting twice changes nothing.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnconv.config import CONFIGS, Config
from attnconv.errors import RunFolderError
from attnconv.files import UNREADABLE, FileError, in_one_line, read_json, reading, write_whole
from attnconv.report.examined import CONVERSION, PROBE
from attnconv.report.runs_table import runs_folder
from attnconv.runs.records import (
    ARRAYS,
    PREDICTIONS,
    Damaged,
    Newer,
    name_of,
    read_config,
    read_result,
    require_right_answers,
    require_whole_arrays,
)
from attnconv.runs.status import BROKEN, cannot_be_read, collected_weights, find_folders, read_state, shown_name

if TYPE_CHECKING:
    import numpy as np

KEPT = ("config.yaml", "metrics.jsonl", "timing.jsonl", "result.json")
WHERE_THERE = (*ARRAYS, "heads.jsonl")
PICTURE = "heads.png"
LABELS, IMAGES = "test_labels.npy", "test_images.npz"  # in results/, of one data set; labels are of all images
EXAMINED = (PROBE, CONVERSION)
PLACES = ("output", "collected")


@dataclass
class Gathered:
    """The outcome for each run folder: finished runs by name, others by path; and the problems."""

    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)  # results/ has a different run of that name
    unfinished: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


def gather(outputs: Path, results: Path, replace: bool = False, heads: bool = False, source: str = "") -> Gathered:
    """Copy the records of all finished runs below `outputs` into results/runs/, under their names.

    Args:
        source: who made the runs, if not this project; they go into results/external/<source>/.
        replace: replace a different run of the same name in results/.
        heads: also keep the figure of where the heads look.
    """
    gathered, here = Gathered(), results.resolve()
    labels = _test_labels(results)
    outside = not outputs.resolve().is_relative_to(here)
    for folder in find_folders(outputs):
        if outside and folder.resolve().is_relative_to(here):
            continue  # collected before
        place, state = shown_name(folder, outputs), read_state(folder)
        if not source and _is_external(folder):
            gathered.unfinished[place] = "of another person: collect it by itself, with --external NAME"
            continue
        if state.status in BROKEN:
            gathered.damaged[place] = state.detail
            continue
        if state.status != "done":
            gathered.unfinished[place] = ", ".join(filter(None, (state.status, state.detail)))
            continue
        try:
            name, content = _read_finished(folder, heads, labels)
        except OSError as error:
            gathered.damaged[place] = cannot_be_read(error)
        except Damaged as damage:
            gathered.damaged[place] = damage.detail
        else:
            _keep(folder, name, content, results, gathered, replace, source)
    return gathered


def _is_external(folder: Path) -> bool:
    """Return whether a run is in the folder external/ of a results folder, anyone's."""
    above = folder.resolve().parents
    return any(place.name == "external" and (place.parent / "runs.csv").exists() for place in above)


def _test_labels(results: Path) -> dict[str, "np.ndarray"]:
    """Return the labels of the test images of the data set whose images the page shows, by the hash of the data set."""
    if not all((results / file).exists() for file in (IMAGES, LABELS)):
        return {}
    import numpy as np

    with reading(results / IMAGES), np.load(results / IMAGES, allow_pickle=False) as file:
        data_hash = str(file["data_hash"])
    with reading(results / LABELS):
        return {data_hash: np.load(results / LABELS, allow_pickle=False)}


def _read_finished(folder: Path, heads: bool, labels: dict[str, "np.ndarray"]) -> tuple[str, dict[str, bytes]]:
    """Return the name of a finished run, and the content of its records by file.

    Args:
        labels: of test images, by the hash of the data set.

    Raises:
        Damaged: a file cannot be read, a .npy file is cut off, or predictions contradict the test accuracy.
    """
    require_whole_arrays(folder)
    result = read_result(folder) or {}
    if (folder / PREDICTIONS).exists() and result.get("data_hash") in labels:
        require_right_answers(folder, labels[result["data_hash"]], result["test_acc"])
    content = {file: (folder / file).read_bytes() for file in KEPT}
    try:
        content["config.yaml"] = _placeless(content["config.yaml"])
    except (OmegaConfBaseException, *UNREADABLE) as error:
        raise Damaged(folder, f"config.yaml cannot be read ({in_one_line(error)})") from error
    more = (*WHERE_THERE, *EXAMINED, *((PICTURE,) if heads else ()))
    content |= {file: (folder / file).read_bytes() for file in more if (folder / file).exists()}
    for file in EXAMINED:
        if file in content:
            try:
                _dirty(folder / file)
            except FileError as error:
                raise Damaged(folder, str(error).removeprefix(f"{folder}/")) from error
    return name_of(read_config(folder)), content


def _keep(
    folder: Path,
    name: str,
    content: dict[str, bytes],
    results: Path,
    gathered: Gathered,
    replace: bool,
    source: str,
) -> None:
    """Write the records of one finished run into results/, and note the outcome in `gathered`."""
    kept = runs_folder(results, source) / name
    before = {file: (kept / file).read_bytes() for file in content if (kept / file).exists()}
    another = "result.json" in before and before["result.json"] != content["result.json"]
    for file in EXAMINED:  # of the same run, results with uncommitted changes do not replace clean ones
        if not another and file in before and _dirty(folder / file) and not _dirty(kept / file):
            content[file] = before[file]
    if before == content:
        gathered.known.append(name)
        return
    if another and not replace:
        gathered.other[name] = f"{_in_short(content['result.json'])} is not {_in_short(before['result.json'])}"
    else:
        kept.mkdir(parents=True, exist_ok=True)
        if not source and before.get("result.json") != content["result.json"]:
            collected_weights(results, name).unlink(missing_ok=True)  # of the other run
        for file in (*WHERE_THERE, *EXAMINED, PICTURE) if another else ():  # of the replaced run
            (kept / file).unlink(missing_ok=True)
        try:
            for file, data in content.items():
                write_whole(kept / file, data)
        except OSError:
            if not before:
                shutil.rmtree(kept)  # half of a run
            raise
        gathered.added.append(name)


@contextmanager
def changing(results: Path) -> Iterator[None]:
    """Hold results/ for this process while it changes files there.

    The lock is not in results/, whose files are committed; it excludes processes of the same user on this machine.

    Raises:
        RunFolderError: another process changes them now.
    """
    name = hashlib.sha256(str(results.resolve()).encode()).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir(), f"attnconv-{os.getuid()}-{name}.lock"), timeout=1)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunFolderError(f"another process is changing {results}: wait until it has ended") from error
    try:
        yield
    finally:
        lock.release()


def check_version(results: Path) -> None:
    """Refuse a results/ folder that a newer version wrote, before changing it.

    Raises:
        Newer: a run has a newer format; the message names the run and both formats.
    """
    for folder in (folder for place in ("runs", "external") for folder in find_folders(results / place)):
        try:
            read_result(folder)
        except Newer:
            raise
        except Damaged:
            continue  # `tabulate` reports it


def _placeless(config: bytes) -> bytes:
    """Return a config.yaml with default folders, because the machine's folders do not matter for the run."""
    plain = OmegaConf.create(config.decode())
    assert isinstance(plain, DictConfig)
    for key in PLACES:
        if key in plain:
            plain[key] = getattr(Config, key)
    plain.data.root = _usual_root(plain.data.name)
    return OmegaConf.to_yaml(plain).encode()


def _usual_root(data: str) -> str:
    """Return data.root of configs/data/<data>.yaml, or an empty string."""
    path = CONFIGS / f"data/{data}.yaml"
    file = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    root = file.get("root", MISSING) if isinstance(file, dict) else MISSING
    return "" if root == MISSING else root


def _dirty(examined: Path) -> bool:
    return bool(read_json(examined, ["dirty"])["dirty"])


def _in_short(result: bytes) -> str:
    run = json.loads(result)
    return f"the run of commit {str(run.get('commit'))[:7]} with test accuracy {run['test_acc']}"
