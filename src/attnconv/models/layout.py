"""Place a network on its device in channels-last layout, and avoid a kernel that writes out of bounds.

For a 1 x 1 convolution with a stride, in channels-last layout and with fewer channels than a vector register holds,
oneDNN's backward pass writes past its workspace (3.12 and 3.13 at least, in torch 2.14 and 2.15): 8 channels on AVX2,
16 on AVX-512 (https://github.com/uxlfoundation/oneDNN/issues/6035). The process aborts, hangs, or continues with wrong
gradients. Another layout alone does not help: activations inherit the layout of images and permuted maps, and
torch.compile chooses its own. Selecting every stride-th pixel first and convolving these with stride 1 computes the
same function in any layout, without that kernel.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SAFE_CHANNELS = 16  # float32 numbers in an AVX-512 register, oneDNN's largest block of channels


def place(model: nn.Module, device: torch.device) -> None:
    """Move a network to its device in channels-last layout for training, in place. Its function stays the same.

    On a CPU, the convolutions that oneDNN cannot train (see the module) then subsample their input first.
    """
    model.to(device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        for layer in model.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d) and is_faulty(layer):
                # A module-level function in a partial, so that the network can still be copied and pickled.
                layer.forward = partial(_subsampled, layer)  # type: ignore[method-assign]


def is_faulty(layer: nn.Conv1d | nn.Conv2d) -> bool:
    """Return whether oneDNN's backward pass of this convolution can write past its workspace."""
    return _is_faulty(layer.in_channels, layer.kernel_size, layer.stride, layer.padding, layer.groups)


class FaultyCall(ValueError):
    """A call of a function for a convolution that oneDNN cannot train."""


class FaultyCalls(TorchFunctionMode):
    """While entered, raise FaultyCall for a convolution of a function, where `place` cannot avoid the kernel."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.conv1d, F.conv2d) and _call_is_faulty(*args, **kwargs):
            raise FaultyCall(
                "on a CPU, PyTorch cannot compute the gradients of a 1 x 1 convolution with a stride that is called "
                "as a function; call a layer, or select the pixels first: x[..., ::2, ::2]"
            )
        return func(*args, **kwargs)


def _call_is_faulty(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    if not (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)):
        return False  # only the backward pass is faulty
    stride, padding = ((value,) if isinstance(value, int) else value for value in (stride, padding))
    return _is_faulty(weight.shape[1], weight.shape[2:], stride, padding, groups)


def _is_faulty(
    channels: int, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int] | str, groups: int
) -> bool:
    return (
        set(kernel_size) == {1}
        and set(stride) != {1}
        and (padding == "valid" or set(padding) == {0})
        and groups == 1
        and channels < SAFE_CHANNELS
    )


def _subsampled(layer: Any, input: Tensor) -> Any:
    """Return the layer's outputs for images (B, C, ...); the layer keeps its stride, which other code may read.

    The argument has the name that nn.Conv2d gives it.
    """
    stride = layer.stride
    pixels: Any = (..., *(slice(None, None, step) for step in stride))
    layer.stride = (1,) * len(stride)
    try:
        return type(layer).forward(layer, input[pixels])
    finally:
        layer.stride = stride
