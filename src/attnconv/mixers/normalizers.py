"""Turn scores into probabilities: softmax, or sigmoid or ReLU scores divided by their sum.

Dividing by the sum, and not by the number of keys, makes rows sum to 1 for every map size: attention remains an average
over pixels, as in the paper, and layers keep their scale. Sigmoid scores divided by their sum equal softmax(log
sigmoid(score)), which never divides by a small number.

ReLU acts on 1 + score. The scores of Gaussian heads are never above 0, and ReLU alone would set them all to 0; shifted
by 1, they are Epanechnikov kernels, and content scores, which start near 0, start active. If the sum of a ReLU row is
below SMALLEST_SUM, the row is divided by SMALLEST_SUM and fades to 0: a head that looks outside of the map averages
nothing, and its gradient stays small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZERS = ("softmax", "relu", "sigmoid")

SMALLEST_SUM = 0.1  # a pixel at the center of a Gaussian head has weight 1


def check_normalizer(name: str) -> None:
    """Raise ValueError for an unknown normalizer."""
    if name not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, not {name!r}")


def to_probs(scores: Tensor, normalizer: str, allowed: Tensor | None = None) -> Tensor:
    """Turn scores (..., K) into non-negative weights (..., K) that sum to 1 over the keys (ReLU: to at most 1).

    Args:
        scores: any shape, keys last.
        normalizer: one of NORMALIZERS.
        allowed: boolean, broadcastable to the scores; where False, the weight is 0.
    """
    if normalizer == "relu":
        # At least float32, because bf16 is too coarse for a sum over a thousand keys.
        weights = (1 + scores.to(torch.promote_types(scores.dtype, torch.float32))).relu()
        if allowed is not None:
            weights = weights * allowed
        return (weights / weights.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SUM)).to(scores.dtype)
    if normalizer == "sigmoid":
        scores = F.logsigmoid(scores)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1)
