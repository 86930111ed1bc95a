"""From the free-form `model` node to a network, with errors that name the key."""

import inspect
from collections.abc import Sequence
from pkgutil import resolve_name
from types import NoneType
from typing import Any, get_args, get_origin

from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import nn

from attnconv.errors import ConfigError, nearest
from attnconv.files import in_one_line

IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def build_model(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network that `node` describes: images (B, C, H, W) -> logits (B, classes).

    Args:
        node: `name`, `_target_`, and the target's arguments other than image_shape and classes.
        image_shape: (C, H, W) in pixels.
        classes: number of classes.

    Raises:
        ConfigError: an argument that the target does not take, or a combination that it refuses.
    """
    arguments = {key: value for key, value in node.items() if key != "name"}
    _check_arguments(arguments, "model")
    try:
        return instantiate(arguments, _partial_=True, _convert_="all")(image_shape=image_shape, classes=classes)
    # What a constructor raises for arguments that it cannot take is its own affair.
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError, HydraException) as error:
        reason = in_one_line(error)
        raise ConfigError(f"model={node.get('name', '?')}: {reason}") from error


def _check_arguments(node: dict[str, Any], path: str) -> None:
    """Check every `_target_` below `node` and its keys against the target's signature."""
    for key, value in node.items():
        if isinstance(value, dict):
            _check_arguments(value, f"{path}.{key}")
    if "_target_" not in node:
        raise ConfigError(f"{path} has no _target_: the class to build")
    try:
        parameters = inspect.signature(resolve_name(node["_target_"])).parameters
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={node['_target_']} cannot be imported: {in_one_line(error)}") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in node.keys() - {"_target_", "_partial_"}:
        if key not in parameters:
            raise ConfigError(f"{path}.{key}: {node['_target_']} takes no such argument{nearest(key, parameters)}")
        _check_type(f"{path}.{key}", node[key], parameters[key].annotation)


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Raise ConfigError for a value that is not of a plain type with which the target's argument is annotated."""
    if get_origin(annotation) is Sequence:
        if not isinstance(value, list):
            raise ConfigError(f"{key} must be a list, not {value!r}")
        for element in value:
            _check_type(key, element, get_args(annotation)[0])
        return
    wanted = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if value is None and len(wanted) < len(get_args(annotation)):
        return
    if len(wanted) != 1 or wanted[0] not in IN_WORDS:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number if wanted[0] is float else type(value) is wanted[0]):
        raise ConfigError(f"{key} must be {IN_WORDS[wanted[0]]}, not {value!r}")
