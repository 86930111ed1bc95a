"""Where the heads of a run look.

This module records centers and spreads per epoch (the paper's Figure 3), maps, and a figure (Figure 4).
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from attnconv.analysis.heads import (
    NotShown,
    attention_mixers,
    central_maps,
    gaussian_heads,
    is_position_only,
    rounded,
)
from attnconv.data.dataset import Split
from attnconv.files import with_line
from attnconv.models.build import evaluation_draws
from attnconv.models.frozen import LEARNED, learned_heads
from attnconv.models.pruned import LARGEST_CONDITION, PRUNED, degenerate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = 100  # number of images to average attention over if it depends on content


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
