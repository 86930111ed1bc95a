"""Heads that do not learn where to look: Gaussian heads whose centers and spreads are set once and never trained."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.gated import square_of_shifts
from attnconv.models.backbone import Backbone
from attnconv.models.weight_files import networks_in, read_weights

LEARNED = ("centers", "spreads")  # of a quadratic encoding, if it is not frozen


def frozen_heads(
    image_shape: tuple[int, int, int], classes: int, start: str, spread: float = 3.5, **network: Any
) -> Backbone:
    """Build the paper's network with quadratic heads that training leaves where they start.

    Everything else is drawn as if the heads were learned: networks of one seed differ in their heads only.

    Args:
        image_shape: (C, height, width) of the images, in pixels.
        classes: number of classes.
        start: "shifts" (the square of shifts around the query, one per head); "random" (as drawn for learned heads);
            or a file with the weights of another run, whose heads are copied layer by layer.
        spread: with "shifts": inverse standard deviation of every head, in 1/positions.
        network: the other arguments of `Backbone`.

    Raises:
        ValueError: the mixers have no quadratic encoding, "shifts" of a number of heads that is not an odd square, or
            a file that is missing or holds other heads.
        FileError: the file cannot be read.
    """
    model = Backbone(image_shape, classes, **network)
    encodings = {name: part for name, part in model.named_modules() if isinstance(part, QuadraticEncoding)}
    if not encodings:
        raise ValueError("only quadratic encodings can be frozen; take a mixer with QuadraticEncoding")
    for encoding in encodings.values():
        encoding.requires_grad_(False)
        if start == "shifts":
            encoding.centers.copy_(_odd_square(len(encoding.centers)))
            encoding.spreads.fill_(spread)
    if start not in ("shifts", "random") and not model.head.weight.is_meta:  # a model without memory is only counted
        _copy(encodings, Path(start))
    return model


def _odd_square(heads: int) -> Tensor:
    centers = square_of_shifts(heads)
    if heads % 2 == 0:
        raise ValueError(f"start=shifts needs an odd square number of heads (1, 9, 25, ...), not {heads}")
    return centers


def _copy(encodings: dict[str, QuadraticEncoding], weights: Path) -> None:
    """Give each encoding the centers and spreads that a weights file has under its name."""
    ours = {f"{name}.{key}": getattr(part, key) for name, part in encodings.items() for key in LEARNED}
    if not weights.is_file():
        raise ValueError(f"start={weights} is not a file; give shifts, random, or the weights.safetensors of a run")
    theirs = learned_heads(weights)
    if {name: tensor.shape for name, tensor in theirs.items()} != {name: own.shape for name, own in ours.items()}:
        raise ValueError(
            f"start={weights} does not hold the quadratic heads of this network: "
            "give a run of sa_quadratic with as many layers and heads"
        )
    with torch.no_grad():
        for name, own in ours.items():
            own.copy_(theirs[name])


def learned_heads(weights: Path) -> dict[str, Tensor]:
    """Read centers and spreads from a file of weights, by name and in the order of their layers.

    Raises:
        FileError: see `read_weights`.
    """
    heads: dict[str, dict[str, Tensor]] = {}
    for place, tensors in networks_in(read_weights(weights)):
        found = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in LEARNED}
        if found:
            heads[place] = found  # the last of a place is the one without prefixes such as `module.`
    first = next(iter(heads.values()), {})
    return dict(sorted(first.items(), key=lambda item: [int(number) for number in re.findall(r"\d+", item[0])]))
