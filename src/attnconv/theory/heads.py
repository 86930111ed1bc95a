"""Where the heads look: each head's mean shift and covariance, from its attention probabilities.

These are the paper's "centers of attention" (Figures 3, 4, 12) for any encoding. Quadratic encodings also have centers
and spreads as parameters; both are recorded, because a center outside the map cannot be reached by any probability.

Axes: L layers, N heads, H W rows and columns, Q K query and key pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from attnconv.mixers.shifts import grid_shifts


def attention_mixers(model: nn.Module) -> list[nn.Module]:
    """The mixers of a model that answer `attention_probs`, in order of depth."""
    return [module for module in model.modules() if hasattr(module, "attention_probs")]


def central_query(height: int, width: int) -> int:
    """Row-major index of the pixel at the centre of a map."""
    return height // 2 * width + width // 2


@torch.no_grad()
def central_probs(mixer: Any, height: int, width: int) -> Tensor:
    """Attention of the central pixel, (N, H, W), float32 on the CPU. Rows of probabilities sum to 1."""
    probs = mixer.attention_probs(height, width)[0, :, central_query(height, width)]
    return probs.reshape(-1, height, width).float().cpu()


def widest_probs(mixer: Any, height: int, width: int) -> Tensor:
    """Attention of the central pixel of the (2H-1) x (2W-1) map, which holds every shift of an H x W map.

    Encodings with tables have no scores for all of that map; theirs is of the H x W map.
    """
    try:
        return central_probs(mixer, 2 * height - 1, 2 * width - 1)
    except ValueError:
        return central_probs(mixer, height, width)


def head_statistics(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean shift (N, 2) in pixels and covariance (N, 2, 2) in pixels squared of the central pixel's attention.

    Args:
        probs: (N, H, W), as `central_probs` gives them.
    """
    _, height, width = probs.shape
    shifts = grid_shifts(height, width)[central_query(height, width)].to(probs.dtype)
    weights = probs.flatten(1)
    means = weights @ shifts
    offsets = shifts - means[:, None]
    return means, torch.einsum("nk,nki,nkj->nij", weights, offsets, offsets)


def record_heads(mixers: list[nn.Module], height: int, width: int) -> dict[str, Any]:
    """Plain numbers of every attention layer, for one line of heads.jsonl.

    Keys: `mean_shift` (L, N, 2) and `covariance` (L, N, 2, 2), measured on an H x W map; where the encoding has them
    as parameters, `centers` (L, N, 2) in pixels and `spreads` (L, N) or (L, N, 2, 2) in 1/pixels.
    """
    record: dict[str, Any] = {"mean_shift": [], "covariance": []}
    for mixer in mixers:
        means, covariances = head_statistics(central_probs(mixer, height, width))
        record["mean_shift"].append(means.tolist())
        record["covariance"].append(covariances.tolist())
        for name in ("centers", "spreads"):
            parameter = getattr(getattr(mixer, "encoding", None), name, None)
            if parameter is not None:
                record.setdefault(name, []).append(parameter.tolist())
    return record
