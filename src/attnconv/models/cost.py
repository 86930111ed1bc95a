"""The cost of a model before training: parameters, floating-point operations and memory of activations.

FLOPs are counted per image, forward, two per multiply-add, in two ways:

    paper   linear and convolutional layers only, as in the published 6.2B, 15B and 1.1B (the paper's Table 1);
    full    all matrix products, convolutions and FFTs that are computed, including those of attention, and also results
            that a mask discards. Elementwise operations are left out.

Weights outside of linear and convolutional modules (locally_connected, depthwise_global) count in full only.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.errors import ConfigError, counted
from attnconv.files import in_one_line
from attnconv.models.build import build_model, errors_of_network
from attnconv.models.process_state import kept_settings
from attnconv.settings.limits import from_elsewhere

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def build_unfilled(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the model of a `model` node in evaluation mode on the meta device, without memory for weights.

    A model whose constructor reads the values of tensors needs memory: it is on the CPU.

    Raises:
        ConfigError: see `build_model`.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # A constructor may load weights, and there is no memory for them here.
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            model = build_model(node, image_shape, classes)
    except ConfigError as error:
        # Code from elsewhere may take a tensor without values for a mistake; on the CPU, it has a true one or none.
        if "meta" not in str(error).lower() and not from_elsewhere(node):
            raise
        return build_filled(node, image_shape, classes)
    model.eval()  # on its own line, because a user's network may forget to return itself
    return model


def build_filled(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return the model of a `model` node in evaluation mode on the CPU; PyTorch's generator is left as it was.

    Raises:
        ConfigError: see `build_model`.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_model(node, image_shape, classes)
    model.eval()
    return model


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class ForwardPass:
    """What a model gave for its inputs, and the FLOPs per image counted in both ways; None if they were not counted.

    Args:
        missing: why the model could not run here, if it has an operator that the CPU lacks; it may run on a GPU.
    """

    outputs: Any
    flops_paper: int | None = None
    flops_full: int | None = None
    missing: str | None = None


@kept_settings()  # a rehearsal refuses networks that change them
def forward_untrained(
    node: dict[str, Any], image_shape: tuple[int, int, int], classes: int, images: Tensor, training: bool = False
) -> ForwardPass:
    """Return a counted forward pass of an untrained model, without memory for its weights if it can do without.

    A model that reads the values of its tensors fails on the meta device. It runs on the CPU instead, and its FLOPs are
    not counted: there our layers compute other products than those of their definition.

    Args:
        images: (B, C, H, W) on the CPU.
        training: whether the model is in training mode.

    Raises:
        ConfigError: see `build_model`.
        Exception: whatever the model raises on the CPU, unless it lacks an operator: see `ForwardPass.missing`.
    """
    model = build_unfilled(node, image_shape, classes)
    model.train(training)
    try:
        return counted_forward(model.to("meta"), images.to("meta"))
    except Exception:  # PyTorch and NumPy raise various errors for tensors without values
        model = build_filled(node, image_shape, classes)
        model.train(training)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _on_cpu(model, images)


def _on_cpu(model: nn.Module, images: Tensor) -> ForwardPass:
    try:
        return ForwardPass(model(images))
    except NotImplementedError as error:
        if "backend" not in str(error):  # a method without a body, not an operator without a kernel
            raise
        return ForwardPass(None, missing=in_one_line(error))


def forward_once(
    node: dict[str, Any], image_shape: tuple[int, int, int], classes: int, image: Tensor | None = None
) -> ForwardPass:
    """Return a counted forward pass of an untrained model on one image; see `forward_untrained`.

    Args:
        image: (1, C, H, W) on the CPU; None for a blank one.

    Raises:
        ConfigError: the model cannot be built, or cannot take the image.
    """
    size = "x".join(map(str, image_shape[1:]))
    with errors_of_network(f"model={node['name']} cannot take images of {size} pixels:"):
        image = torch.zeros(1, *image_shape) if image is None else image
        return forward_untrained(node, image_shape, classes, image)


def require_logits(logits: Any, images: int, classes: int) -> None:
    """Raise ValueError for what is not one floating-point logit per image and class."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"it gives a {type(logits).__name__}, not logits")
    if logits.shape != (images, classes):
        what, wanted = counted(images, "image"), (images, classes)
        raise ValueError(f"it gives {tuple(logits.shape)} for {what}, not {wanted}: one logit per class")
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise ValueError(f"it gives numbers of type {kind}, not logits, which are floating-point numbers")


def flops_without_memory(model: nn.Module, inputs: Tensor) -> int | None:
    """Return the full FLOPs per image, counted on the meta device; None if the model reads the values of its tensors.

    Args:
        model: on any device, and not changed; it must have run on real inputs, so that nothing else can fail.
        inputs: (B, ...) on any device.
    """
    try:
        return flops_full(copy.deepcopy(model).to("meta"), inputs.to("meta"))
    except Exception:  # PyTorch and NumPy raise various errors for tensors without values
        return None


def flops_paper(model: nn.Module, inputs: Tensor) -> int:
    """Return the FLOPs per image of linear and convolutional layers; see `counted_forward`."""
    flops = counted_forward(model, inputs).flops_paper
    assert flops is not None
    return flops


def flops_full(model: nn.Module, inputs: Tensor) -> int:
    """Return the FLOPs per image of all matrix products, convolutions and FFTs; see `counted_forward`."""
    flops = counted_forward(model, inputs).flops_full
    assert flops is not None
    return flops


def counted_forward(model: nn.Module, inputs: Tensor) -> ForwardPass:
    """Return a forward pass on inputs (B, ...) of a model on the meta device.

    On other devices, layers may use the weights of their parts without calling them, which the paper's count would
    miss.
    """
    from attnconv.models.flops import flop_counter  # imports Triton

    paper = 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal paper
        if isinstance(module, nn.Linear):
            paper += 2 * module.in_features * out.numel()
        elif isinstance(module, CONVOLUTIONS):
            per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
            paper += 2 * per_output * out.numel()

    counter = flop_counter()
    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad(), _frozen(model), counter:
            outputs = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return ForwardPass(outputs, paper // len(inputs), counter.get_total_flops() // len(inputs))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters while entered.

    PyTorch's counter fails on a module whose input is a view of a trainable one.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def activation_bytes(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Return the bytes that one more image of a training batch keeps for the backward pass, in float32.

    On the meta device, a model keeps what its definition needs; fused kernels of a real device may keep less. The
    result is the difference between batches of 3 and 2, so weights and results that are computed once per step
    (probabilities of position-only attention) do not count.
    """
    model.train()  # in evaluation mode, dropout and batch norm would keep less
    device = next(model.parameters()).device
    small, large = (_saved_bytes(model, torch.zeros(count, *image_shape, device=device)) for count in (2, 3))
    return large - small


def _saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    own = {id(parameter) for parameter in model.parameters()}
    # Keep the storages alive until the end: a freed one could give its address to the next.
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
