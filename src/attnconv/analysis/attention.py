"""The attention probabilities of layers for given images: of our mixers, timm's ViTs and torch.nn.MultiheadAttention.

Axes: B images, N heads, Q K query and key tokens.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.heads import attention_mixers, mixer_inputs, probs_of
from attnconv.errors import ConfigError, counted


@dataclass(frozen=True)
class LayerAttention:
    """The attention probabilities of one layer.

    Attributes:
        probs: (B or 1, N, Q, K); rows sum to 1, or to less for mixers that define it so.
        grid: (H, W) of the positions of an image, which are the last H*W tokens.
        prefix: number of tokens before those, such as a class token.
        has_class: whether the first of these is a class token; others are registers.
    """

    probs: Tensor
    grid: tuple[int, int]
    prefix: int
    has_class: bool = False

    @property
    def of_positions(self) -> Tensor:
        """Return the attention between positions of the map only, (B or 1, N, H*W, H*W)."""
        return self.probs[..., self.prefix :, self.prefix :]


@torch.no_grad()
def attention_layers(model: nn.Module, images: Tensor) -> list[LayerAttention]:
    """Return the attention of each layer of a network for images (B, C, height, width), in order of depth.

    Raises:
        ConfigError: a layer attends within windows, not to the whole map, or is of an unknown kind; or there are more
            tokens than positions, and no library says which come first.
    """
    if attention_mixers(model):
        return list(_of_mixers(model, images))
    grid, others_first = _token_grid(model, images)
    layers = []
    for probs in _of_transformer(model, images):
        prefix = probs.shape[-1] - grid[0] * grid[1]
        if prefix < 0 or probs.shape[0] != len(images) or probs.shape[-2] != probs.shape[-1]:
            raise ConfigError("this network attends within windows or pools its tokens; its maps cannot be shown")
        if prefix and not others_first:
            raise ConfigError(
                f"this network has {counted(prefix, 'token')} more than positions, and only those of timm and "
                "torchvision are known to come first; its maps cannot be shown"
            )
        layers.append(LayerAttention(probs, grid, prefix, bool(prefix) and _has_class_token(model)))
    return layers


def _of_mixers(model: nn.Module, images: Tensor) -> Iterator[LayerAttention]:
    for mixer, x in zip(attention_mixers(model), mixer_inputs(model, images), strict=True):
        _, height, width, _ = x.shape
        yield LayerAttention(probs_of(mixer, height, width, x).cpu(), (height, width), 0)


ATTENTION = re.compile("attention|attn|mhsa|gpsa", re.IGNORECASE)  # the names of such classes in timm and torchvision

# Of MultiheadAttention, after queries, keys and values.
OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def _of_transformer(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Run a copy of a transformer that writes out its probabilities, and return them, (B, N, Q, K) each."""
    found: list[Tensor] = []

    def keep(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[1] != getattr(attention, "num_heads", inputs[0].shape[1]):
            raise _unknown(attention)
        found.append(inputs[0].float().cpu())

    def recompute(attention: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        options = dict(zip(OPTIONS, inputs[3:], strict=False)) | options
        options |= {"need_weights": True, "average_attn_weights": False}
        # Calling the module would call this hook again.
        found.append(attention.forward(*inputs[:3], **options)[1].float().cpu())

    model.eval()
    model(images[:1].clone())  # weights that are computed from others can be copied only afterwards
    model = copy.deepcopy(model)  # the hooks end with the copy
    model.eval()
    module: Any
    for module in model.modules():
        dropout = getattr(module, "attn_drop", None)
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(recompute, with_kwargs=True)
        # timm's attention layers have both; without the fused kernel, probabilities pass through the dropout module.
        elif hasattr(module, "fused_attn") and isinstance(dropout, nn.Module):
            module.fused_attn = False
            dropout.register_forward_pre_hook(lambda _, inputs, attention=module: keep(attention, inputs))
    model(images)
    if not found and (others := [module for module in model.modules() if ATTENTION.search(type(module).__name__)]):
        raise _unknown(others[0])
    return found


def _unknown(module: nn.Module) -> ConfigError:
    return ConfigError(f"its attention ({type(module).__name__}) is of an unknown kind, so its maps cannot be shown")


def _has_class_token(model: nn.Module) -> bool:
    """Return whether a transformer of timm or torchvision has a class token, by their names of it."""
    return any(
        getattr(part, name, None) is not None for part in model.modules() for name in ("cls_token", "class_token")
    )


def _token_grid(model: nn.Module, images: Tensor) -> tuple[tuple[int, int], bool]:
    """Return the (H, W) of a transformer's positions for images, by timm's or torchvision's names.

    Also return whether it is a network of these libraries, which put other tokens, such as a class token, first.
    """
    found: Any = model
    for part in model.modules():
        known = any(kind.__module__.startswith(("timm.", "torchvision.")) for kind in type(part).__mro__)
        if hasattr(part, "patch_embed") and hasattr(part.patch_embed, "grid_size"):
            found = part.patch_embed
            return (int(found.grid_size[0]), int(found.grid_size[1])), known
        if isinstance(getattr(part, "patch_size", None), int) and hasattr(part, "image_size"):
            found = part
            return (images.shape[2] // found.patch_size, images.shape[3] // found.patch_size), known
    return (images.shape[2], images.shape[3]), False
