"""What a command line asks for, checked where Hydra would take it for something else, or not say what is wrong."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType

from attnconv.config import CONFIGS, Config
from attnconv.errors import ConfigError, nearest

YES_OR_NO = ("true", "false", "yes", "no", "on", "off", "y", "n")  # as YAML has them


def check_overrides(overrides: Iterable[str]) -> None:
    """Check overrides, as typed, before anything is composed; those of a sweep may have several values.

    Raises:
        ConfigError: one removes a setting, gives a switch a number, or chooses a file by something else than a name.
        HydraException: one cannot be read.
    """
    switches = {*_switches(Config)}
    for override in OverridesParser.create().parse_overrides([*overrides]):
        key, typed = override.key_or_group, override.input_line
        if not key:
            raise ConfigError(f"{typed} does not say which setting: KEY{typed}")
        if override.is_delete():
            raise ConfigError(f"{typed}: a setting cannot be removed; say {key}=VALUE")
        if key in switches and not all(map(_is_switch, _values(override))):
            raise ConfigError(f"{typed} is neither yes nor no: say {key}=true or {key}=false")
        if key == "hydra.verbose" and not all(isinstance(value, bool | str | list) for value in _values(override)):
            raise ConfigError(f"{typed}: say hydra.verbose=true, false, or the names of loggers")
        if (CONFIGS / key).is_dir() and not all(map(_is_name, _values(override))):
            valid = [path.stem for path in (CONFIGS / key).glob("*.yaml")]
            raise ConfigError(f"{typed} does not name a file of configs/{key}{nearest('', valid)}")


def _switches(schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the settings that are true or false."""
    for setting in fields(schema):
        if setting.type is bool:
            yield prefix + setting.name
        elif is_dataclass(setting.type):
            yield from _switches(setting.type, f"{prefix}{setting.name}.")


def _values(override: Override) -> Iterator[Any]:
    """Yield the value of an override, or each of a sweep; none of a sweep that Hydra or a sweeper fills in."""
    if not override.is_sweep_override():
        yield override.value()
    elif override.is_discrete_sweep() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
        yield from override.sweep_iterator()


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or str(value).lower() in YES_OR_NO or "${" in str(value)


def _is_name(value: Any) -> bool:
    return bool(value) and isinstance(value, str | list)
