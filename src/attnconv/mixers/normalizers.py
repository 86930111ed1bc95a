"""From scores to probabilities: softmax, or ReLU or sigmoid scores divided by their sum.

Divided by the sum, not by the number of keys, so that every row sums to 1 whatever the size of the map: attention
stays the average over pixels that the paper's layer is, and layers keep their scale. ReLU acts on 1 + score: the scores
of Gaussian heads are never above 0 and would all be cut off; so shifted they are Epanechnikov kernels, and content
scores, which start near 0, start alive. A row that ReLU cuts off entirely averages nothing and gives 0.
"""

import torch
from torch import Tensor

NORMALIZERS = ("softmax", "relu", "sigmoid")

# Keeps a row without any positive score from dividing by 0; far below the smallest sum of a living row.
SMALLEST_SUM = 1e-6


def check_normalizer(name: str) -> None:
    """Raise ValueError for a normaliser that there is not."""
    if name not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, not {name!r}")


def to_probs(scores: Tensor, normalizer: str, allowed: Tensor | None = None) -> Tensor:
    """Scores (..., K) -> non-negative weights (..., K) that sum to 1 over the keys.

    Args:
        scores: of any shape, keys last.
        normalizer: one of NORMALIZERS.
        allowed: boolean, broadcastable to the scores: where False, the weight is 0.
    """
    if normalizer == "softmax":
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        return scores.softmax(dim=-1)
    # In float32 at least: a sum over a thousand keys is beyond bf16.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = (1 + scores).relu() if normalizer == "relu" else scores.sigmoid()
    if allowed is not None:
        weights = weights * allowed
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SUM)
