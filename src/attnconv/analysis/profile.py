"""The cost and the receptive field of all models of the study before training: the rows of results/models.csv.

Costs are those of the model at its scale, on 32 x 32 images of ten classes. Receptive fields are measured on untrained
layers: six layers at width 64 (fully_connected: 16) on 16 x 16 positions of 2 x 2 pixels, with the paper's initial
centers; or the first six blocks (VGG: convolutions) of a convolutional network at width 16. Inputs are random.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.convolution_field import convolution_fields
from attnconv.analysis.receptive_field import (
    effective_side,
    influence,
    permutation_error,
    shift_error,
    stacked_support,
    support,
)
from attnconv.bench.timing import growth_exponent
from attnconv.config import CONFIGS, compose
from attnconv.errors import ConfigError
from attnconv.models.backbone import Backbone
from attnconv.models.build import build_model
from attnconv.models.cost import activation_bytes, build_unfilled, counted_forward, parameters
from attnconv.models.resnet import NonLocalBlock, ResNet
from attnconv.models.vgg import Vgg

IMAGE_SHAPE, CLASSES = (3, 32, 32), 10
DEPTH = 6
PATCH = 2
SIDE = IMAGE_SHAPE[1] // PATCH  # of the map, in positions
INPUTS = 16  # number of random inputs to average gradients over
MARGIN = 4  # positions, or pixels, that count as near the border
GROWTH_SIDES = (8, 16, 32, 64)
LARGEST_WEIGHTS = 2 * 2**30  # bytes; maps that need more memory for weights are left out of the growth


@dataclass(frozen=True)
class Theory:
    """The theory for a model: its cost's exponent in the number of pixels, and whether its kernels see content."""

    growth: float
    sees_content: bool


# Exponents of the mixing for many pixels. Attention in a random or global pattern is computed dense here.
THEORY = {
    "sa_quadratic": Theory(1.5, False),
    "sa_quadratic_generalized": Theory(2, False),
    "sa_learned": Theory(1.5, False),
    "sa_sinusoidal": Theory(1.5, False),
    "sa_distance": Theory(1.5, False),
    "sa_learned_content": Theory(2, True),
    "sa_learned_key": Theory(2, True),
    "sa_content": Theory(2, True),
    "sa_quadratic_content": Theory(2, True),
    "sa_sinusoidal_content": Theory(2, True),
    "sa_gated": Theory(2, True),
    "vit": Theory(2, True),
    "local_attention": Theory(1, True),
    "random_attention": Theory(2, True),
    "global_attention": Theory(2, True),
    "bigbird": Theory(2, True),
    "conv3x3": Theory(1, False),
    "depthwise_global": Theory(1, False),
    "mlp_mixer": Theory(1, False),
    "locally_connected": Theory(1, False),
    "fully_connected": Theory(2, False),
    "involution": Theory(1, True),
    "resnet18": Theory(1, False),
    "resnet10": Theory(1, False),
    "vgg11_bn": Theory(1, False),
    "se_resnet18": Theory(1, True),
    "nonlocal_resnet18": Theory(2, True),
}

SAME_LAYER = ("bigbird_window", "sa_quadratic_shifts", "sa_quadratic_random", "sa_quadratic_copied",
              "sa_quadratic_pruned")  # fmt: skip


def study_models() -> list[str]:
    """Return all model files except timm, and except variants that are another model's layer with other settings."""
    return sorted(path.stem for path in CONFIGS.glob("model/*.yaml") if path.stem not in ("timm", *SAME_LAYER))


def cost_row(node: dict[str, Any]) -> dict[str, Any]:
    """Return parameters, FLOPs per image counted in both ways, and bytes of activations per image on a CPU.

    Args:
        node: `model` of a configuration. Under recipe=paper dropout acts on probabilities, so products are not
            separable.
    """
    model = build_unfilled(node, IMAGE_SHAPE, CLASSES)
    counted = counted_forward(model, torch.zeros(1, *IMAGE_SHAPE, device="meta"))
    return {
        "parameters": parameters(model),
        "flops_paper": counted.flops_paper,
        "flops_full": counted.flops_full,
        "activation_bytes": activation_bytes(_filled(node, model), IMAGE_SHAPE),
    }


def _filled(node: dict[str, Any], model: nn.Module) -> nn.Module:
    """Return the model with memory for its weights, if it is small enough: kernels keep less than their definitions."""
    return model if 4 * parameters(model) > LARGEST_WEIGHTS else build_model(node, IMAGE_SHAPE, CLASSES)


def receptive_field_row(name: str) -> dict[str, Any]:
    """Return receptive fields after 1 to 6 layers, in image pixels, and a layer's errors under shifts and shuffles."""
    torch.manual_seed(0)
    stack = _stack(name)
    side = stack.maps.shape[1]
    theory, effective = stack.fields, []
    for depth in range(1, len(stack.jumps) + 1):
        out_side = side // stack.jumps[depth - 1]
        influences = influence(partial(stack.apply, depth=depth), stack.maps, (out_side // 2, out_side // 2))
        effective.append(stack.pixels * effective_side(influences))
    layer = stack.one_layer
    return {
        "field_theory": " ".join(f"{field:.0f}" for field in theory),
        "field_effective": " ".join(f"{field:.1f}" for field in effective),
        "shift_error": f"{shift_error(layer, stack.layer_maps, MARGIN):.1e}",
        "permutation_error": f"{permutation_error(layer, stack.layer_maps):.1e}",
        "sees_content": "yes" if THEORY[name].sees_content else "no",
        "growth_theory": THEORY[name].growth,
    }


@dataclass(frozen=True)
class _Stack:
    """A stack of layers to measure: how to apply the first of them, to what, and their theoretical fields."""

    apply: Callable[..., Tensor]  # (maps, depth) -> maps, channels last
    maps: Tensor
    pixels: int  # side of a position of `maps`, in image pixels
    jumps: Sequence[int]  # positions of `maps` per position after each depth
    fields: Sequence[float]  # side, in image pixels
    one_layer: Callable[[Tensor], Tensor]  # the mixing alone
    layer_maps: Tensor


def _stack(name: str) -> _Stack:
    # A fully connected layer at width 64 has 268 million weights.
    width = 16 if name == "fully_connected" else 64
    sizes = [f"scale.width={width}", f"scale.patch={PATCH}", "scale.cnn_width=16", "scale.center_std=2.0"]
    scale = ["scale=mini", *sizes]
    model: Any = build_model(compose([f"model={name}", *scale]).model, IMAGE_SHAPE, CLASSES).eval()
    if isinstance(model, ResNet | Vgg):
        return _convolution_stack(model)
    maps = torch.randn(INPUTS, SIDE, SIDE, width)
    return _backbone_stack(model, maps) if isinstance(model, Backbone) else _vit_stack(model, maps)


def _backbone_stack(model: Any, maps: Tensor) -> _Stack:
    mixer = model.layers[0].mixer
    seen, center = support(mixer, (SIDE, SIDE)), SIDE // 2 * SIDE + SIDE // 2
    fields = [PATCH * math.sqrt(int(stacked_support(seen, depth, center).sum())) for depth in range(1, DEPTH + 1)]

    def apply(maps: Tensor, depth: int) -> Tensor:
        return nn.Sequential(*model.layers[:depth])(maps)

    return _Stack(apply, maps, PATCH, [1] * DEPTH, fields, mixer, maps)


def _vit_stack(model: Any, maps: Tensor) -> _Stack:
    positions = model.pos_embed[:, 1:].unflatten(1, (SIDE, SIDE))

    def apply(maps: Tensor, depth: int) -> Tensor:
        tokens = torch.cat([model.cls_token.expand(len(maps), -1, -1), (maps + positions).flatten(1, 2)], dim=1)
        return model.blocks[:depth](tokens)[:, 1:].unflatten(1, (SIDE, SIDE))

    def mix(maps: Tensor) -> Tensor:
        # Positions are added before the first layer. Without the class token, the residual and the feed-forward part.
        block = model.blocks[0]
        return block.attn(block.norm1((maps + positions).flatten(1, 2))).view(maps.shape)

    everything = [float(IMAGE_SHAPE[1])] * DEPTH
    return _Stack(apply, maps, PATCH, [1] * DEPTH, everything, mix, maps)


def _convolution_stack(model: ResNet | Vgg) -> _Stack:
    stem, blocks = _convolutions(model)
    images = torch.randn(INPUTS, *IMAGE_SHAPE[1:], IMAGE_SHAPE[0])
    fields = convolution_fields([nn.Sequential(stem, blocks[0]), *blocks[1:DEPTH]], IMAGE_SHAPE[1])
    # Without VGG's pooling, which would make the map smaller.
    parts = [blocks[0]] if isinstance(model, ResNet) else blocks[0].children()
    first = [part for part in parts if not isinstance(part, nn.MaxPool2d)]

    def convolve(images: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        return nn.Sequential(stem, *layers)(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    jumps = [IMAGE_SHAPE[1] // convolve(images[:1], blocks[: depth + 1]).shape[1] for depth in range(len(fields))]
    attention = next((module for module in model.modules() if isinstance(module, NonLocalBlock)), None)
    if attention is None:
        layer, maps = (lambda maps: convolve(maps, first)), images
    else:
        layer, maps = awake(attention), torch.randn(INPUTS, SIDE, SIDE, attention.out.out_features)
    return _Stack(lambda maps, depth: convolve(maps, blocks[:depth]), images, 1, jumps, fields, layer, maps)


def awake(block: NonLocalBlock) -> Callable[[Tensor], Tensor]:
    """Return the output of a non-local block without its residual and with weights, on channels-last maps."""
    nn.init.ones_(block.norm.weight)
    return lambda maps: NonLocalBlock.forward(block, maps) - maps


def _convolutions(model: ResNet | Vgg) -> tuple[nn.Module, list[nn.Module]]:
    """Split a convolutional network into a stem and blocks: a ResNet's own.

    For VGG, each convolution forms a block with the layers after it.
    """
    if isinstance(model, ResNet):
        stem = nn.Sequential(model.stem, model.stem_norm, nn.ReLU())
        blocks: list[nn.Module] = []
        for block in model.blocks:
            if hasattr(block, "conv1") or not blocks:
                blocks.append(block)
            else:
                blocks[-1] = nn.Sequential(blocks[-1], block)  # a non-local block belongs to the block before it
        return stem, blocks
    groups: list[list[nn.Module]] = []
    for layer in model.layers:
        if isinstance(layer, nn.Conv2d):
            groups.append([])
        groups[-1].append(layer)
    return nn.Identity(), [nn.Sequential(*group) for group in groups]


def growth(name: str, rounds: int = 5) -> float:
    """Return the measured exponent of the forward pass's time in the number of pixels, between the two largest sizes.

    These are 32^2 and 64^2 positions, or the largest sizes whose weights fit into 2 GiB; smaller ones measure overhead.
    The time is that of one mixing layer at width 64 on two images, or of a whole convolutional network on images with
    twice those sides.
    """
    pixels: list[int] = []
    times: list[float] = []
    for side in reversed(GROWTH_SIDES):
        timed = _growth_model(name, side) if len(times) < 2 else None
        if timed is None:
            continue
        function, inputs = timed
        with torch.no_grad():
            function(inputs)
            seconds = []
            for _ in range(rounds):
                started = time.perf_counter()
                function(inputs)
                seconds.append(time.perf_counter() - started)
        # The minimum, because other programs on the machine only add time.
        pixels.append(side * side)
        times.append(min(seconds))
    return growth_exponent(pixels, times)


def _growth_model(name: str, side: int) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
    node = compose([f"model={name}", "scale=mini", "scale.patch=1", "scale.layers=1", "scale.cnn_width=16"]).model
    is_map = "patch" in node  # around a mixer; else a convolutional network
    shape = (3, side, side) if is_map else (3, 2 * side, 2 * side)
    try:
        too_large = 4 * parameters(build_unfilled(node, shape, CLASSES)) > LARGEST_WEIGHTS
    except ConfigError:  # VGG's poolings need 32 x 32 pixels
        return None
    if too_large:
        return None
    torch.manual_seed(0)
    model: Any = build_model(node, shape, CLASSES).eval()
    if name == "nonlocal_resnet18":
        return awake(NonLocalBlock(64).eval()), torch.randn(2, side, side, 64)
    if name == "vit":
        return model.blocks[0].attn, torch.randn(2, side * side, node["width"])
    if isinstance(model, Backbone):
        mixer: Any = model.layers[0].mixer
        return mixer, torch.randn(2, side, side, node["width"])
    return model, torch.randn(2, *shape)
