"""From the free-form `model` node to a network, with errors that name the key."""

import inspect
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from torch import nn

from attnconv.errors import ConfigError, nearest


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
    except (ValueError, TypeError, RuntimeError, HydraException) as error:
        raise ConfigError(f"model={node.get('name', '?')}: {error}") from error


def _check_arguments(node: dict[str, Any], path: str) -> None:
    """Check every `_target_` below `node` and its keys against the target's signature."""
    for key, value in node.items():
        if isinstance(value, dict):
            _check_arguments(value, f"{path}.{key}")
    if "_target_" not in node:
        raise ConfigError(f"{path} has no _target_: the class to build")
    try:
        target = get_object(node["_target_"])
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}._target_={node['_target_']} cannot be imported: {error}") from error
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in node:
        if key not in parameters and key not in ("_target_", "_partial_"):
            raise ConfigError(f"{path}.{key}: {node['_target_']} takes no such argument{nearest(key, parameters)}")
