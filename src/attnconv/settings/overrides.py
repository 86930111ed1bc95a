"""Check command lines where Hydra would misread them or give an unclear error."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep, ValueType
from hydra.errors import HydraException

from attnconv.config import CONFIGS, Config, valid_keys
from attnconv.errors import ConfigError, nearest

# The settings of Hydra that hold further settings, and those of them that files of hydra/ fill.
HYDRA_GROUPS = ("launcher", "sweeper", "job_logging", "hydra_logging", "help", "hydra_help", "callbacks")
HYDRA_SECTIONS = (*HYDRA_GROUPS, "run", "sweep", "job")

# Quoted text, and what separates the values of a list or a sweep.
SEPARATORS = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[][(),])""")
COMPUTED = re.compile(r"\$\{|\b(range|interval)\(")


def keep_text(override: str) -> str:
    """Return an override of a text setting as typed: quote what Hydra would change as a number, such as name=0.10."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in _texts() or re.search(r"\d{4300}", value) or COMPUTED.search(value) or "\\" in value:
        return override
    return key + equals + "".join(map(_kept, SEPARATORS.split(value)))


def _texts() -> Iterator[str]:
    """Yield the dotted keys of the settings that hold text, or a list of texts."""
    yield "model.name"
    yield from (key for key, kind in plain_settings(Config) if str in (kind, *get_args(kind)))


def _kept(piece: str) -> str:
    text = piece.strip()
    try:
        number = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:  # a separator, or half of a text
        return piece
    return f'"{text}"' if type(number) in (int, float) and str(number) != text else piece


HYDRA_FOLDERS = ("hydra.run.dir", "hydra.output_subdir", "hydra.sweep.dir", "hydra.sweep.subdir")


def check_overrides(overrides: Iterable[str]) -> None:
    """Check overrides as typed, before composing; in a sweep they may have several values.

    Raises:
        ConfigError: an override removes a setting, sets a part of a value, chooses a config file by something other
            than a name, sets a section of Hydra to a value, or has a range without a step; see `check_config_dir`.
        HydraException: an override cannot be parsed.
    """
    for override in _parsed(overrides):
        key, typed = override.key_or_group, override.input_line
        if not key:
            raise ConfigError(f"{typed} has no setting before the = sign: write KEY{typed}")
        if any(key.startswith(f"{setting}.") for setting, _ in plain_settings(Config)):
            raise ConfigError(f"unknown setting '{key}'{nearest(key, valid_keys())}")
        if override.is_delete():
            raise ConfigError(f"{typed}: settings cannot be removed; set {key}=VALUE")
        if key in HYDRA_FOLDERS:
            raise ConfigError(f"{typed} is not supported: set output=FOLDER, which holds run folders and .sweeps/")
        if key == "hydra":
            raise ConfigError(f"{typed}: hydra holds settings: set hydra.KEY=VALUE")
        if key.startswith("hydra."):
            _check_hydra(override)
        if isinstance(value := override.value(), RangeSweep) and not value.step:
            raise ConfigError(f"{typed}: the step of a range must not be 0")
        if key == "experiment" and override.is_sweep_override():
            raise ConfigError(f"{typed}: each experiment has a grid of its own; start one command per experiment")
        if _chooses_a_file(key) and not all(map(_is_name, _values(override))):
            valid = [path.stem for path in (CONFIGS / key).glob("*.yaml")]
            place = f"configs/{key}" if valid else key
            close = str(override.value()).rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
            raise ConfigError(f"{typed} does not name a file of {place}{nearest(close, valid)}")


def _parsed(overrides: Iterable[str]) -> list[Override]:
    listed = [*overrides]
    for typed in listed:
        if re.search(r"\d{4300}", typed):  # Python reads fewer digits
            raise ConfigError(f"{typed.partition('=')[0]} has a number of more than 4,299 digits")
    return OverridesParser.create().parse_overrides(listed)


def _check_hydra(override: Override) -> None:
    """Raise ConfigError for a value of Hydra's settings that would be ignored or answered with a traceback."""
    key, typed, values = override.key_or_group, override.input_line, list(_values(override))
    if key == "hydra.verbose" and not all(isinstance(value, bool | str | list) for value in values):
        raise ConfigError(f"{typed} is invalid: set hydra.verbose=true, false, or the names of loggers")
    listed = [str(element) for value in values if isinstance(value, list) for element in value]
    for folder in listed if key == "hydra.searchpath" else ():
        if "://" not in folder.removeprefix("file://") and not Path(folder.removeprefix("file://")).is_dir():
            raise ConfigError(f"{typed}: {folder} is not a folder")
        check_config_dir(folder.removeprefix("file://"))
    for name in listed if key == "hydra.job.env_copy" else ():
        if name not in os.environ:
            raise ConfigError(f"{typed}: the environment has no variable {name}")
    if key in ("hydra.sweeper._target_", "hydra.launcher._target_"):
        group = key.split(".")[1]
        raise ConfigError(f"{typed}: choose a {group} with hydra/{group}=NAME")
    section = key.removeprefix("hydra.")
    if section not in HYDRA_SECTIONS or all(isinstance(value, dict) or "${" in str(value) for value in values):
        return
    group = f"; hydra/{section}=NAME chooses a file" if section in HYDRA_GROUPS else ""
    raise ConfigError(f"{typed}: {key} holds settings: set {key}.KEY=VALUE{group}")


def check_config_dir(folder: str) -> None:
    """Raise ConfigError for a folder with a file that Hydra would ignore, because configs/ has one of that name."""
    for ours in CONFIGS.rglob("*.yaml") if os.path.realpath(folder) != str(CONFIGS) else ():
        theirs = Path(folder, ours.relative_to(CONFIGS))
        if theirs.exists():
            raise ConfigError(f"{theirs} would be ignored, because configs/ has a file of that name: rename it")


def plain_settings(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and the types of the settings that have no settings below them."""
    for setting in fields(schema):
        if is_dataclass(setting.type):
            yield from plain_settings(setting.type, f"{prefix}{setting.name}.")
        elif setting.name != "model":
            yield prefix + setting.name, setting.type


def _values(override: Override) -> Iterator[Any]:
    """Yield the value of an override, or all values of a sweep, unless Hydra or a sweeper fills them in."""
    if not override.is_sweep_override():
        yield override.value()
    elif override.is_discrete_sweep() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
        yield from override.sweep_iterator()


def _chooses_a_file(key: str) -> bool:
    return (CONFIGS / key).is_dir() or key in {f"hydra/{group}" for group in HYDRA_GROUPS}


def _is_name(value: Any) -> bool:
    """Return whether a value chooses one file: Hydra also takes paths and lists, whose other settings it then mixes."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    parts = value.split("/") if isinstance(value, str) else [""]
    return not {"", ".", ".."} & set(parts) and not parts[-1].endswith((".yaml", ".yml"))
