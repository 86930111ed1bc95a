"""Build a network from the free-form `model` node, with errors that name the key, and decide which code it may name."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from attnconv.errors import ConfigError, UserError, is_out_of_memory, line_of_user, nearest
from attnconv.files import in_one_line, with_line
from attnconv.models.process_state import kept_settings, seed_generators

IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
GIVEN = ("image_shape", "classes")  # arguments of all models that come from the data
OF_HYDRA = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
CONVERSIONS = ("none", "partial", "object", "all")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

# Modules of two libraries, and those that build our own networks. Others in attnconv.models can import any module.
KNOWN_MODULES = ("torch.nn", "timm")
NETWORKS = ("backbone", "frozen", "pruned", "resnet", "timm_models", "vgg", "vit")
KNOWN_BUILDERS = ("attnconv.mixers", *(f"attnconv.models.{module}" for module in NETWORKS))

# Errors that networks raise for arguments and images that they cannot take.
REFUSALS = (
    ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AssertionError, AttributeError, HydraException,
)  # fmt: skip


def build_model(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network that `node` describes: images (B, C, H, W) -> logits (B, classes).

    Args:
        node: `name`, `_target_`, and the target's arguments other than image_shape and classes.
        image_shape: (C, H, W) in pixels.
        classes: number of classes.

    Raises:
        ConfigError: the target does not take an argument, refuses the combination, or builds something else.
    """
    check_node(node)
    arguments = _arguments(node)
    name = f"model={node.get('name', '?')}"
    with errors_of_network(f"{name}:"), kept_settings():
        model = instantiate(arguments, _partial_=True, _convert_="all")(image_shape=image_shape, classes=classes)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"{name}: {node['_target_']} builds a {type(model).__name__}, not a torch.nn.Module")
        _initialize_lazy_layers(model, image_shape)
    return model


@contextmanager
def errors_of_network(what: str) -> Iterator[None]:
    """Turn the errors of a network into a ConfigError: WHAT, the reason, and the line of code if it is the user's own.

    Other errors of code that is not the user's pass through: they are bugs.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or not (isinstance(error, REFUSALS) or line_of_user(error)):
            raise
        raise ConfigError(f"{what} {with_line(error)}") from error


def _initialize_lazy_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Show a blank image to a network with layers that take their size from their first input."""
    if any(isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params() for layer in model.modules()):
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *image_shape))
        model.train()


def build_seeded_model(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """Build the network whose initial values depend only on the seed, whichever generator it draws from.

    Raises:
        ConfigError: see `build_model`.
    """
    seed_generators(seed)
    return build_model(node, image_shape, classes)


def check_node(node: dict[str, Any]) -> None:
    """Check the classes that a `model` node names and their arguments, without building anything.

    Raises:
        ConfigError: a class or an argument is wrong; the message names the key.
    """
    for key in GIVEN:
        if key in node:
            raise ConfigError(f"model.{key}={node[key]} cannot be set: it comes from the data")
    arguments = _arguments(node)
    parameters = _check_arguments(arguments, "model")
    absent = [name for name in GIVEN if name not in parameters]
    if absent and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise ConfigError(
            f"model._target_={node['_target_']} must take image_shape, which is (channels, height, width), and "
            f"classes; it lacks {' and '.join(absent)}"
        )
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in VARIADIC and "_args_" not in node
        if required and name not in (*arguments, *GIVEN):
            raise ConfigError(f"model.{name} is missing: {node['_target_']} needs it")


def refuse_shared_parts(node: dict[str, Any], model: nn.Module) -> None:
    """Refuse a network whose layers share the weights of a part that its `model` node builds once.

    Runs that have trained so can still be loaded, so that `check_node` accepts them.

    Raises:
        ConfigError: the message says what to set.
    """
    found = next(_parts_built_once(node, "model"), None)
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    if found is None or len({id(tensor) for _, tensor in tensors}) == len(tensors):
        return
    path, target, builder = found
    raise ConfigError(
        f"{path}: all layers would share one {target}; add _partial_: true to it, and {builder} gets a function that "
        "builds one"
    )


def _parts_built_once(node: Any, path: str, builder: str | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield each part that is built once although what it is an argument of may be built several times.

    Args:
        builder: the class that the network may build several times and that `node` is an argument of, if any.

    Yields:
        path and target of the part, and that class.
    """
    if isinstance(node, list):
        for place, value in enumerate(node):
            yield from _parts_built_once(value, f"{path}.{place}", builder)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        if node.get("_partial_") is True:
            builder = node["_target_"]
        elif builder is not None:
            yield path, node["_target_"], builder
        if node.get("_recursive_") is False:  # the class builds its parts itself
            return
    for key, value in node.items():
        yield from _parts_built_once(value, f"{path}.{key}", builder)


def may_be_fraction(node: dict[str, Any], name: str) -> bool:
    """Return whether the class that a `model` node names takes a float for this argument, or does not say."""
    parameter = _parameters(node, "model").get(name)
    annotated = inspect.Parameter.empty if parameter is None else parameter.annotation
    if annotated is inspect.Parameter.empty:
        return not isinstance(node[name], int)
    return annotated is float or "float" in str(annotated)


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    """Return what a `model` node gives its class: all but the model's name, unless the class has such an argument."""
    return {key: value for key, value in node.items() if key != "name" or key in _parameters(node, "model")}


def _check_arguments(node: dict[str, Any], path: str) -> dict[str, inspect.Parameter]:
    """Check each `_target_` below `node` and its keys against the target's signature, and return that signature."""
    parameters = _parameters(node, path)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if (mode := node.get("_convert_", "all")) not in CONVERSIONS:
        raise ConfigError(f"{path}._convert_={mode} is not one of {', '.join(CONVERSIONS)}")
    for key, value in node.items():
        if key in OF_HYDRA:
            continue
        known = parameters.get(key)
        if known is None and not open_ended:
            raise ConfigError(f"{path}.{key}: {node['_target_']} does not have this argument{nearest(key, parameters)}")
        if known is not None and not _is_default(value, known):
            _check_type(f"{path}.{key}", value, known.annotation)
        if isinstance(value, dict) and "_target_" in value:  # others are arguments that are dictionaries
            _check_arguments(value, f"{path}.{key}")
    for key, parameter in parameters.items():
        if "_args_" in node:
            break
        if _is_part(parameter.annotation) and parameter.default is parameter.empty and key not in node:
            raise ConfigError(f"{path}.{key} is missing: {node['_target_']} needs it")
    return parameters


def _parameters(node: dict[str, Any], path: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a node's target by name, and those of the class that it passes other arguments to."""
    target = node.get("_target_")
    if target is None:
        raise ConfigError(f"{path} has no _target_, the class to build")
    found = import_target(target, path)
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}._target_={target} cannot be called: {in_one_line(error)}") from error
    parameters = dict(signature.parameters)
    built = signature.return_annotation
    variadic = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    if variadic and inspect.isclass(built) and built is not signature.empty:
        del parameters[variadic[0]]
        parameters = dict(inspect.signature(built).parameters) | parameters
    return parameters


def _is_part(annotation: Any) -> bool:
    """Return whether an argument may be a class or a function that builds a part of the network."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return any(get_origin(kind) is Callable or getattr(kind, "_is_protocol", False) for kind in kinds)


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    """Return whether a value is the default of its argument, which the annotation may leave out."""
    return value is parameter.default or (type(value) is type(parameter.default) and value == parameter.default)


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Raise ConfigError for a value whose type does not match the plain type that annotates the target's argument."""
    if get_origin(annotation) is Sequence:
        if not isinstance(value, list):
            raise ConfigError(f"{key} must be a list, not {value!r}")
        for kind in get_args(annotation)[:1]:  # a bare Sequence has none
            for element in value:
                _check_type(key, element, kind)
        return
    of_several = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    wanted = [kind for kind in of_several or (annotation,) if kind is not NoneType]
    if value is None and len(wanted) < len(of_several):
        return
    parts = [kind for kind in wanted if _is_part(kind)]
    if parts and (len(parts) == len(wanted) or isinstance(value, dict)):
        if not isinstance(value, dict) or "_target_" not in value:
            raise ConfigError(f"{key} must have a _target_ (the class to build) and its arguments, not {value!r}")
        if value.get("_partial_") is not True:
            raise ConfigError(f"{key}._partial_ must be true: the network adds more arguments")
        return
    if len(wanted) != 1 or not any(wanted[0] is kind for kind in IN_WORDS):  # an annotation may be unhashable
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number if wanted[0] is float else type(value) is wanted[0]):
        raise ConfigError(f"{key} must be {IN_WORDS[wanted[0]]}, not {value!r}")


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
