"""Detect all convolutions that a running network computes, however they are called."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.errors import first_few

# aten::conv2d, aten::convolution, torchvision::deform_conv2d, quantized::conv2d and so on; not convert_element_type.
CONVOLVES = re.compile(r"conv(?!ert)")


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

    All operators are visible below autograd and inference mode, including those of functions and of modules in Python
    lists; they are attributed to the innermost known module.
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
