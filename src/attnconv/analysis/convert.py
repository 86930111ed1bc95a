"""Convert all convolutions of a network to attention, and back; or name the ones that cannot be converted.

Shared layers stay one layer, tied parameters stay tied, frozen ones frozen.
"""

import copy
import re
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from attnconv.analysis.attention_to_conv import convolution_from_attention
from attnconv.analysis.conv_to_attention import ALPHA, ConvolutionAsAttention, leak
from attnconv.analysis.plain_convolution import Inconvertible, is_uninitialized, same_numbers
from attnconv.analysis.unchanged import Seen, difference, parts, unchanged, watching
from attnconv.errors import first_few, is_out_of_memory
from attnconv.files import with_line
from attnconv.models.process_state import kept_generators

ROLES = {"weight": "value", "bias": "bias"}  # the new names of a convolution's parameters


def convert(model: nn.Module, alpha: float = ALPHA, example: Any = None) -> dict[str, ConvolutionAsAttention]:
    """Replace all convolutions inside a model, in place, and return the replacements by name.

    Shared layers stay one layer, and tied weights stay tied. Convolutions that are not layers (torch.nn.functional,
    modules in Python lists, operators of other libraries) are only visible while the model runs. With an example, the
    model runs on it before and after, in evaluation mode, and both outputs must be equal up to rounding, or only have
    the same type and shape where alpha is so small that the heads are not exact.

    Args:
        example: the only argument of the model, or None if all convolutions are layers of it and are only called.

    Raises:
        Inconvertible: there is no convolution, some cannot be converted, or with the example one is computed elsewhere,
            a layer is not called, or the output changes. The message names them, and nothing is replaced.
        ValueError: alpha is not above 0, or above LARGEST_ALPHA.
    """
    refuse_opaque(model)
    convolutions = {name: layer for name, layer in model.named_modules() if isinstance(layer, _ConvNd)}
    if "" in convolutions:
        raise Inconvertible(
            "the model itself is a convolution and cannot be replaced in place: use ConvolutionAsAttention(model)"
        )
    made: dict[nn.Module, nn.Module] = {}
    refused = _tied_elsewhere(model, set(convolutions.values()))
    for name, layer in convolutions.items():
        try:
            with unchanged(layer):
                made[layer] = ConvolutionAsAttention(layer, alpha)
        except Inconvertible as reason:
            refused.append(f"{name} ({reason})")
    if refused:
        raise Inconvertible(f"cannot convert {first_few(refused)}")
    if not made:
        raise Inconvertible("the model has no convolution layer (nn.Conv1d or nn.Conv2d)")
    _keep_ties(made, ROLES)
    if example is not None:
        _check_on(model, example, made, exact=leak(alpha) < torch.finfo(torch.float32).eps)
    replaced: dict[str, Any] = _replace(model, made)
    return replaced


def convert_back(model: nn.Module) -> dict[str, nn.Module]:
    """Replace all ConvolutionAsAttention inside a model by their convolutions, in place, and return these by name.

    Raises:
        Inconvertible: there is none, or some cannot be converted; the message names them, and nothing is replaced.
    """
    refuse_opaque(model)
    attention = {name: layer for name, layer in model.named_modules() if isinstance(layer, ConvolutionAsAttention)}
    made: dict[nn.Module, nn.Module] = {}
    refused = []
    for name, layer in attention.items():
        try:
            made[layer] = convolution_from_attention(layer)
        except Inconvertible as reason:
            refused.append(f"{name} ({reason})")
    if refused:
        raise Inconvertible(f"cannot convert {first_few(refused)}")
    if not made or "" in attention:
        raise Inconvertible("the model contains no attention that was a convolution, or is one itself")
    _keep_ties(made, {new: old for old, new in ROLES.items()})
    return _replace(model, made)


def _replace(model: nn.Module, by: Mapping[nn.Module, nn.Module]) -> dict[str, nn.Module]:
    """Replace modules everywhere in a model, and return the new ones by all of their names."""
    names = {name: by[module] for name, module in model.named_modules(remove_duplicate=False) if module in by}
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if module is not None and module in by:
                parent._modules[child] = by[module]  # not setattr, which a network may restrict
    return names


def _keep_ties(made: Mapping[nn.Module, nn.Module], roles: Mapping[str, str]) -> None:
    """Tie parameters of new layers whose old ones were tied; `roles` maps old to new names."""
    first: dict[Any, Any] = {}
    for old, new in made.items():
        for before, after in roles.items():
            parameter = old._parameters.get(before)
            if parameter is None:
                continue
            own = getattr(new, after)
            tied = first.setdefault(_memory(parameter), own)
            if not same_numbers(tied, own):
                raise Inconvertible(f"layers share a {before} and compute with different ones: cannot keep them tied")
            setattr(new, after, tied)


def _memory(parameter: nn.Parameter) -> Any:
    """Return what parameters that are the same numbers in memory have in common."""
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel() or parameter.layout is not torch.strided:
        return id(parameter)
    return parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype


def _check_on(model: nn.Module, example: Any, made: Mapping[nn.Module, nn.Module], exact: bool) -> None:
    """Raise Inconvertible if replacing modules changes the model's output for an example, or cannot be tested on it."""
    for name, part in model.named_modules():
        if is_uninitialized(part):
            raise Inconvertible(f"{name} is not initialized: run the model once")
    with unchanged(model):
        before = _output(model, example, "the network cannot run on the example, its only argument")
    seen = Seen()
    with unchanged(nn.ModuleList([model, *made.values()])):
        replaced = _replace(model, made)
        with watching(model, seen):
            after = _output(model, example, "the converted network cannot run on the example", replaced)
    seen.refuse_convolutions()
    seen.refuse_uncalled(replaced)
    if found := difference(before, after, seen.kinds, exact):
        with unchanged(model):
            again = _output(model, example, "the network cannot run on the example twice")
        if changing := difference(before, again, seen.kinds, exact):
            raise Inconvertible(f"the network gives outputs that cannot be compared, even unconverted: {changing}")
        raise Inconvertible(
            f"the converted network computes something else: {found}; its code depends on more of a convolution than "
            "its output"
        )


def _output(model: nn.Module, example: Any, failed: str, replaced: Mapping[str, nn.Module] | None = None) -> Any:
    """Return the parts of a model's output for a copy of an example, in evaluation mode.

    Args:
        failed: begins the message if it has none.
        replaced: layers that the message names.

    Raises:
        Inconvertible: it has none.
    """
    try:
        with torch.no_grad(), kept_generators():
            model.eval()
            return parts(model(copy.deepcopy(example.detach() if isinstance(example, Tensor) else example)))
    except Exception as error:  # a network may raise any error
        if is_out_of_memory(error):
            raise
        used = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = [name for module in reversed(used) for name, layer in (replaced or {}).items() if layer is module]
        raise Inconvertible(": ".join([failed, *names[:1], with_line(error)])) from error


def _tied_elsewhere(model: nn.Module, convolutions: set[nn.Module]) -> list[str]:
    """Name the modules that share a convolution's parameter, but not as a convolution's weight or bias."""
    roles: dict[Any, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                roles.setdefault(_memory(parameter), []).append((path, module, name))
    parts = {part for layer in convolutions for part in layer.modules()}
    refused = []
    for owners in roles.values():
        kinds = {(name, owner.groups if owner in convolutions else None) for _, owner, name in owners}
        alike = len(kinds) == 1 and all(owner in convolutions and name in ROLES for _, owner, name in owners)
        if len(owners) > 1 and not alike and any(owner in parts for _, owner, _ in owners):
            refused.append(f"{' and '.join(path for path, *_ in owners)} (they share a parameter)")
    return refused


def refuse_opaque(model: nn.Module) -> None:
    """Raise Inconvertible for models whose layers cannot be replaced."""
    if not isinstance(model, nn.Module):
        raise Inconvertible(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    for name, module in model.named_modules():
        what = name or "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise Inconvertible(f"{what} is scripted or traced: convert the model before torch.jit")
        if re.match(r"torch\..*\.quantized\.", type(module).__module__):
            raise Inconvertible(f"{what} is quantized ({type(module).__name__}): convert the float model")
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which raises an error there
            raise Inconvertible(f"{what} is exported: convert the model before torch.export")
        if hasattr(module, "_orig_mod"):
            raise Inconvertible(f"{what} is compiled: convert the model before torch.compile")
