"""Compare the run in a folder with a configuration: settings, precision, data and heads.

A run keeps one precision from its first step to its last. `precision=auto` depends on the machine, so the comparison
uses the precision that auto chose, if known. Data is equal if its hash is equal. Weights to start from are equal if
their heads are equal. Where the files are does not matter.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from attnconv.config import Config, DataConfig, flatten, to_plain
from attnconv.data.root import FROM_FOLDERS, files_of, holds_data
from attnconv.runs.records import read_config, read_data, read_lines, read_result
from attnconv.runs.status import is_run_place

# Settings that may differ when an unfinished run resumes: they control where it runs, who watches it and what else is
# evaluated, not what it computes.
FREE_TO_CHANGE = (
    "logger", "output", "data.root", "collected", "retry_failed",
    "device", "compile", "warm_up", "eval_mirrored", "eval_batch_size",
    "checkpoint_steps", "checkpoint_minutes",
)  # fmt: skip

# Models with `model.start`: shifts, random, or a file of weights; and always a file.
FROZEN, PRUNED = "attnconv.models.frozen.frozen_heads", "attnconv.models.pruned.pruned_heads"

Heads = dict[str, list[Any]]  # centers and spreads by layer, as in a line of heads.jsonl


@dataclass(frozen=True)
class Recorded:
    """The facts that a run folder records about its run.

    Attributes:
        settings: from config.yaml, with dotted keys; settings that are newer than the file have their defaults.
        precision: bf16 or fp32; None if not recorded.
        root: folder of the data.
        data_hash: of the data; None if not recorded.
        files: of the data (attnconv.data.root.files_of); None if not recorded.
    """

    settings: dict[str, Any]
    precision: str | None
    root: str
    data_hash: str | None
    files: dict[str, list[int]] | None

    def lies_at(self, data: DataConfig) -> bool:
        """Return whether the run read its data from the folder that `data` points to."""
        return data.source not in FROM_FOLDERS or self.root == absolute(data.root)

    def knows(self, data: DataConfig) -> bool:
        """Return whether folder and file times show that `data` is the run's data, without reading it."""
        if data.source not in FROM_FOLDERS:
            return True
        return self.lies_at(data) and (self.data_hash is None or self.files == files_of(data))


def read_recorded(folder: Path) -> Recorded | None:
    """Return what a folder records about its run, or None without a config.yaml.

    Raises:
        Damaged: a file is damaged.
    """
    if not (folder / "config.yaml").exists():
        return None
    settings = with_defaults(flatten(read_config(folder)))
    result, data = read_result(folder) or {}, read_data(folder)
    # In older runs, config.yaml says auto, and result.json has the precision.
    known = settings["precision"] != "auto"
    return Recorded(
        settings,
        precision=settings["precision"] if known else result.get("precision"),
        root=data.get("root", absolute(settings["data.root"])),
        data_hash=data.get("sha256", result.get("data_hash")),
        files=data.get("files"),
    )


def differences(
    folder: Path,
    config: Config,
    precision: str | None = None,
    data_hash: str | None = None,
    heads: Heads | None = None,
) -> dict[str, str]:
    """Return the settings in which the run of a folder and a configuration differ: key -> "old -> new".

    Args:
        precision: the value of config.precision on this machine; None to compare it only if it is not auto.
        data_hash: hash of the data that `config` names; None if it has not been read. The data then differs only if the
            run's data was elsewhere and has no recorded hash.
        heads: of the weights in model.start (attnconv.analysis.heads.heads_in), empty if the file does not exist; None
            if they have not been read. They then differ only if the run's were elsewhere and are not recorded.

    Raises:
        Damaged: see `read_recorded`.
    """
    recorded = read_recorded(folder)
    if recorded is None:
        return {}
    old, new = recorded.settings, flatten(to_plain(config))
    changed = changes(old, new | {"precision": old["precision"]})
    if start_weights(old) and start_weights(new) and _same_heads(folder, old, new, heads):
        changed.pop("model.start", None)
    elif start_weights(old) and start_weights(new):
        changed.setdefault("model.start", f"{old['model.start']} -> the same file with other heads")
    asked = precision or (None if config.precision == "auto" else config.precision)
    if asked and recorded.precision and asked != recorded.precision:
        changed["precision"] = f"{recorded.precision} -> {asked}"
    return changed | _other_data(recorded, config.data, data_hash)


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return the settings that may not change and differ: key -> "old -> new".

    Args:
        old: settings with dotted keys; those that are newer may be missing.
        new: the same.
    """
    old = with_defaults(old)
    return {
        key: f"{old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not free_to_change(key)
    }


def identity(config: Config, data_hash: str | None, heads: Heads | None) -> dict[str, Any]:
    """Return what all checkpoints of a run share and those of others do not: the settings that may not change.

    Args:
        config: with the precision that auto chose.
        data_hash: hash of the data.
        heads: of the weights in model.start, whose path may change; None or empty without such weights.
    """
    settings = {key: value for key, value in flatten(to_plain(config)).items() if not free_to_change(key)}
    start = {"model.start": hashlib.sha256(json.dumps(heads).encode()).hexdigest()[:12]} if heads else {}
    return settings | {"data": data_hash and data_hash[:12]} | start


def differences_read(folder: Path, config: Config) -> dict[str, str]:
    """Return the same, but read data and weights if the folder alone is not enough to compare them.

    Raises:
        Damaged: see `read_recorded`; DataError, FileError: data or weights cannot be read.
    """
    recorded, data_hash, heads = read_recorded(folder), None, None
    if recorded is None:
        return {}
    # Data that has not been downloaded yet does not count as different.
    absent = recorded.lies_at(config.data) and not holds_data(Path(config.data.root), config.data.source)
    if recorded.data_hash is not None and not recorded.knows(config.data) and not absent:
        from attnconv.data.sources import data_hash as read_hash  # imports torch

        data_hash = read_hash(config.data)
    start = start_weights(flatten(to_plain(config)))
    if start is not None:
        from attnconv.analysis.heads import heads_in

        heads = heads_in(start, config.model)
    return differences(folder, config, data_hash=data_hash, heads=heads)


def _other_data(recorded: Recorded, data: DataConfig, found: str | None) -> dict[str, str]:
    if recorded.data_hash is not None and found is not None:
        if recorded.data_hash == found:
            return {}
        old, new = (sha256[:12] for sha256 in (recorded.data_hash, found))
        if data.source in FROM_FOLDERS:
            old, new = f"{old} in {recorded.root}", f"{new} in {absolute(data.root)}"
        return {"data": f"{old} -> {new}"}
    if recorded.data_hash is not None or recorded.lies_at(data):
        return {}
    return {"data.root": f"{recorded.root} -> {absolute(data.root)}"}


def start_weights(settings: dict[str, Any]) -> Path | None:
    """Return the file with another run's weights that a run starts from, or None.

    Args:
        settings: with dotted keys.
    """
    start = settings.get("model.start")
    if settings.get("model._target_") not in (FROZEN, PRUNED) or start in (None, "shifts", "random"):
        return None
    return Path(str(start))


def _same_heads(folder: Path, old: dict[str, Any], new: dict[str, Any], heads: Heads | None) -> bool:
    """Return whether two runs that start from another run's weights start with the same heads, as far as known."""
    recorded = read_lines(folder, "heads.jsonl")[:1]  # the heads at the start, before training
    donors = [_donor(Path(settings["model.start"])) for settings in (old, new)]
    # A pruned run takes all weights, and two runs with the same frozen heads have others.
    of_runs = new["model._target_"] == PRUNED and all(map(_in_run_folder, donors))
    if not recorded or heads == {} or of_runs:
        return donors[0] == donors[1]
    return heads is None or recorded[0] == {"epoch": 0, **heads}


def _donor(weights: Path) -> tuple[str, ...]:
    """Return a key for the run that weights belong to, wherever run folders are; for other weights, their path."""
    parts = Path(absolute(str(weights))).parts
    return parts[-6:] if _in_run_folder(parts) else parts


def _in_run_folder(parts: tuple[str, ...]) -> bool:
    return len(parts) >= 6 and is_run_place(parts[:-1])


def describe_data(data: DataConfig, data_hash: str, files: dict[str, list[int]]) -> bytes:
    """Return the content of data.json: where the data is, its hash, and its files when they were read."""
    content = {"root": absolute(data.root), "sha256": data_hash, "files": files}
    return (json.dumps(content, indent=2) + "\n").encode()


def absolute(root: str) -> str:
    """Return the absolute path of a folder, which does not depend on the working directory."""
    return os.path.abspath(os.path.expanduser(root))


def listed(different: dict[str, str]) -> str:
    """Return differences in one line."""
    return "; ".join(f"{key}: {change}" for key, change in different.items())


IN_PATH = {"name", "model.name", "scale.name", "recipe.name", "seed"}  # run_folder_path, which rounds data.fraction


def name_hint(keys: Iterable[str], config: Config) -> str:
    """Return an override that gives runs that differ in `keys` different names: "name='NAME_${recipe.lr}'".

    Return an empty string if no key has a value that fits into a name, or all are in the path already, as those of a
    folder that was moved. The quotes protect ${...} from the shell.
    """
    values = flatten(to_plain(config))
    # Settings that the model takes from the scale or the recipe are best named there; the path has most fractions.
    last = ("model.", "data.fraction")
    for key in sorted((key for key in keys if key not in IN_PATH), key=lambda key: key.startswith(last)):
        value = values.get(key)
        if isinstance(value, bool | int | float | str) and value != "" and "/" not in str(value):
            return f"name='NAME_${{{key}}}'"
    return ""


def refusal(folder: Path, different: dict[str, str], config: Config, done: bool) -> str:
    """Return why a folder with another run, finished or not, is refused, and what to type instead."""
    if different.keys() == {"precision"} and not done:
        began, here = different["precision"].split(" -> ")
        return f"{folder} started in {began} and would resume in {here}: add precision={began}, or choose another name="
    kind, hint = "a finished" if done else "an unfinished", name_hint(different, config)
    return (
        f"{folder} holds {kind} run of another configuration ({listed(different)}); "
        f"choose another name={hint and ', such as '}{hint}, or delete the folder"
    )


def free_to_change(key: str) -> bool:
    """Return whether a setting, by its dotted key, may differ between two starts of one run."""
    return key in FREE_TO_CHANGE or key.partition(".")[0] in FREE_TO_CHANGE


def with_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a flattened config.yaml with the defaults of settings that are newer than it."""
    return _defaults() | flat


@cache
def _defaults() -> dict[str, Any]:
    settings = flatten(OmegaConf.to_container(OmegaConf.structured(Config)))
    return {key: value for key, value in settings.items() if value != MISSING}
