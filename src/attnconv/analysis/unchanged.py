"""Run a network without changing it: detect its convolutions, and compare its output with that of another network."""

import copy
import math
import re
import reprlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from attnconv.analysis.plain_convolution import Inconvertible, same_numbers
from attnconv.errors import first_few

ROUNDINGS = 16  # of numbers around 1, by which outputs that should cancel to 0 may differ
# aten::conv2d, aten::convolution, torchvision::deform_conv2d, quantized::conv2d and so on; not convert_element_type.
CONVOLVES = re.compile(r"conv(?!ert)")


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Undo afterwards what code does to the layers, parameters, buffers and other attributes of a network."""
    attributes = [(vars(module), dict(vars(module))) for module in network.modules()]
    values = [value for _, before in attributes for value in before.values()]
    containers = [(value, copy.copy(value)) for value in values if isinstance(value, dict | list | set)]
    inside = [value for held, _ in containers if isinstance(held, dict) for value in held.values()]
    tensors = {id(value): value for value in (*values, *inside) if isinstance(value, Tensor) and not is_lazy(value)}
    numbers = [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in tensors.values()]
    try:
        yield
    finally:
        for now, before in attributes:
            now.clear()
            now.update(before)
        for held, contents in containers:
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(contents)
        for tensor, storage, before_ in numbers:
            if tensor.shape != before_.shape or tensor.dtype != before_.dtype or not same_numbers(tensor, before_):
                with torch.no_grad():
                    tensor.data = storage  # code may have given it another one
                    storage.copy_(before_)


def parts(output: Any, place: str = "the output", above: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Return the parts of a network's output by their place: copies of tensors, other values, types of containers.

    Args:
        above: the containers that this output is in; one that holds itself is not entered again.
    """
    if any(output is container for container in above):
        return {place: type(output)}
    inner = _inner(output)
    if inner is None:
        if isinstance(output, Tensor):
            return {place: output.detach().clone()}
        return {place: output if _is_compared_by_identity(output) else copy.copy(output)}
    found: dict[str, Any] = {place: type(output)}
    for name, value in inner.items():
        found |= parts(value, place + name, (*above, output))
    return found


def _inner(output: Any) -> dict[str, Any] | None:
    """Return the parts of a container by name, or None for a value, which may be of any class."""
    if isinstance(output, type) or (isinstance(output, Tensor) and not output.is_nested):
        return None
    if is_dataclass(output):
        return {f".{field.name}": getattr(output, field.name, None) for field in fields(output)}
    if isinstance(output, Mapping):
        return {f"[{key!r}]": value for key, value in output.items()}
    if isinstance(output, Tensor):  # a nested one
        output = output.unbind()
    if isinstance(output, np.ndarray):
        output = output.ravel() if output.dtype.kind == "O" else None
    if isinstance(output, list | tuple | deque | np.ndarray):
        return {f"[{index}]": value for index, value in enumerate(output)}
    if output is None or isinstance(output, nn.Module) or callable(output):
        return None
    slots = [name for kind in type(output).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(output, name) for name in (*getattr(output, "__dict__", ()), *slots) if hasattr(output, name)}
    return {f".{name}": value for name, value in held.items()} or None


def _is_compared_by_identity(value: Any) -> bool:
    return type(value).__eq__ is object.__eq__


def difference(before: dict[str, Any], after: dict[str, Any], kinds: Iterable[torch.dtype], values: bool) -> str | None:
    """Return in words where the `parts` of two outputs differ by more than rounding, or None.

    Args:
        kinds: floating types that the network has computed with.
        values: whether to compare numbers, too, not only types and shapes.
    """
    coarsest = max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)
    compared = False
    for place in before | after:
        kind, wanted = (_kind(found[place]) if place in found else "missing" for found in (after, before))
        if kind != wanted:
            return f"{place} is {kind}, not {wanted}"
        if values and (how := _apart(before[place], after[place], coarsest)):
            return f"{place} {how}"
        compared = compared or _can_differ(before[place])
    return "they have no numbers" if values and not compared else None


def _can_differ(value: Any) -> bool:
    """Return whether two networks can differ in this part; they cannot if it is empty, all NaN or a container."""
    numbers = _numbers(value)
    if numbers is None:
        return value is not None and not isinstance(value, type)
    return bool((~numbers.isnan()).any())


def _kind(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {(value if isinstance(value, type) else type(value)).__name__}"


def _apart(before: Any, after: Any, coarsest: float) -> str | None:
    """Return in words how two values of the same kind differ, or None if that is rounding."""
    if before is after or isinstance(before, type) or (isinstance(before, Tensor) and before.is_meta):
        return None
    a, b = _numbers(before), _numbers(after)
    if a is None or b is None:
        if isinstance(before, Tensor | np.ndarray) or _is_compared_by_identity(before):
            return f"is a {type(before).__name__}, which cannot be compared"
        return f"is {reprlib.repr(after)}, not {reprlib.repr(before)}" if before != after else None
    if not a.numel():
        return None
    # Errors of rounding grow from layer to layer: half of the digits is the usual allowance.
    allowed = math.sqrt(max(coarsest, 2.0**-10) if _is_cuda(before) else coarsest)  # where PyTorch rounds to TF32
    same = (a == b) | (a.isnan() & b.isnan())
    if not (a.is_floating_point() or a.is_complex()):  # rounding changes few classes, indices or masks
        share = 1 - same.double().mean().item()
        return f"differs in {share:.2%} of its values" if share > allowed else None
    off = (a - b).abs().where(~same, 0.0).nan_to_num(nan=math.inf).max().item()
    largest = a.abs().where(a.isfinite(), 0.0).max().item()
    if off <= allowed * largest + ROUNDINGS * coarsest:
        return None
    return f"differs by up to {off:.2g}, of up to {largest:.2g}"


def _numbers(value: Any) -> Tensor | None:
    """Return a value as a tensor on the CPU, wide enough for differences, or None if it has no numbers to compare."""
    if isinstance(value, float | complex | np.ndarray | np.number) and np.asarray(value).dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, Tensor) or value.is_meta:
        return None
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:  # its class decides what its numbers mean
        return None
    value = value.as_subclass(Tensor) if type(value) is not Tensor and value.layout is torch.strided else value
    value = value.dequantize() if value.is_quantized else value
    value = value.to_dense().cpu() if value.layout is not torch.strided else value.cpu()
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def _is_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


@dataclass
class Seen:
    """The calls of a network while it was watched."""

    called: set[nn.Module] = field(default_factory=set)
    convolving: dict[str, str] = field(default_factory=dict)  # innermost module's name -> operator
    kinds: set[torch.dtype] = field(default_factory=set)  # floating types of results

    def refuse_convolutions(self) -> None:
        """Raise Inconvertible if a convolution was computed, naming the modules that computed one."""
        if self.convolving:
            found = first_few([f"{name} ({operator})" for name, operator in self.convolving.items()])
            raise Inconvertible(f"cannot convert the convolutions that are not layers, computed inside {found}")

    def refuse_uncalled(self, replaced: dict[str, Any]) -> None:
        """Raise Inconvertible if a layer was not called, because then its conversion was not tested."""
        uncalled = [name for name, layer in replaced.items() if layer not in self.called]
        if uncalled:
            raise Inconvertible(f"not reached by the images, so not known to be converted: {first_few(uncalled)}")


@contextmanager
def watching(model: nn.Module, seen: Seen) -> Iterator[None]:
    """Record in `seen` which modules of a model are called and which compute convolutions.

    All operators of this thread are visible below autograd and inference mode, including those of functions and of
    modules in Python lists; they are attributed to the innermost known module. Other threads are not watched.
    """
    inside = [type(model).__name__]

    def watched(name: str, module: nn.Module, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            inside.append(f"{name} {type(module).__name__}".lstrip())
            seen.called.add(module)
            try:
                return forward(*args, **kwargs)
            finally:
                inside.pop()

        return call

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if CONVOLVES.search(function.name()):
                seen.convolving.setdefault(inside[-1], function.name())
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex()):
                seen.kinds.add(out.dtype)
            return out

    # Not hooks, because a network may call a layer's `forward` itself.
    before: dict[Any, Any] = {}
    for name, module in model.named_modules():
        before[module] = vars(module).get("forward")
        vars(module)["forward"] = watched(name, module, module.forward)
    try:
        with Watch():
            yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward
