"""Read the convolution that a layer computes by running the layer, not from its attributes.

Attributes can be edited after construction, and a subclass, a parametrization or a hook can use another weight or
padding than the layer shows. So the layer runs on random maps, and the arguments of torch.conv1d or torch.conv2d are
recorded. Weight standardization, weight and spectral norm, pruning and TensorFlow's SAME padding are evaluated on the
way. The layer runs in evaluation mode: what it does only in training, such as dropping weights, is not converted.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from attnconv.errors import UserError
from attnconv.files import in_one_line, with_line
from attnconv.models.process_state import evaluating

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# These hooks compute the weight from other parameters before each call; other hooks may do anything.
REPARAMETRIZATIONS = (BasePruningMethod, SpectralNorm, WeightNorm)
MARGIN = 2  # pixels by which the maps are larger than the kernel


class Inconvertible(UserError):
    """A convolution that cannot become attention, or attention that is not a convolution."""


@dataclass(frozen=True)
class PlainConvolution:
    """A convolution, as its layer computes it.

    weight is (O, C/G, ...) and bias (O,) or None. stride and dilation have one number per axis, and groups is G. pads
    has both sides of each axis, last axis first, as for F.pad, or is None for TensorFlow's SAME, which depends on the
    map. pad_mode is F.pad's name.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pads: tuple[int, ...] | None
    pad_mode: str


def same_pads(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Compute TensorFlow's SAME padding for a map of `size`, in F.pad's format: last axis first."""
    totals = [
        max(((pixels - 1) // step) * step + (taps - 1) * gap + 1 - pixels, 0)
        for pixels, taps, step, gap in zip(size, kernel, stride, dilation, strict=True)
    ]
    return _halves(totals)


def static_same_pads(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Compute the padding of PyTorch's padding="same", in F.pad's format: last axis first."""
    return _halves([gap * (taps - 1) for taps, gap in zip(kernel, dilation, strict=True)])


def read_convolution(layer: Any) -> PlainConvolution:
    """Run a layer on random maps in evaluation mode, and return the one convolution that it computes.

    Raises:
        Inconvertible: it computes anything else; the message has the reason, and the caller adds the layer's name.
    """
    try:
        return _read(layer)
    except (AttributeError, TypeError, ValueError) as error:  # a subclass may use the attributes for anything
        raise Inconvertible(f"its attributes are not those of a convolution: {in_one_line(error)}") from error


@torch.no_grad()
def _read(layer: Any) -> PlainConvolution:
    refuse_hooks(layer)
    with evaluating(layer):
        axes = layer.weight.dim() - 2
        if axes not in (1, 2) or layer.transposed:
            raise Inconvertible("not a 1-D or 2-D convolution")
        if 0 in layer.weight.shape:
            raise Inconvertible("its weight is empty: it has no channels")
        # All remainders by the stride, because SAME padding depends on them; for PyTorch's own layers, two maps
        # suffice.
        sizes = range(max(_each(layer.stride, axes)) + 2 if _has_own_code(layer) else 2)
        calls = [_watch(layer, axes, extra) for extra in sizes]
    first = calls[0]
    for call in calls[1:]:
        if not (same_numbers(call.weight, first.weight) and same_numbers(call.bias, first.bias)):
            raise Inconvertible("its weight depends on its input")
        if call.settings != first.settings:
            raise Inconvertible("its stride, dilation, groups or kind of padding depends on its input")
    return PlainConvolution(
        first.weight, first.bias, first.stride, first.dilation, first.groups, _pads(calls), first.pad_mode
    )


@dataclass(frozen=True)
class _Call:
    """One call of torch.conv1d or torch.conv2d: its arguments, and all padding before it."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pads: tuple[int, ...]
    pad_mode: str
    size: tuple[int, ...]  # of the map before padding

    @property
    def settings(self) -> tuple[Any, ...]:
        """Return what must be the same for all inputs, besides the weights."""
        return self.stride, self.dilation, self.groups, self.pad_mode


def _has_own_code(layer: nn.Module) -> bool:
    """Return whether a layer computes its output by other code than PyTorch's convolutions."""
    names = ("forward", "_conv_forward")
    of_torch = {getattr(kind, name) for kind in (nn.Conv1d, nn.Conv2d) for name in names}
    return any(getattr(type(layer), name, None) not in of_torch or name in vars(layer) for name in names)


def _watch(layer: Any, axes: int, extra: int) -> _Call:
    """Run a layer on a map that is `extra` pixels larger than needed, and return its one convolution."""
    # A reparametrized weight has the type of its parameters only after the next call.
    weight = layer.weight
    like = next(layer.parameters(), weight)  # a layer with a fixed kernel has no parameters
    widest = 0 if isinstance(layer.padding, str) else max(_each(layer.padding, axes))
    steps = _each(layer.dilation, axes)
    reach = [step * (taps - 1) + 1 for step, taps in zip(steps, weight.shape[2:], strict=True)]
    size = [max(side, widest) + MARGIN + extra for side in reach]
    draw = torch.Generator().manual_seed(extra)
    shape = (1 + extra % 2, weight.shape[1] * layer.groups, *size)
    x = torch.randn(shape, generator=draw, dtype=like.dtype, device="cpu").to(like.device)
    untouched = x.clone()
    with _Recorder() as seen:
        try:
            out = layer(x)
        except Exception as error:  # a layer may raise any error
            raise Inconvertible(f"cannot be called: {with_line(error)}") from error
    call = _only_convolution(seen, x, out, axes)
    _refuse_changes_in_place(call, untouched, out)
    _refuse_own_autocast(layer, x, seen)
    return call


def _refuse_own_autocast(layer: nn.Module, x: Tensor, seen: "_Recorder") -> None:
    """Raise Inconvertible if a layer's output under autocast has another type than its convolution's."""
    if x.device.type == "meta":
        return
    function, found, _ = seen.convolutions[0]
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        out, plain = layer(x), function(**found)
    if out.dtype != plain.dtype:
        raise Inconvertible(f"computes in {str(out.dtype).removeprefix('torch.')} under autocast")


def _only_convolution(seen: "_Recorder", x: Tensor, out: Any, axes: int) -> _Call:
    """Check that x, perhaps padded, is the input of one convolution, and that its output was returned."""
    if len(seen.convolutions) != 1:
        raise Inconvertible(f"computes {len(seen.convolutions)} convolutions")
    function, found, result = seen.convolutions[0]
    if function not in (torch.conv1d, torch.conv2d):
        raise Inconvertible(f"computes {function.__name__}")
    source, pads, mode = found["input"], (0,) * (2 * axes), "constant"
    if source is not x:
        padded = [(pads, mode) for before, pads, mode, after in seen.pads if before is x and after is source]
        if not padded:
            raise Inconvertible("changes its input before the convolution")
        pads, mode = padded[0]
        if len(pads) > 2 * axes:
            raise Inconvertible("pads its channels")
    if out is not result:
        raise Inconvertible("changes the convolution's output")
    stride, dilation = _each(found["stride"], axes), _each(found["dilation"], axes)
    own = _own_pads(found["padding"], tuple(found["weight"].shape[2:]), dilation)
    if any(own) and (mode != "constant" or min(pads) < 0):
        raise Inconvertible("pads in two ways")
    pads = pads + (0,) * (len(own) - len(pads))
    return _Call(
        found["weight"], found["bias"], stride, dilation, found["groups"],
        tuple(map(sum, zip(pads, own, strict=True))), mode, tuple(x.shape[2:]),
    )  # fmt: skip


def _refuse_changes_in_place(call: _Call, x: Tensor, out: Tensor) -> None:
    """Raise Inconvertible if x or the output was changed in place."""
    if x.device.type == "meta":
        return
    function = torch.conv1d if x.dim() == 3 else torch.conv2d
    padded = F.pad(x, call.pads, mode=call.pad_mode)
    again = function(padded, call.weight, call.bias, call.stride, 0, call.dilation, call.groups)
    rounding = 64 * torch.finfo(out.dtype).eps * again.abs().max()
    if (again - out).abs().max() > rounding:
        raise Inconvertible("changes the convolution's input or output in place")


def _pads(calls: list[_Call]) -> tuple[int, ...] | None:
    """Return the padding of all calls, or None for TensorFlow's SAME."""
    if len({call.pads for call in calls}) == 1:
        return calls[0].pads
    for call in calls:
        if call.pads != same_pads(call.size, tuple(call.weight.shape[2:]), call.stride, call.dilation):
            raise Inconvertible("its padding depends on the map in an unknown way")
    return None


class _Recorder(TorchFunctionMode):
    """Record all calls of a convolution, with named arguments and result, and all calls of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[tuple[Any, dict[str, Any], Tensor]] = []
        self.pads: list[tuple[Tensor, tuple[int, ...], str, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if getattr(function, "__name__", "").startswith("conv"):
            defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            named = dict(zip(ARGUMENTS, args, strict=False))
            self.convolutions.append((function, defaults | named | kwargs, out))
        elif function is F.pad:
            found = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if not found.get("value"):
                self.pads.append((found["input"], tuple(found["pad"]), found.get("mode", "constant"), out))
        return out


def refuse_hooks(layer: nn.Module) -> None:
    """Raise Inconvertible for a layer with hooks, or one that cannot run yet."""
    if is_uninitialized(layer):
        raise Inconvertible("not initialized: run the model once")
    before = [hook for hook in layer._forward_pre_hooks.values() if not isinstance(hook, REPARAMETRIZATIONS)]
    of_parameters = [part._backward_hooks or part._post_accumulate_grad_hooks for part in layer.parameters()]
    if before or layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks or any(of_parameters):
        raise Inconvertible("has hooks, which would be lost: remove them")


def is_uninitialized(layer: nn.Module) -> bool:
    """Return whether a layer takes its size from its first input, and has had none yet."""
    return isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params()


def _own_pads(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Return the padding that a convolution applies itself, last axis first."""
    if padding == "same":
        return static_same_pads(kernel, dilation)
    sides = _each(0 if padding == "valid" else padding, len(kernel))
    return tuple(side for pad in reversed(sides) for side in (pad, pad))


def _halves(totals: list[int]) -> tuple[int, ...]:
    """Split the total padding of each axis into two sides, last axis first; the odd pixel goes to the end."""
    return tuple(side for total in reversed(totals) for side in (total // 2, total - total // 2))


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """Return one number per axis, given one or several numbers."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def same_numbers(a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether two tensors are equal; nan equals nan, and on the meta device all are equal."""
    if a is None or b is None:
        return a is b
    return a is b or a.device.type == "meta" or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
