"""From scores to probabilities: softmax, or sigmoid or ReLU scores divided by their sum.

Divided by the sum, not by the number of keys, so that rows sum to 1 whatever the size of the map: attention stays the
average over pixels that the paper's layer is, and layers keep their scale. Sigmoid scores over their sum are
softmax(log sigmoid(score)), which never divides by a small number.

ReLU acts on 1 + score: the scores of Gaussian heads are never above 0 and would all be cut off; so shifted they are
Epanechnikov kernels, and content scores, which start near 0, start alive. A ReLU row whose sum is below SMALLEST_SUM
is divided by that instead, and fades to 0: a head that looks out of the map averages nothing, and its gradient stays
small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZERS = ("softmax", "relu", "sigmoid")

SMALLEST_SUM = 0.1  # a pixel at the center of a Gaussian head weighs 1


def check_normalizer(name: str) -> None:
    """Raise ValueError for a normalizer that there is not."""
    if name not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, not {name!r}")


def to_probs(scores: Tensor, normalizer: str, allowed: Tensor | None = None) -> Tensor:
    """Scores (..., K) -> non-negative weights (..., K) that sum to 1 over the keys (ReLU: to at most 1).

    Args:
        scores: of any shape, keys last.
        normalizer: one of NORMALIZERS.
        allowed: boolean, broadcastable to the scores: where False, the weight is 0.
    """
    if normalizer == "relu":
        # In float32 at least: a sum over a thousand keys is beyond bf16.
        weights = (1 + scores.to(torch.promote_types(scores.dtype, torch.float32))).relu()
        if allowed is not None:
            weights = weights * allowed
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=SMALLEST_SUM)
    if normalizer == "sigmoid":
        scores = F.logsigmoid(scores)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1)
