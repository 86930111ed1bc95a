"""Limits of the configuration's values: numbers within bounds, names that are one folder, valid paths.

This module does not import torch, so that wrong values are refused at once.
"""

import math
import operator
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from attnconv.errors import ConfigError, nearest

LARGEST_COUNT = 2**31 - 1  # for whole numbers without their own limit
LARGEST_SEED = 2**63 - 1  # PyTorch and NumPy take 64 bits, one of which is the sign
LARGEST_FLOAT = 1e30  # the product of two settings still fits in float32
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on all common file systems
FILES = 128  # bytes of a path reserved for the fraction, the seed and the files of a run folder

HOLDS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}

# Limits of arguments of models and mixers that are not knobs of the schema.
MODEL_LIMITS: dict[str, dict[str, Any]] = {
    "seed": {"at_least": 0, "at_most": LARGEST_SEED},
    "kernel_size": {"at_least": 1, "at_most": 4095},
    "count": {"at_least": 1},
    "density": {"above": 0, "at_most": 1},
    "alpha": {"above": 0},
    "base": {"above": 0},
    "spread_std": {"at_least": 0},
    "group_width": {"at_least": 1},
    "reduction": {"at_least": 1},
    "squeeze_reduction": {"at_least": 1},
    "blocks": {"at_least": 1, "at_most": 1000},
    "nonlocal_after": {"at_least": 1},
}


def check_limits(config: Any, prefix: str = "") -> None:
    """Check all values against the limits of their knobs.

    Raises:
        ConfigError: a value is outside its limit; the message names the key, the value and the limit.
    """
    for knob_field in fields(config):
        key, value = prefix + knob_field.name, getattr(config, knob_field.name)
        if is_dataclass(value):
            check_limits(value, f"{key}.")
        elif value is not None:
            _check_value(key, value, knob_field.metadata)
            if knob_field.metadata.get("rising") and value != sorted(set(value)):
                raise ConfigError(f"{key} must be in increasing order, not {value}")


def check_model(node: dict[str, Any], knobs: Mapping[str, Any], prefix: str = "model.", ours: bool = True) -> None:
    """Check the numbers inside a free-form `model` node; those of other packages only have to be finite.

    Args:
        node: the node, resolved.
        knobs: limits of knobs that models take under the same name, by the last part of the key.
        ours: whether the node belongs to a class of this package, if it does not name a class itself.

    Raises:
        ConfigError: a value is outside its limit; the message names the key, the value and the limit.
    """
    ours = is_ours(node) if "_target_" in node else ours
    limits = {**MODEL_LIMITS, **knobs} if ours else {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            check_model(value, knobs, f"{key}.", ours)
            continue
        for number in value if isinstance(value, list) else [value]:
            known = name in limits and number is not None
            if known and (isinstance(number, bool) or not isinstance(number, int | float)):
                raise ConfigError(f"{key} must be a number, not {number!r}")
            _check_value(key, number, limits.get(name, {}))


def is_ours(node: dict[str, Any]) -> bool:
    """Return whether the class that a `model` node names belongs to this package."""
    return str(node["_target_"]).startswith("attnconv.")


def from_elsewhere(node: dict[str, Any]) -> bool:
    """Return whether a `model` node names a class that is not part of this package, or a model of timm."""
    foreign = "_target_" in node and (not is_ours(node) or node["_target_"].endswith(".timm_model"))
    return foreign or any(from_elsewhere(part) for part in node.values() if isinstance(part, dict))


def _check_value(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if isinstance(value, list):
        for element in value:
            _check_value(key, element, limits)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(key, value, limits)
    elif "choices" in limits and value not in limits["choices"]:
        valid = limits["choices"]
        near = nearest(str(value), valid)
        near = near if "did you mean" in near else ""  # the choices are listed already
        raise ConfigError(f"{key}={value} is not one of {', '.join(valid)}{near}")
    elif limits.get("folder"):
        check_folder_name(key, value)
    elif limits.get("path") and value:
        _check_path(key, value)


def _check_number(key: str, value: float, limits: Mapping[str, Any]) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{key} must be a finite number, not {value}")
    if value == 0 and limits.get("or_zero"):
        return
    largest = LARGEST_COUNT if isinstance(value, int) else LARGEST_FLOAT
    bounds = {"at_least": -largest, "at_most": largest} | {
        word: limits[word] for word in ("above", "at_least", "below", "at_most") if word in limits
    }
    for word, bound in bounds.items():
        if not HOLDS[word](value, bound):
            zero = "0 or " if limits.get("or_zero") else ""
            raise ConfigError(f"{key} must be {zero}{word.replace('_', ' ')} {bound}, not {value}")


def check_folder_name(key: str, name: str) -> None:
    """Check that a name is a single folder name, so that nothing is written outside its parent folder.

    Raises:
        ConfigError: the name is empty, a path, hidden, or not valid on all file systems.
    """
    if not name:
        raise ConfigError(f"{key} is empty: it names a folder (an unset shell variable?)")
    if "/" in name or "\\" in name:
        raise ConfigError(f"{key}={name!r} must be a single folder name, without / and \\; use output= for a path")
    if name.startswith("."):
        raise ConfigError(f"{key}={name!r} is a folder name and must not start with a dot")
    _check_text(key, name)
    _check_length(key, name)


def _check_path(key: str, path: str) -> None:
    _check_text(key, path)
    for part in path.split("/"):
        _check_length(key, part)


def _check_text(key: str, text: str) -> None:
    """Raise ConfigError for text that a file system, a terminal or a YAML file may change."""
    if text != text.strip():
        raise ConfigError(f"{key}={text!r} starts or ends with a space")
    if any(0xDC80 <= ord(letter) <= 0xDCFF for letter in text):  # how Python keeps bytes that it cannot decode
        raise ConfigError(f"{key}={text!r} has bytes that are no text in this locale (with PYTHONUTF8=1, UTF-8 is)")
    if not text.isprintable():
        raise ConfigError(f"{key}={text!r} has characters that cannot be printed")


def check_yaml(key: str, text: str) -> None:
    """Raise ConfigError for text that config.yaml could not hold."""
    if "${" in text:
        raise ConfigError(f"{key}={text!r}: text cannot contain ${{, which refers to another setting")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{key}={text!r} has bytes that are not UTF-8 text") from error


def _check_length(key: str, part: str) -> None:
    length = len(part.encode())
    if length > LONGEST_NAME:
        raise ConfigError(f"{key} has a name of {length} bytes; file systems take at most {LONGEST_NAME}")


def check_wandb(logger: Any) -> None:
    """Raise ConfigError for names that W&B would refuse, which would turn it off for the run.

    Configurations of old runs are not checked: nothing depends on these names any more.
    """
    if logger.project is not None:
        check_wandb_project("logger.project", logger.project)
    for name, text, longest in (("group", logger.group, 128), *(("tags", tag, 64) for tag in logger.tags)):
        if text is not None:
            _check_characters(f"logger.{name}", text, longest)


def check_wandb_project(key: str, text: str) -> None:
    """Raise ConfigError if W&B would refuse the name of a project."""
    _check_characters(key, text, 128)
    if bad := sorted(set("/\\#?%:").intersection(text)):
        raise ConfigError(f"{key}={text!r} must not contain {' '.join(bad)}")


def _check_characters(key: str, text: str, longest: int) -> None:
    if not 1 <= len(text) <= longest:
        raise ConfigError(f"{key} must have 1 to {longest} characters; {text!r} has {len(text)}")


def check_rates(recipe: Any) -> None:
    """Raise ConfigError for a learning rate that lr_scale takes out of the range of float32."""
    for name in ("lr", "adamw_lr", "centers_lr"):
        rate = getattr(recipe, name)
        if rate is not None and not 1 / LARGEST_FLOAT <= rate * recipe.lr_scale <= LARGEST_FLOAT:
            raise ConfigError(
                f"recipe.{name}={rate:g} times recipe.lr_scale={recipe.lr_scale:g} must be from {1 / LARGEST_FLOAT:g} "
                f"to {LARGEST_FLOAT:g}"
            )


def check_place(output: str, names: list[str]) -> None:
    """Check that the path of a run folder is complete and not too long.

    Args:
        names: of the folders below `output`, without those of the fraction and the seed.

    Raises:
        ConfigError: `output` is empty, or the path is too long.
    """
    if not output:
        raise ConfigError("output is empty: it is the folder where run folders go (an unset shell variable?)")
    for name in names:
        _check_length("the run folder", name)
    try:
        length = len(os.fsencode(os.path.abspath(os.path.join(output, *names)))) + FILES
    except FileNotFoundError:
        raise ConfigError("the working folder was deleted: change to another one") from None
    if length > LONGEST_PATH:
        raise ConfigError(f"output leads to paths of {length} bytes; file systems take at most {LONGEST_PATH}")
