"""Prune the degenerate heads of a finished network, to train it further (the paper's Figure 13).

A head is degenerate if it attends uniformly, or along a line: the largest eigenvalue of its inverse covariance S S^T is
below 1e-5, or its condition number is above a limit, which is 1000 in the published code. Pruning changes the network's
function; training at a tenth of the learning rate compensates for this.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.mixers.encodings import GeneralizedQuadraticEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.models.backbone import Backbone
from attnconv.models.frozen import learned_heads
from attnconv.models.weight_files import fitting_weights

# Targets in a `model` node: prune a network, or build one that has been pruned.
PRUNED, PRUNED_BEFORE = f"{__name__}.pruned_heads", f"{__name__}.with_heads_of"
LARGEST_CONDITION = 1000.0  # of an inverse covariance, as in the published code
SMALLEST_EIGENVALUE = 1e-5  # of an inverse covariance, in 1/positions^2: a standard deviation of 300 positions


def pruned_heads(
    image_shape: tuple[int, int, int],
    classes: int,
    start: str,
    largest_condition: float = LARGEST_CONDITION,
    **network: Any,
) -> Backbone:
    """Build the network of a finished run without its degenerate heads, with its other weights.

    Args:
        image_shape: (C, height, width) of the images, in pixels.
        classes: number of classes.
        start: a file with the weights of a run with Gaussian heads.
        largest_condition: of an inverse covariance; a head above it is removed.
        network: the other arguments of `Backbone`, as the run had them.

    Raises:
        ValueError: the mixers are not attention with Gaussian heads, or all heads of a layer are degenerate.
        FileError: the file is missing or damaged, or belongs to another network.
    """
    model = Backbone(image_shape, classes, **network)
    mixers = _positional(model)
    for mixer in mixers.values():
        if not isinstance(mixer.encoding, QuadraticEncoding | GeneralizedQuadraticEncoding):
            raise ValueError("only Gaussian heads can be pruned; use a mixer with a quadratic encoding")
    if not mixers:
        raise ValueError("there are no attention heads to prune")
    weights = fitting_weights(model, Path(start), classes)
    if not model.head.weight.is_meta:  # on the meta device, a model is only counted
        model.load_state_dict(weights)
    for name, mixer in mixers.items():
        kept = ~degenerate(weights[f"{name}.encoding.spreads"], largest_condition)
        if not kept.any():
            raise ValueError(f"start={start}: all heads of {name} are degenerate")
        keep_heads(mixer, kept.nonzero().flatten())
    return model


def with_heads_of(
    image_shape: tuple[int, int, int],
    classes: int,
    start: str,
    largest_condition: float = LARGEST_CONDITION,
    **network: Any,
) -> Backbone:
    """Build a network that has been pruned, with random weights, to load its own weights into it.

    Args:
        start: a file with these weights; each layer gets its number of heads.
        largest_condition: unused.
        image_shape, classes, network: see `pruned_heads`.

    Raises:
        FileError: the file is missing or damaged.
    """
    model, heads = Backbone(image_shape, classes, **network), learned_heads(Path(start))
    for name, mixer in _positional(model).items():
        found = heads.get(f"{name}.encoding.spreads")
        if found is not None and len(found) < mixer.heads:  # other weights are refused when they are loaded
            keep_heads(mixer, torch.arange(len(found)))
    return model


def _positional(model: nn.Module) -> dict[str, PositionalAttention]:
    return {name: part for name, part in model.named_modules() if isinstance(part, PositionalAttention)}


def degenerate(spreads: Tensor, largest_condition: float) -> Tensor:
    """Return which heads attend uniformly or along a line, (N,) bool.

    Args:
        spreads: (N,) inverse standard deviations in 1/positions, or (N, 2, 2) = S with inverse covariance S S^T.
        largest_condition: of S S^T; a round head has 1.
    """
    if spreads.dim() == 1:
        return spreads.square() < SMALLEST_EIGENVALUE
    smaller, larger = torch.linalg.eigvalsh(spreads.double() @ spreads.double().mT).unbind(-1)
    return (larger < SMALLEST_EIGENVALUE) | (larger > largest_condition * smaller)


def keep_heads(mixer: PositionalAttention, kept: Tensor) -> None:
    """Keep only the heads with indices `kept` in a mixer with a quadratic encoding."""
    encoding: Any = mixer.encoding
    value: Any = mixer.value
    width = value.out_features
    with torch.no_grad():
        for name in ("centers", "spreads"):
            setattr(encoding, name, nn.Parameter(getattr(encoding, name)[kept].clone()))
        columns = value.weight.unflatten(1, (mixer.heads, width))[:, kept].flatten(1)
    mixer.heads = len(kept)
    value.weight = nn.Parameter(columns.clone())
    value.in_features = columns.shape[1]
