"""Place a network on its device in channels-last layout, and avoid a kernel that writes out of bounds.

For a 1 x 1 convolution with a stride, in channels-last layout and with fewer channels than a vector register holds,
oneDNN's backward pass writes past its workspace (3.12 and 3.13 at least, in torch 2.14 and 2.15): 8 channels on AVX2,
16 on AVX-512 (https://github.com/uxlfoundation/oneDNN/issues/6035). The process aborts, hangs, or continues with wrong
gradients. Another layout alone does not help: activations inherit the layout of images and permuted maps, and
torch.compile chooses its own. Selecting every stride-th pixel first and convolving these with stride 1 computes the
same function in any layout, without that kernel.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SAFE_CHANNELS = 16  # float32 numbers in an AVX-512 register, oneDNN's largest block of channels


def place(model: nn.Module, device: torch.device) -> None:
    """Move a network to its device in channels-last layout for training, in place. Its function stays the same.

    On a CPU, the convolutions that oneDNN cannot train (see the module) then have stride 1 and subsample their input
    first.
    """
    model.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        for layer in model.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d) and is_faulty(layer):
                _subsample_first(layer)


def is_faulty(layer: nn.Conv1d | nn.Conv2d) -> bool:
    """Return whether oneDNN's backward pass of this convolution can write past its workspace."""
    return (
        set(layer.kernel_size) == {1}
        and set(layer.stride) != {1}
        and layer.padding in ((0,) * len(layer.stride), "valid")
        and layer.groups == 1
        and layer.in_channels < SAFE_CHANNELS
    )


def _subsample_first(layer: nn.Conv1d | nn.Conv2d) -> None:
    pixels = (..., *(slice(None, None, stride) for stride in layer.stride))
    layer.stride = (1,) * len(layer.stride)
    # A module-level function in a partial, so that the network can still be copied and pickled.
    layer.register_forward_pre_hook(partial(_subsample, pixels))


def _subsample(pixels: tuple[Any, ...], _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0][pixels]
