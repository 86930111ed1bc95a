"""Whether a folder holds the run that a configuration describes: its settings, its arithmetic, its data.

A run keeps one arithmetic from its first step to its last. `precision=auto` leaves it to the machine, so what is
compared is what auto became, where that is known. Data is the same if its hash is the same, wherever it lies.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from yaml import YAMLError

from attnconv.config import Config, DataConfig, flatten, to_plain, up_to_date
from attnconv.errors import RunFolderError
from attnconv.files import read_yaml

# Settings that may differ when an unfinished run resumes: they say where it runs, who watches and what is looked at
# besides, not what it computes.
FREE_TO_CHANGE = (
    "logger", "output", "data.root", "collected", "retry_failed",
    "device", "compile", "warm_up", "eval_mirrored", "eval_batch_size",
    "checkpoint_steps", "checkpoint_minutes",
)  # fmt: skip

DATA_FILE = "data.json"
FROM_FOLDERS = ("cifar10", "arrays")  # the values of data.source that read data.root


@dataclass(frozen=True)
class Recorded:
    """What a run folder says of its run.

    Attributes:
        settings: of config.yaml, with dotted keys; a setting that is younger than the file has its default.
        precision: bf16 or fp32; None if nothing in the folder says.
        root: where the data lay.
        data_hash: of the data; None if nothing in the folder says.
    """

    settings: dict[str, Any]
    precision: str | None
    root: str
    data_hash: str | None

    def lies_at(self, data: DataConfig) -> bool:
        """Whether the run found its data where `data` would look for it."""
        return data.source not in FROM_FOLDERS or self.root == place(data.root)


def read_recorded(folder: Path) -> Recorded | None:
    """What a folder says of its run; None if it has no config.yaml.

    Raises:
        RunFolderError: a file is damaged.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return None
    try:
        plain = read_yaml(path)
    except (YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not isinstance(plain, dict) or not plain:
        raise _damaged(path, "it is empty")
    settings = with_defaults(flatten(up_to_date({str(key): value for key, value in plain.items()})))
    result = read_json(folder / "result.json", "status") or {}
    data = read_json(folder / DATA_FILE, "sha256") or {}
    # The config.yaml of older runs says auto where the machine decided; their result.json says what it became.
    known = settings["precision"] != "auto"
    return Recorded(
        settings,
        precision=settings["precision"] if known else result.get("precision"),
        root=data.get("root", place(settings["data.root"])),
        data_hash=data.get("sha256", result.get("data_hash")),
    )


def differences(
    folder: Path, config: Config, precision: str | None = None, data_hash: str | None = None
) -> dict[str, str]:
    """Settings in which the run of a folder, if there is one, and a configuration differ: key -> "old -> new".

    Args:
        precision: what config.precision is on this machine; None: compare it only if it is not auto.
        data_hash: of the data that `config` names; None: it has not been read, and is another one only if the run's
            lay elsewhere and has no hash to compare.

    Raises:
        RunFolderError: see `read_recorded`.
    """
    recorded = read_recorded(folder)
    if recorded is None:
        return {}
    old, new = recorded.settings, flatten(to_plain(config))
    changed = {
        key: f"{old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key != "precision" and not free_to_change(key)
    }
    asked = precision or (None if config.precision == "auto" else config.precision)
    if asked and recorded.precision and asked != recorded.precision:
        changed["precision"] = f"{recorded.precision} -> {asked}"
    return changed | _other_data(recorded, config.data, data_hash)


def _other_data(recorded: Recorded, data: DataConfig, found: str | None) -> dict[str, str]:
    if recorded.data_hash is not None and found is not None:
        if recorded.data_hash == found:
            return {}
        old, new = (sha256[:12] for sha256 in (recorded.data_hash, found))
        if data.source in FROM_FOLDERS:
            old, new = f"{old} in {recorded.root}", f"{new} in {place(data.root)}"
        return {"data": f"{old} -> {new}"}
    if recorded.data_hash is not None or recorded.lies_at(data):
        return {}
    return {"data.root": f"{recorded.root} -> {place(data.root)}"}


def describe_data(data: DataConfig, data_hash: str) -> bytes:
    """The content of data.json: where the data lies, and its hash."""
    return (json.dumps({"root": place(data.root), "sha256": data_hash}, indent=2) + "\n").encode()


def place(root: str) -> str:
    """A folder by its absolute path, so that it is the same from everywhere."""
    return os.path.abspath(os.path.expanduser(root))


def in_words(different: dict[str, str]) -> str:
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
        f"{folder} holds {kind} run of another configuration ({in_words(different)}); "
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


def read_json(path: Path, key: str) -> dict[str, Any] | None:
    """What a file of a run folder holds, `key` included; None if it is not there.

    Raises:
        RunFolderError: it is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict) or key not in found:
        raise _damaged(path, f"it has no {key}")
    return found


def _damaged(path: Path, reason: str) -> RunFolderError:
    return RunFolderError(f"{path} is damaged ({reason}); delete the folder to start afresh")
