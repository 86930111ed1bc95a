"""Whether a folder holds the run that a configuration describes: its settings, its arithmetic, its data, its heads.

A run keeps one arithmetic from its first step to its last. `precision=auto` leaves it to the machine, so what is
compared is what auto became, where that is known. Data is the same if its hash is the same, and weights to begin with
are the same if their heads are, wherever they lie.
"""

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

# Settings that may differ when an unfinished run resumes: they say where it runs, who watches and what is looked at
# besides, not what it computes.
FREE_TO_CHANGE = (
    "logger", "output", "data.root", "collected", "retry_failed",
    "device", "compile", "warm_up", "eval_mirrored", "eval_batch_size",
    "checkpoint_steps", "checkpoint_minutes",
)  # fmt: skip

# A model that takes `model.start`: shifts, random, or a file of weights.
FROZEN = "attnconv.models.frozen.frozen_heads"

Heads = dict[str, list[Any]]  # centers and spreads by layer, as a line of heads.jsonl has them


@dataclass(frozen=True)
class Recorded:
    """What a run folder says of its run.

    Attributes:
        settings: of config.yaml, with dotted keys; a setting that is younger than the file has its default.
        precision: bf16 or fp32; None if nothing in the folder says.
        root: where the data lay.
        data_hash: of the data; None if nothing in the folder says.
        files: of the data (attnconv.data.root.files_of); None if nothing in the folder says.
    """

    settings: dict[str, Any]
    precision: str | None
    root: str
    data_hash: str | None
    files: dict[str, list[int]] | None

    def lies_at(self, data: DataConfig) -> bool:
        """Whether the run found its data where `data` would look for it."""
        return data.source not in FROM_FOLDERS or self.root == absolute(data.root)

    def knows(self, data: DataConfig) -> bool:
        """Whether the data of `data` is known to be the run's without being read: by its place and its files' times."""
        if data.source not in FROM_FOLDERS:
            return True
        return self.lies_at(data) and (self.data_hash is None or self.files == files_of(data))


def read_recorded(folder: Path) -> Recorded | None:
    """What a folder says of its run; None if it has no config.yaml.

    Raises:
        Damaged: a file is.
    """
    if not (folder / "config.yaml").exists():
        return None
    settings = with_defaults(flatten(read_config(folder)))
    result, data = read_result(folder) or {}, read_data(folder)
    # The config.yaml of older runs says auto where the machine decided; their result.json says what it became.
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
    """Settings in which the run of a folder, if there is one, and a configuration differ: key -> "old -> new".

    Args:
        precision: what config.precision is on this machine; None: compare it only if it is not auto.
        data_hash: of the data that `config` names; None: it has not been read, and is another one only if the run's
            lay elsewhere and has no hash to compare.
        heads: of the weights that model.start names (attnconv.runs.heads.heads_in), empty where there is no such
            file; None: they have not been read, and are others only if the run's lay elsewhere and say nothing.

    Raises:
        Damaged: see `read_recorded`.
    """
    recorded = read_recorded(folder)
    if recorded is None:
        return {}
    old, new = recorded.settings, flatten(to_plain(config))
    compared = (old.keys() | new.keys()) - {"precision"}
    changed = {
        key: f"{old.get(key)} -> {new.get(key)}"
        for key in sorted(compared)
        if old.get(key) != new.get(key) and not free_to_change(key)
    }
    if start_weights(old) and start_weights(new) and _same_heads(folder, old, new, heads):
        changed.pop("model.start", None)
    elif start_weights(old) and start_weights(new):
        changed.setdefault("model.start", f"{old['model.start']} -> the same file with other heads")
    asked = precision or (None if config.precision == "auto" else config.precision)
    if asked and recorded.precision and asked != recorded.precision:
        changed["precision"] = f"{recorded.precision} -> {asked}"
    return changed | _other_data(recorded, config.data, data_hash)


def differences_read(folder: Path, config: Config) -> dict[str, str]:
    """The same, with data and weights read where the folder alone cannot say whether they are the run's.

    Raises:
        Damaged: see `read_recorded`; DataError, FileError: data or weights cannot be read.
    """
    recorded, data_hash, heads = read_recorded(folder), None, None
    if recorded is None:
        return {}
    # Data that nobody has fetched yet is no other data.
    absent = recorded.lies_at(config.data) and not holds_data(Path(config.data.root), config.data.source)
    if recorded.data_hash is not None and not recorded.knows(config.data) and not absent:
        from attnconv.data.sources import data_hash as read_hash  # imports torch

        data_hash = read_hash(config.data)
    start = start_weights(flatten(to_plain(config)))
    if start is not None:
        from attnconv.runs.heads import heads_in

        heads = heads_in(start)
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
    """The weights of another run that a run begins with; None for one that needs none.

    Args:
        settings: with dotted keys.
    """
    start = settings.get("model.start")
    if settings.get("model._target_") != FROZEN or start in (None, "shifts", "random"):
        return None
    return Path(str(start))


def _same_heads(folder: Path, old: dict[str, Any], new: dict[str, Any], heads: Heads | None) -> bool:
    """Whether two runs that begin with the weights of another begin with the same heads, as far as that is known."""
    recorded = read_lines(folder, "heads.jsonl")[:1]  # what it began with, which was never trained
    if not recorded or heads == {}:
        return _donor(Path(old["model.start"])) == _donor(Path(new["model.start"]))
    return heads is None or recorded[0] == {"epoch": 0, **heads}


def _donor(weights: Path) -> tuple[str, ...]:
    """What names the run that weights are of, wherever run folders lie; of other weights, their place."""
    parts = Path(absolute(str(weights))).parts
    in_run_folder = len(parts) > 6 and parts[-3].startswith("frac") and parts[-2].startswith("seed")
    return parts[-6:] if in_run_folder else parts


def describe_data(data: DataConfig, data_hash: str, files: dict[str, list[int]]) -> bytes:
    """The content of data.json: where the data lies, its hash, and its files as they were when it was read."""
    content = {"root": absolute(data.root), "sha256": data_hash, "files": files}
    return (json.dumps(content, indent=2) + "\n").encode()


def absolute(root: str) -> str:
    """A folder by its absolute path, so that it is the same from everywhere."""
    return os.path.abspath(os.path.expanduser(root))


def listed(different: dict[str, str]) -> str:
    """Differences on one line."""
    return "; ".join(f"{key}: {change}" for key, change in different.items())


def name_hint(keys: Iterable[str], config: Config) -> str:
    """What to type so that runs that differ in `keys` have names of their own: "name='NAME_${recipe.lr}'".

    Empty if no key has a value that a name can hold. The quotes keep a shell from replacing what Hydra is to replace.
    """
    values = flatten(to_plain(config))
    # What the model takes from a scale or a recipe is best named there.
    for key in sorted(keys, key=lambda key: key.startswith("model.")):
        value = values.get(key)
        if isinstance(value, bool | int | float | str) and value != "" and "/" not in str(value):
            return f"name='NAME_${{{key}}}'"
    return ""


def refusal(folder: Path, different: dict[str, str], config: Config, done: bool) -> str:
    """Why a folder is refused that holds another run, finished or not, and what to type instead."""
    if different.keys() == {"precision"} and not done:
        began, here = different["precision"].split(" -> ")
        return f"{folder} began in {began} and would go on in {here}: add precision={began}, or choose another name="
    kind, hint = "a finished" if done else "an unfinished", name_hint(different, config)
    return (
        f"{folder} holds {kind} run of another configuration ({listed(different)}); "
        f"choose another name={hint and ', such as '}{hint}, or delete the folder"
    )


def free_to_change(key: str) -> bool:
    """Whether a setting, by its dotted key, may differ between two starts of one run."""
    return key in FREE_TO_CHANGE or key.partition(".")[0] in FREE_TO_CHANGE


def with_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """A flattened config.yaml with what the schema has gained since."""
    return _defaults() | flat


@cache
def _defaults() -> dict[str, Any]:
    settings = flatten(OmegaConf.to_container(OmegaConf.structured(Config)))
    return {key: value for key, value in settings.items() if value != MISSING}
