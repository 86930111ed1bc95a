"""The attention probabilities of layers for given images: of our mixers, timm's ViTs and torch.nn.MultiheadAttention.

Axes: B images, N heads, Q K query and key tokens.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnconv.analysis.heads import attention_mixers, mixer_inputs, probs_of
from attnconv.errors import ConfigError, counted
from attnconv.models.process_state import evaluating


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
    with evaluating(model):
        return _of_mixers(model, images) if attention_mixers(model) else _of_tokens(model, images)


def _of_tokens(model: nn.Module, images: Tensor) -> list[LayerAttention]:
    grid, others_first = _token_grid(model, images)
    layers = []
    for probs in _of_transformer(model, images):
        if grid is None and probs.shape[-1] < images.shape[2] * images.shape[3] and not _is_of_library(model):
            raise ConfigError(
                "the size of this network's map is unknown, so its maps cannot be shown: give the network the "
                "attributes patch_size and image_size, in pixels"
            )
        height, width = grid or (images.shape[2], images.shape[3])
        prefix = probs.shape[-1] - height * width
        if prefix < 0 or probs.shape[0] != len(images) or probs.shape[-2] != probs.shape[-1]:
            raise ConfigError("this network attends within windows or pools its tokens; its maps cannot be shown")
        if prefix and not others_first:
            raise ConfigError(
                f"this network has {counted(prefix, 'token')} more than positions, and only those of timm and "
                "torchvision are known to come first; its maps cannot be shown"
            )
        layers.append(LayerAttention(probs, (height, width), prefix, bool(prefix) and _has_class_token(model)))
    return layers


def _of_mixers(model: nn.Module, images: Tensor) -> list[LayerAttention]:
    mixers = attention_mixers(model)
    _refuse_others(model, set(mixers))
    layers = []
    for mixer, x in zip(mixers, mixer_inputs(model, images), strict=True):
        _, height, width, _ = x.shape
        layers.append(LayerAttention(probs_of(mixer, height, width, x).cpu(), (height, width), 0))
    return layers


def _refuse_others(model: nn.Module, known: set[Any]) -> None:
    """Raise ConfigError for attention that is not known, not inside of a known one, and not around one."""
    inside = {part for module in known for part in module.modules()}
    for module in model.modules():
        name = type(module).__name__
        # Next to layers that attend, a converted convolution and a pooling at the end are no such layers.
        if known and (getattr(type(module), "is_converted", False) or "pool" in name.lower()):
            continue
        attends = ATTENTION.search(name) or isinstance(module, nn.MultiheadAttention)
        if attends and module not in inside and known.isdisjoint(module.modules()):
            raise _unknown(module)


ATTENTION = re.compile("attention|attn|mhsa|gpsa", re.IGNORECASE)  # the names of such classes in timm and torchvision

# Of MultiheadAttention, after queries, keys and values.
OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def _of_transformer(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Run a copy of a transformer that writes out its probabilities, and return them, (B, N, Q, K) each."""
    found: list[Tensor] = []
    known: set[nn.Module] = set()

    def keep(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        known.add(attention)
        if inputs[0].shape[1] != getattr(attention, "num_heads", inputs[0].shape[1]):
            raise _unknown(attention)
        found.append(inputs[0].float().cpu())

    def recompute(attention: Any, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        known.add(attention)
        options = dict(zip(OPTIONS, inputs[3:], strict=False)) | options
        options |= {"need_weights": True, "average_attn_weights": False}
        # Calling the module would call this hook again.
        found.append(attention.forward(*inputs[:3], **options)[1].float().cpu())

    model(images[:1].clone())  # weights that are computed from others can be copied only afterwards
    model = copy.deepcopy(model)  # the hooks end with the copy
    module: Any
    for module in model.modules():
        dropout = getattr(module, "attn_drop", None)
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(recompute, with_kwargs=True)
        # timm's attention layers have both; without the fused kernel, probabilities pass through the dropout module.
        elif hasattr(module, "fused_attn") and isinstance(dropout, nn.Module):
            module.fused_attn = False
            dropout.register_forward_pre_hook(lambda _, inputs, attention=module: keep(attention, inputs))
    with _Fused() as fused:
        model(images)
    _refuse_others(model, known)
    if fused.outside:
        raise _unknown(F.scaled_dot_product_attention)
    return found


class _Fused(TorchFunctionMode):
    """See whether the fused product is computed outside of nn.MultiheadAttention, whose own calls no mode sees.

    As many queries as keys are a layer; with fewer queries, it pools the tokens.
    """

    outside = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function is F.scaled_dot_product_attention:
            query, key = (*args, *(named[name] for name in ("query", "key") if name in named))[:2]
            self.outside |= query.shape[-2] == key.shape[-2]
        return function(*args, **named)


def _unknown(attention: Any) -> ConfigError:
    name = getattr(attention, "__name__", type(attention).__name__)
    return ConfigError(f"its attention ({name}) is of an unknown kind, so its maps cannot be shown")


def _has_class_token(model: nn.Module) -> bool:
    """Return whether a transformer of timm or torchvision has a class token, by their names of it."""
    return any(
        getattr(part, name, None) is not None for part in model.modules() for name in ("cls_token", "class_token")
    )


def _is_of_library(module: nn.Module) -> bool:
    return any(kind.__module__.startswith(("timm.", "torchvision.")) for kind in type(module).__mro__)


def _token_grid(model: nn.Module, images: Tensor) -> tuple[tuple[int, int] | None, bool]:
    """Return the (H, W) of a transformer's positions for images, by timm's or torchvision's names, or None.

    Also return whether it is a network of these libraries, which put other tokens, such as a class token, first.
    """
    found: Any = model
    for part in model.modules():
        known = _is_of_library(part)
        if hasattr(part, "patch_embed") and hasattr(part.patch_embed, "grid_size"):
            found = part.patch_embed
            return (int(found.grid_size[0]), int(found.grid_size[1])), known
        if isinstance(getattr(part, "patch_size", None), int) and hasattr(part, "image_size"):
            found = part
            return (images.shape[2] // found.patch_size, images.shape[3] // found.patch_size), known
    return None, False
