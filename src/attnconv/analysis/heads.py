"""Where the heads look: each head's mean shift and covariance, from its attention probabilities.

These are the paper's "centers of attention" (Figures 3, 4, 12), for any encoding. Quadratic encodings also have centers
and spreads as parameters. Both are recorded, because a center outside of the map is not the mean of any probabilities.

Axes: L layers, N heads, H W rows and columns, Q K query and key pixels.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from attnconv.mixers.base import AttentionMixer
from attnconv.mixers.encodings import GeneralizedQuadraticEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.shifts import grid_shifts

IMAGES_AT_ONCE = 10  # attention probabilities take (N, HW, HW) per image and layer
DECIMALS = 4  # of centers and spreads in heads.jsonl


def attention_mixers(model: nn.Module) -> list[AttentionMixer]:
    """Return the mixers of a model with a method `attention_probs`, in order of depth, without parts of others."""
    found: dict[str, AttentionMixer] = {}
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in found)
        # A user's mixer may not inherit the base class, and a network may have an attribute of this name.
        if callable(getattr(type(module), "attention_probs", None)) and not inside_another:
            found[name] = cast(AttentionMixer, module)
    return list(found.values())


def central_query(height: int, width: int) -> int:
    """Return the row-major index of the pixel at the center of a map."""
    return height // 2 * width + width // 2


@torch.no_grad()
def mixer_inputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the input of each attention mixer when the model, without dropout, sees images (B, C, height, width)."""
    captured: list[Tensor] = []
    hooks = [
        mixer.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
        for mixer in attention_mixers(model)
    ]
    model.eval()
    model(images)
    for hook in hooks:
        hook.remove()
    return captured


@torch.no_grad()
def mixer_traffic(model: nn.Module, images: Tensor, batch: int = 250) -> list[tuple[Tensor, Tensor]]:
    """Return the inputs and outputs of each attention mixer, (B, H, W, D) each, on the CPU.

    Args:
        images: (B, C, height, width), passed to the model without dropout, `batch` at a time.
    """
    mixers = attention_mixers(model)
    traffic: list[list[tuple[Tensor, Tensor]]] = [[] for _ in mixers]
    hooks = [
        mixer.register_forward_hook(lambda _, inputs, out, seen=seen: seen.append((inputs[0].cpu(), out.cpu())))
        for mixer, seen in zip(mixers, traffic, strict=True)
    ]
    model.eval()
    for chunk in images.split(batch):
        model(chunk)
    for hook in hooks:
        hook.remove()
    return [(torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])) for seen in traffic]


@torch.no_grad()
def central_probs(mixer: Any, height: int, width: int, x: Tensor | None = None) -> Tensor:
    """Return the attention of the central pixel, averaged over maps x (B, H, W, D): (N, H, W), float32 on the CPU.

    Position-only attention is the same for all maps and needs no x.
    """
    probs = mixer.attention_probs(height, width, x)[:, :, central_query(height, width)]
    return probs.float().mean(dim=0).reshape(-1, height, width).cpu()


@torch.no_grad()
def central_maps(model: nn.Module, height: int, width: int, images: Tensor) -> list[Tensor]:
    """Return the attention of the central pixel in each layer: L maps (N, H, W), float32 on the CPU.

    Args:
        images: (B, C, height, width); attention that depends on content is averaged over these.
    """
    mixers = attention_mixers(model)
    if all(isinstance(mixer, PositionalAttention) for mixer in mixers):
        return [central_probs(mixer, height, width) for mixer in mixers]
    sums = []
    for chunk in images.split(IMAGES_AT_ONCE):
        inputs = zip(mixers, mixer_inputs(model, chunk), strict=True)
        sums.append([len(chunk) * central_probs(mixer, height, width, x) for mixer, x in inputs])
    return [torch.stack(layer).sum(dim=0) / len(images) for layer in zip(*sums, strict=True)]


def head_statistics(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean shift (N, 2), in pixels, and covariance (N, 2, 2), in pixels^2, of the central pixel's attention.

    Args:
        probs: (N, H, W), from `central_probs`.
    """
    _, height, width = probs.shape
    shifts = grid_shifts(height, width)[central_query(height, width)].to(probs.dtype)
    weights = probs.flatten(1)
    means = weights @ shifts
    offsets = shifts - means[:, None]
    return means, torch.einsum("nk,nki,nkj->nij", weights, offsets, offsets)


def gaussian_heads(model: nn.Module) -> dict[str, list[Any]]:
    """Return the centers and spreads of layers with Gaussian heads, rounded, for heads.jsonl; empty for other models.

    Keys: `centers` (L, N, 2) in pixels and `spreads` (L, N), or (L, N, 2, 2) for any covariance, in 1/pixels.
    """
    encodings = [getattr(mixer, "encoding", None) for mixer in attention_mixers(model)]
    gaussian = [found for found in encodings if isinstance(found, QuadraticEncoding | GeneralizedQuadraticEncoding)]
    names = ("centers", "spreads") if gaussian else ()
    return {name: [rounded(getattr(encoding, name)) for encoding in gaussian] for name in names}


def rounded(parameter: Tensor) -> list[Any]:
    """Return a parameter as nested lists, rounded as in heads.jsonl."""
    # In float64: a rounded float32 prints more digits.
    return np.round(parameter.detach().double().cpu().numpy(), DECIMALS).tolist()
