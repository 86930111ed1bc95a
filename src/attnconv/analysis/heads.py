"""Where the heads look, from their attention probabilities: the maps, the mean shift and the covariance of each head.

These are the paper's "centers of attention" (Figures 3, 4, 12), for any encoding. Quadratic encodings also have centers
and spreads as parameters. Both are recorded, because a center outside of the map is not the mean of any probabilities.

Axes: L layers, N heads, H W rows and columns, Q K query and key pixels.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from attnconv.data.dataset import Split
from attnconv.errors import ConfigError, counted
from attnconv.files import with_line
from attnconv.mixers.base import AttentionMixer, grid_shifts
from attnconv.mixers.encodings import GeneralizedQuadraticEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.models.frozen import LEARNED, learned_heads
from attnconv.models.process_state import evaluating, evaluation_draws
from attnconv.models.pruned import LARGEST_CONDITION, PRUNED, degenerate

IMAGES_AT_ONCE = 10  # attention probabilities take (N, HW, HW) per image and layer
ROUNDING = 0.01  # of the sum of a row of probabilities, also in 16 bits
DECIMALS = 4  # of centers and spreads in heads.jsonl
IMAGES = 100  # number of images to average attention over if it depends on content


def attention_mixers(model: nn.Module) -> list[AttentionMixer]:
    """Return the mixers of a model with a method `attention_probs`, in order of depth, without parts of others.

    Converted convolutions are none: their maps have channels first, and their keys are the pixels of the padded map.
    """
    found: dict[str, AttentionMixer] = {}
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in found)
        # A user's mixer may not inherit the base class, and a network may have an attribute of this name.
        attends = callable(getattr(type(module), "attention_probs", None))
        if name and attends and not inside_another and not getattr(type(module), "is_converted", False):
            found[name] = cast(AttentionMixer, module)
    return list(found.values())


def central_query(height: int, width: int) -> int:
    """Return the row-major index of the pixel at the center of a map."""
    return height // 2 * width + width // 2


class NotShown(ConfigError):
    """Attention that has no single map of all positions, such as attention within windows."""


@torch.no_grad()
def probs_of(mixer: Any, height: int, width: int, x: Tensor | None = None) -> Tensor:
    """Return the probabilities of a mixer, (B or 1, N, Q, K) in float32, checked, because it may be a user's.

    Args:
        height, width: of the map.
        x: the maps (B, H, W, D).

    Raises:
        ConfigError: they are not what the contract asks for (attnconv.mixers.base).
    """
    probs, what = mixer.attention_probs(height, width, x), f"attention_probs of {type(mixer).__name__}"
    if not isinstance(probs, Tensor):
        raise ConfigError(f"{what} gives a {type(probs).__name__}, not a tensor")
    pixels, images = height * width, {1, 1 if x is None else len(x)}
    if probs.dim() != 4 or probs.shape[0] not in images or not probs.shape[1] or probs.shape[2:] != (pixels, pixels):
        wanted = f"({' or '.join(map(str, sorted(images)))}, heads, {pixels}, {pixels})"
        raise ConfigError(f"{what} gives {tuple(probs.shape)} for a map of {height}x{width}, not {wanted}")
    probs = probs.detach().float()
    if not probs.isfinite().all():
        raise ConfigError(f"{what} gives numbers that are not finite")
    largest = probs.sum(dim=-1).max().item()
    if probs.min() < 0 or largest > 1 + ROUNDING:
        numbers = f"the lowest is {probs.min().item():.3g}, and a row adds up to {largest:.3g}"
        raise ConfigError(f"{what} does not give probabilities: {numbers}")
    return probs


@torch.no_grad()
def mixer_inputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the input of each attention mixer when the model, without dropout, sees images (B, C, height, width).

    Raises:
        NotShown: a mixer is not called exactly once, with maps (B, H, W, D).
    """
    mixers = attention_mixers(model)
    calls: list[list[Any]] = [[] for _ in mixers]
    with ExitStack() as hooks:
        hooks.enter_context(evaluating(model))
        for mixer, seen in zip(mixers, calls, strict=True):
            hooks.enter_context(mixer.register_forward_pre_hook(
                lambda _, inputs, named, seen=seen: seen.extend(map(_copied, (*inputs, *named.values())[:1])),
                with_kwargs=True,
            ))  # fmt: skip
        model(images.clone())
    for mixer, seen in zip(mixers, calls, strict=True):
        _require_one_map(mixer, seen)
    return [x for (x,) in calls]


def _copied(value: Any) -> Any:
    """Return a copy of a tensor, because the network may go on in place."""
    return value.clone() if isinstance(value, Tensor) else value


def _require_one_map(mixer: nn.Module, inputs: list[Any]) -> None:
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 4:
        raise NotShown(
            f"{type(mixer).__name__} is called {counted(len(inputs), 'time')} per image, or not with one map of all "
            "positions (B, H, W, D); its maps cannot be shown"
        )


@torch.no_grad()
def central_probs(mixer: Any, height: int, width: int, x: Tensor | None = None) -> Tensor:
    """Return the attention of the central pixel, averaged over maps x (B, H, W, D): (N, H, W), float32 on the CPU.

    Position-only attention is the same for all maps and needs no x.
    """
    probs = probs_of(mixer, height, width, x)[:, :, central_query(height, width)]
    return probs.mean(dim=0).reshape(-1, height, width).cpu()


def is_position_only(mixer: nn.Module) -> bool:
    """Return whether a mixer's attention is that of PositionalAttention, and not its own, which may need the image."""
    return getattr(type(mixer), "attention_probs", None) is PositionalAttention.attention_probs


@torch.no_grad()
def central_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the attention of the central pixel in each layer: L maps (N, H, W), float32 on the CPU.

    Args:
        images: (B, C, height, width); attention that depends on content is averaged over these.

    Raises:
        NotShown: see `mixer_inputs`; also if mixers see maps of several sizes.
    """
    mixers = attention_mixers(model)
    if all(map(is_position_only, mixers)):
        images = images[:1]
    sums = []
    with evaluating(model):
        for chunk in images.split(IMAGES_AT_ONCE):
            inputs = mixer_inputs(model, chunk)
            _require_one_size(inputs, len(chunk))
            pairs = zip(mixers, inputs, strict=True)
            sums.append([len(chunk) * central_probs(mixer, x.shape[1], x.shape[2], x) for mixer, x in pairs])
    return [torch.stack(layer).sum(dim=0) / len(images) for layer in zip(*sums, strict=True)]


def _require_one_size(inputs: list[Tensor], images: int) -> None:
    if any(len(x) != images for x in inputs):
        raise NotShown("attention within windows has no map of all positions")
    sizes = {f"{x.shape[1]}x{x.shape[2]}": None for x in inputs}
    if len(sizes) > 1:
        raise NotShown(f"the layers see maps of several sizes, {' and '.join(sizes)}")


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
    """Return the centers and spreads of a model, rounded, for heads.jsonl; empty unless all layers have Gaussian heads.

    Keys: `centers` (L, N, 2) in positions and `spreads` (L, N), or (L, N, 2, 2) for any covariance, in 1/positions.
    """
    encodings = [getattr(mixer, "encoding", None) for mixer in attention_mixers(model)]
    gaussian = [found for found in encodings if isinstance(found, QuadraticEncoding | GeneralizedQuadraticEncoding)]
    # The layers of heads.jsonl have no names, so that a layer that it leaves out would change the place of others.
    names = ("centers", "spreads") if gaussian and len(gaussian) == len(encodings) else ()
    return {name: [rounded(getattr(encoding, name)) for encoding in gaussian] for name in names}


def rounded(parameter: Tensor) -> list[Any]:
    """Return a parameter as nested lists, rounded as in heads.jsonl."""
    # In float64: a rounded float32 prints more digits.
    return np.round(parameter.detach().double().cpu().numpy(), DECIMALS).tolist()


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heads_in(weights: Path, model: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the centers and spreads with which a run starts from a file of weights, in the format of heads.jsonl.

    Return an empty dictionary if the file does not exist.

    Args:
        model: the run's `model` node, which may prune heads.

    Raises:
        FileError: the file cannot be read.
    """
    if not weights.exists():
        return {}
    tensors = learned_heads(weights)
    if model["_target_"] == PRUNED:
        kept = {
            name.rpartition(".")[0]: ~degenerate(spreads, model.get("largest_condition", LARGEST_CONDITION))
            for name, spreads in tensors.items()
            if name.endswith("spreads")
        }
        tensors = {name: tensor[kept[name.rpartition(".")[0]]] for name, tensor in tensors.items()}
    return {key: [rounded(tensor) for name, tensor in tensors.items() if name.endswith(key)] for key in LEARNED}


class HeadWatcher:
    """Read the attention layers of a model. Without attention layers, there is no record, no map and no figure.

    Args:
        model: the network.
        name: the network's name in figures.
    """

    def __init__(self, model: nn.Module, name: str):
        self._model, self._name, self._mixers = model, name, attention_mixers(model)

    def record(self, epoch: int) -> dict[str, Any] | None:
        """Return one line of heads.jsonl, or None if no head is Gaussian."""
        heads = gaussian_heads(self._model)
        return {"epoch": epoch, **heads} if heads else None

    def maps(self, split: Split) -> np.ndarray | None:
        """Return the map of each head for the central pixel, (L, N, H, W) float16; nan for heads that a layer lacks.

        Return None, with a note, if the network does not give them: its training must not be lost.

        Args:
            split: attention that depends on content is averaged over IMAGES of its images.
        """
        if not self._mixers:
            return None
        images = split.examples(IMAGES)
        try:
            with evaluation_draws(images.device, seed=0, start=0):  # a network may draw random numbers
                layers = central_maps(self._model, images)
        except Exception as reason:  # the network may be a user's, which may raise anything
            print(f"note: no attention maps: {with_line(reason)}", file=sys.stderr)
            if isinstance(reason, NotShown):  # training does not change that
                self._mixers = []
            return None
        maps = np.full((len(layers), max(map(len, layers)), *layers[0].shape[1:]), np.nan, np.float16)
        for layer, probs in zip(maps, layers, strict=True):
            layer[: len(probs)] = probs.numpy()
        return maps

    def figure(self, epoch: int, found: np.ndarray | None) -> "Figure | None":
        """Return ellipses of Gaussian heads, one panel per layer, or maps of other heads, one row per layer.

        Args:
            found: the result of `maps`; without maps, there is no figure.
        """
        if found is None:
            return None
        from attnconv.report.figures import gaussians, maps  # imports matplotlib
        from attnconv.report.figures.data import Gaussians, Maps

        title, heads = f"{self._name}, epoch {epoch}", gaussian_heads(self._model)
        gaussian = all(getattr(mixer, "normalizer", "softmax") == "softmax" for mixer in self._mixers)
        if heads and gaussian and all(map(is_position_only, self._mixers)):
            height, width = found.shape[2:]
            return gaussians.centers(Gaussians.of(title, (height, width), heads))
        return maps.whole(Maps(f"{title}: where the central position attends", found))
