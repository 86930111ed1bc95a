"""What a model costs before a step is trained: weights, floating-point operations, memory of activations.

FLOPs are per image, forward, two per multiply-add, and counted in two ways:

    paper   linear and convolutional layers only, as in the published 6.2B, 15B and 1.1B (the paper's Table 1);
    full    every matrix product, convolution and FFT that is computed, attention's own included, also what a mask then
            throws away. Elementwise work is left out.

Weights that no linear or convolutional module holds (locally_connected, depthwise_global) count in full only.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.models.build import build_model

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def build_unfilled(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The model of a `model` node with shapes but no memory for its weights, ready for the counts below.

    Raises:
        ConfigError: see `build_model`.
    """
    with torch.device("meta"):
        return build_model(node, image_shape, classes).eval()


def parameters(model: nn.Module) -> int:
    """Number of weights, those included that are frozen."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_paper(model: nn.Module, inputs: Tensor) -> int:
    """FLOPs of linear and convolutional layers on inputs (B, ...), per image, of an unfilled model.

    Where there is memory, layers may use their parts' weights without calling them, which this would not see.
    """
    total = 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += 2 * module.in_features * out.numel()
        elif isinstance(module, CONVOLUTIONS):
            per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
            total += 2 * per_output * out.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return total // len(inputs)


def flops_full(model: nn.Module, inputs: Tensor) -> int:
    """FLOPs of every matrix product, convolution and FFT on inputs (B, ...), per image."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    fft = torch.ops.aten
    counter = FlopCounterMode(display=False, custom_mapping={fft._fft_r2c: _fft_flops, fft._fft_c2r: _fft_flops})
    with torch.no_grad(), _frozen(model), counter:
        model(inputs)
    return counter.get_total_flops() // len(inputs)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter learn for a while: torch's counter fails on a module that is given a view of one that does."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _fft_flops(input_shape: Any, dim: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """2.5 n log2 n per transform of n real numbers, the usual count of an FFT."""
    shape = max(tuple(input_shape), tuple(out_shape), key=math.prod)
    length = math.prod(shape[axis] for axis in dim)
    return int(2.5 * math.prod(shape) * math.log2(max(2, length)))


def activation_bytes(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Bytes that one more image of a training batch keeps for the backward pass, in float32, where the model is.

    A model without memory ("meta") keeps what its definitions say; fused kernels of a real device may keep less.

    The difference between batches of 3 and 2, so that what is computed once per step (probabilities of position-only
    attention) and the weights do not count.
    """
    model.train()  # evaluation would leave out what dropout and batch norm keep
    device = next(model.parameters()).device
    small, large = (_saved_bytes(model, torch.zeros(count, *image_shape, device=device)) for count in (2, 3))
    return large - small


def _saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    own = {id(parameter) for parameter in model.parameters()}
    # Kept alive until the end: a storage that was freed could lend its identity to the next one.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(inputs.requires_grad_())
    del out
    return sum(storage.nbytes() for storage in kept.values())
