"""Frozen heads: Gaussian heads whose centers and spreads are set once and never trained."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnconv.files import FileError
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.gated import square_of_shifts
from attnconv.models.backbone import Backbone
from attnconv.models.weight_files import networks_in, read_weights

LEARNED = ("centers", "spreads")  # parameters of a quadratic encoding, unless it is frozen


def frozen_heads(
    image_shape: tuple[int, int, int], classes: int, start: str, spread: float = 3.5, **network: Any
) -> Backbone:
    """Build the paper's network with quadratic heads that are not trained.

    All other parameters are drawn as if the heads were learned, so networks with one seed differ only in their heads.

    Args:
        image_shape: (C, height, width) of the images, in pixels.
        classes: number of classes.
        start: "shifts" (the square of shifts around the query, one per head); "random" (drawn as for learned heads); or
            a file with another run's weights, whose heads are copied layer by layer.
        spread: with "shifts", the inverse standard deviation of all heads, in 1/positions.
        network: the other arguments of `Backbone`.

    Raises:
        ValueError: the mixers have no quadratic encoding, "shifts" is used with a number of heads that is not an odd
            square, or the file is missing or holds other heads.
        FileError: the file cannot be read.
    """
    model = Backbone(image_shape, classes, **network)
    encodings = {name: part for name, part in model.named_modules() if isinstance(part, QuadraticEncoding)}
    if not encodings:
        raise ValueError("only quadratic encodings can be frozen; use a mixer with QuadraticEncoding")
    for encoding in encodings.values():
        encoding.requires_grad_(False)
        if start == "shifts":
            encoding.centers.copy_(_odd_square(len(encoding.centers)))
            encoding.spreads.fill_(spread)
    # on the meta device, a model is only counted
    if start not in ("shifts", "random") and not model.head.weight.is_meta:
        _copy(encodings, Path(start))
    return model


def _odd_square(heads: int) -> Tensor:
    centers = square_of_shifts(heads)
    if heads % 2 == 0:
        raise ValueError(f"start=shifts needs an odd square number of heads (1, 9, 25, ...), not {heads}")
    return centers


def _copy(encodings: dict[str, QuadraticEncoding], weights: Path) -> None:
    """Copy the centers and spreads in a weights file to the encodings of the same names."""
    ours = {f"{name}.{key}": getattr(part, key) for name, part in encodings.items() for key in LEARNED}
    if not weights.is_file():
        raise ValueError(f"start={weights} is not a file; use shifts, random, or the weights.safetensors of a run")
    theirs = learned_heads(weights)
    if {name: tensor.shape for name, tensor in theirs.items()} != {name: own.shape for name, own in ours.items()}:
        raise ValueError(
            f"start={weights} does not hold the quadratic heads of this network: "
            "use a run of sa_quadratic with the same numbers of layers and heads"
        )
    with torch.no_grad():
        for name, own in ours.items():
            own.copy_(theirs[name])


def learned_heads(weights: Path) -> dict[str, Tensor]:
    """Return the centers and spreads in a file of weights, by name, in the order of their layers.

    Raises:
        FileError: see `read_weights`; or a number is not finite.
    """
    heads: dict[str, dict[str, Tensor]] = {}
    for place, tensors in networks_in(read_weights(weights)):
        found = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in LEARNED}
        if found:
            heads[place] = found  # the last entry is the one without prefixes such as `module.`
    first = next(iter(heads.values()), {})
    for name, tensor in first.items():
        if not tensor.isfinite().all():
            raise FileError(f"{weights} has nan or inf in {name}")
    return dict(sorted(first.items(), key=lambda item: [int(number) for number in re.findall(r"\d+", item[0])]))
