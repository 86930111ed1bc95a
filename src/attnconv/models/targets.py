"""Decide which code a run folder from elsewhere may name, and keep what such code may change in the process."""

import inspect
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from attnconv.errors import ConfigError
from attnconv.files import with_line

# Modules of two libraries, and those that build our own networks. Others in attnconv.models can import any module.
KNOWN_MODULES = ("torch.nn", "timm")
NETWORKS = ("backbone", "frozen", "pruned", "resnet", "timm_models", "vgg", "vit")
KNOWN_BUILDERS = ("attnconv.mixers", *(f"attnconv.models.{module}" for module in NETWORKS))

# PyTorch's settings and the generators belong to the process: one thread changes, uses and restores them at a time.
OF_PROCESS = threading.RLock()


def settings() -> dict[str, Any]:
    """Return what the process relies on, by the function that changes it: settings of PyTorch, and the working folder.

    A device of `with torch.device(...)` is not included.
    """
    return {
        "torch.set_default_dtype": torch.get_default_dtype(),
        "torch.set_grad_enabled": torch.is_grad_enabled(),
        "torch.set_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.use_deterministic_algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch.set_num_threads": torch.get_num_threads(),
        "torch.set_default_device": torch.get_default_device(),
        "os.chdir": os.getcwd(),
    }


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restore `settings` after code of a user; other threads wait."""
    with OF_PROCESS:
        before = settings()
        try:
            yield
        finally:
            for name, value in settings().items():
                if value != before[name]:
                    _restore(name, before[name])


def _restore(name: str, value: Any) -> None:
    if name == "torch.use_deterministic_algorithms":
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    elif name == "torch.set_default_device":
        torch.set_default_device(None if value.type in ("cpu", "meta") else value)
    else:
        resolve_name(name)(value)


@contextmanager
def default_settings() -> Iterator[None]:
    """Compute with gradients, in full float32 and on the CPU by default, whatever the caller of the API has set.

    Afterwards, all `settings` are those of the caller again. Other threads that enter this wait.
    """
    with ExitStack() as stack:
        stack.enter_context(kept_settings())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # else it would slow down each call
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        yield


def import_target(name: Any, path: str = "") -> Any:
    """Import a class or function by its dotted name.

    Args:
        path: of the node that names it, for the error message.

    Raises:
        ConfigError: it cannot be imported; code that an import runs may raise any error.
    """
    try:
        if not isinstance(name, str):
            raise TypeError("a class is given by its dotted name")
        with kept_settings():
            return resolve_name(name)
    except (Exception, SystemExit) as error:
        reason = with_line(error)
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            reason += "; add the folder of its file to PYTHONPATH"
        raise ConfigError(f"{path and f'{path}.'}_target_={name} cannot be imported: {reason}") from error


def refuse_foreign_targets(node: Any, trusted: Sequence[str] = ()) -> None:
    """Refuse a `model` node from elsewhere that would run code outside of known networks.

    Args:
        node: of plain values (attnconv.settings.types.plain_value).
        trusted: further packages or modules that the node may name.

    Raises:
        ConfigError: the target is not allowed; it has not been imported. Or a text is an interpolation, which can
            contain a target; those of a run's config.yaml are resolved.
    """
    if isinstance(node, str) and "${" in node:
        raise ConfigError(f"the interpolation {node!r} can run code: write its value")
    if isinstance(node, dict):
        if "_target_" in node:
            _refuse_foreign_target(str(node["_target_"]), trusted)
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        refuse_foreign_targets(value, trusted)


def _refuse_foreign_target(name: str, trusted: Sequence[str]) -> None:
    builders = (*KNOWN_BUILDERS, *trusted)
    module = name.rpartition(".")[0]
    if _is_in(name, (*builders, *KNOWN_MODULES)):
        target = import_target(name)
        # A dotted name may lead out of a known module: timm.models.os.system.
        home = getattr(getattr(target, "func", target), "__module__", "")  # `func` of a functools.partial
        is_module = inspect.isclass(target) and issubclass(target, nn.Module)
        if _is_in(home, builders) or (is_module and _is_in(home, KNOWN_MODULES)):
            return
        module = home if _is_in(name, trusted) else module
    raise ConfigError(
        f"_target_={name} is code from outside this package, torch.nn and timm, and runs only if you allow it; "
        f"if you trust it, add --trust {module}"
    )


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)
