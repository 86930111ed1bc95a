"""Which code a configuration from outside may name: a run folder from elsewhere must not run what it likes."""

import inspect
from collections.abc import Iterable, Sequence
from pkgutil import resolve_name
from typing import Any

from torch import nn

from attnconv.errors import ConfigError

# Modules of two libraries, and whatever builds our own networks.
KNOWN_MODULES = ("torch.nn", "timm")
KNOWN_BUILDERS = ("attnconv.models", "attnconv.mixers")


def refuse_foreign_targets(node: Any, trusted: Sequence[str] = ()) -> None:
    """Refuse a `model` node from outside that would run code other than that of known networks.

    Args:
        trusted: further packages or modules whose classes and functions may be named.

    Raises:
        ConfigError: naming the target, which has not been imported.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            _refuse_foreign_target(str(node["_target_"]), trusted)
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            refuse_foreign_targets(value, trusted)


def _refuse_foreign_target(name: str, trusted: Sequence[str]) -> None:
    builders = (*KNOWN_BUILDERS, *trusted)
    if _is_in(name, (*builders, *KNOWN_MODULES)):
        try:
            target = resolve_name(name)
        except (ImportError, ValueError, AttributeError) as error:
            raise ConfigError(f"_target_={name} cannot be imported: {error}") from error
        # A name below a known module may lead out of it: timm.models.os.system.
        home = getattr(target, "__module__", "")
        is_module = inspect.isclass(target) and issubclass(target, nn.Module)
        if _is_in(home, builders) or (is_module and _is_in(home, KNOWN_MODULES)):
            return
    raise ConfigError(
        f"_target_={name} is code from outside this package, torch.nn and timm, and is not run unasked; "
        f"if it is yours, trust it: --trust {name.rpartition('.')[0]}"
    )


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)
