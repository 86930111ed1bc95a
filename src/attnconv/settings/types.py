"""Plain values -> the schema's dataclasses, each value of the type that its setting states.

All values are converted here: those of the command line, of YAML files and of older runs. Neither Hydra nor OmegaConf
converts anything before; OmegaConf would take `flip: 2` for true. This module does not import torch.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnconv.errors import ConfigError, nearest

YES, NO = ("true", "yes", "on", "y"), ("false", "no", "off", "n")  # as YAML has them
WHOLE = re.compile(r"[+-]?[0-9]+")
Schema = TypeVar("Schema")


@cache
def untyped(schema: type[Schema]) -> type[Schema]:
    """Return the schema with the same settings and defaults but no types, so that it refuses only unknown settings."""
    settings: list[tuple[str, Any, Field[Any]]] = []
    for setting in fields(schema):  # type: ignore[arg-type]
        if is_dataclass(setting.type):
            part = untyped(setting.type)  # type: ignore[arg-type]
            settings.append((setting.name, Any, field(default_factory=part)))
        elif setting.default_factory is not NO_DEFAULT:
            settings.append((setting.name, Any, field(default_factory=setting.default_factory)))
        else:
            settings.append((setting.name, Any, field(default=setting.default)))
    built = make_dataclass(schema.__name__, settings)
    # A module holds it, so that launchers pickle its name. Otherwise they would pickle the class itself, and unpickling
    # it would replace the marker of fields without a default, in this process too.
    built.__module__, built.__qualname__ = schema.__module__, f"Untyped{schema.__name__}"
    setattr(sys.modules[schema.__module__], built.__qualname__, built)
    return built


def convert(composed: DictConfig, schema: type, prefix: str = "") -> None:
    """Convert the values of a composed configuration in place, so that ${recipe.lr} is 1.0 whether 1 or 1.0 is given.

    Raises:
        ConfigError: a value is not of the setting's type.
    """
    for setting in fields(schema):
        name, key = setting.name, prefix + setting.name
        refers = OmegaConf.is_interpolation(composed, name)
        if OmegaConf.is_missing(composed, name) or (refers and is_dataclass(setting.type)):
            continue
        if refers:
            try:
                found = composed[name]
            except OmegaConfBaseException:
                continue  # reading the configuration says why
            if isinstance(found, str):  # of an environment variable
                composed[name] = converted(key, found, setting.type)
            continue
        if is_dataclass(setting.type) and not OmegaConf.is_dict(composed[name]):
            continue  # `typed` refuses it
        if is_dataclass(setting.type):
            convert(composed[name], setting.type, f"{key}.")  # type: ignore[arg-type]
        elif not OmegaConf.is_dict(composed[name]):
            plain = composed[name]
            if OmegaConf.is_list(plain):
                if any(OmegaConf.is_interpolation(plain, index) for index in range(len(plain))):
                    continue
                plain = OmegaConf.to_container(plain)
            value = converted(key, plain, setting.type)
            if not _identical(value, plain):  # assigning is slow
                composed[name] = value


def typed(schema: type[Schema], values: Any, prefix: str = "") -> Schema:
    """Return nested dictionaries as the schema's dataclass; what they lack has its default.

    Raises:
        ConfigError: a setting is unknown or has no value, or a value is not of the setting's type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')} must be settings and their values, not {_said(values)}")
    known = {setting.name: setting for setting in fields(schema)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            valid = [f"{prefix}{setting}" for setting in known]
            raise ConfigError(f"unknown setting '{prefix}{name}'{nearest(f'{prefix}{name}', valid)}")
    found = {}
    for name, setting in known.items():
        key, kind = prefix + name, setting.type
        if is_dataclass(kind):
            found[name] = typed(kind, values.get(name, {}), f"{key}.")  # type: ignore[arg-type]
        elif name in values:
            found[name] = converted(key, values[name], kind)
        elif setting.default is MISSING:
            raise ConfigError(f"{key} has no value")
    return schema(**found)


def plain_value(value: Any, key: str = "") -> Any:
    """Return what Python code set, as a file would have it: NumPy's numbers as int or float, tuples as lists.

    Raises:
        ConfigError: it is, or contains, something that a file cannot have.
    """
    parts = vars(value) if is_dataclass(value) and not isinstance(value, type) else value
    if isinstance(parts, Mapping):
        return {name: plain_value(part, f"{key}.{name}".lstrip(".")) for name, part in parts.items()}
    if isinstance(value, list | tuple | ListConfig):
        return [plain_value(element, key) for element in value]
    if value is None or isinstance(value, bool):
        return value
    if getattr(value, "dtype", None) == "bool" and not value.shape:  # NumPy's, which is not imported here
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum is its name
    kind = type(value).__name__ + (f": use {str(value)!r}" if isinstance(value, os.PathLike) else "")
    raise ConfigError(f"{key} must be text, a number, True, False or None, or a list of them, not {kind}")


def converted(key: str, value: Any, kind: Any) -> Any:
    """Return a value as its setting's type has it.

    Raises:
        ConfigError: it is not of this type.
    """
    kinds = [one for one in get_args(kind) if one is not NoneType] if NoneType in get_args(kind) else [kind]
    if value is None:
        if NoneType in get_args(kind):
            return None
        raise ConfigError(f"{key} must not be null")
    (wanted,) = kinds
    if get_origin(wanted) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{key} must be a list, such as {key}=[{_said(value)}], not {_said(value)}")
        return [converted(key, element, get_args(wanted)[0]) for element in value]
    return {bool: _switch, int: _whole, float: _number, str: as_text}.get(wanted, _settings)(key, value)


def _switch(key: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in YES + NO:
        return value.lower() in YES
    raise ConfigError(f"{key}={_said(value)} must be true or false: set {key}=true or {key}=false")


def _whole(key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # Text is that of an environment variable: ${oc.env:SEED}. Python reads fewer digits than 4,300.
    if isinstance(value, str) and WHOLE.fullmatch(value) and len(value) < 4300:
        return int(value)
    raise ConfigError(f"{key} must be a whole number, not {_said(value)}")


def _number(key: str, value: Any) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise ConfigError(f"{key} must be a number, not {_said(value)}")


def as_text(key: str, value: Any) -> str:
    """Return the text of a setting, which may look like a number.

    Raises:
        ConfigError: it is neither text nor a number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    quotes = f"; the text is {key}='\"{_said(value)}\"'" if isinstance(value, bool) else ""
    raise ConfigError(f"{key} must be text, not {_said(value)}{quotes}")


def _settings(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ConfigError(f"{key} must be settings and their values, not {_said(value)}")


def _identical(one: Any, other: Any) -> bool:
    """Return whether two values, or all values of two lists, are equal and of one type: 1, 1.0 and True are not."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_identical, one, other))
    return type(one) is type(other) and bool(one == other)


def _said(value: Any) -> str:
    """Return a value as a command line would have it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return repr(value)[:200]
