"""What all token mixers share: their contract, shifts, and probabilities from scores.

The contract says how the network builds a mixer, what it maps, and which attention analysis reads.

A mixer is a module that maps (B, H, W, D) to (B, H, W, D): B images, H rows and W columns of positions, D channels. The
network adds the projection, residuals, norms and the feed-forward part. All mixers are built with the same four
arguments, so that a config file can replace one by another; a mixer without heads or without probabilities ignores the
arguments that it does not need.

A shift between positions is `key - query`, rows before columns (paper, section 2.3: delta = k - q). It is the only
input of a relative encoding.

Scores become probabilities by softmax, or as sigmoid or ReLU scores divided by their sum. Dividing by the sum, and not
by the number of keys, makes rows sum to 1 for every map size: attention remains an average over positions, as in the
paper, and layers keep their scale. Sigmoid scores divided by their sum equal softmax(log sigmoid(score)), which never
divides by a small number.

ReLU acts on 1 + score. The scores of Gaussian heads are never above 0, and ReLU alone would set them all to 0; shifted
by 1, they are Epanechnikov kernels, and content scores, which start near 0, start active. If the sum of a ReLU row is
below SMALLEST_SUM, the row is divided by SMALLEST_SUM and fades to 0: a head that looks outside of the map averages
nothing, and its gradient stays small.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMALIZERS = ("softmax", "relu", "sigmoid")

SMALLEST_SUM = 0.1  # a position at the center of a Gaussian head has weight 1


class MakesMixer(Protocol):
    """A function that builds a mixer: its class, with all other arguments set by the config file."""

    def __call__(self, *, width: int, heads: int, grid: tuple[int, int], attention_dropout: float) -> nn.Module:
        """Return one mixer.

        Args:
            width: D, channels per position.
            heads: number of attention heads.
            grid: (H, W) of the maps to expect, in positions.
            attention_dropout: probability of zeroing an attention probability while training.
        """


class AttentionMixer(nn.Module):
    """A mixer that averages positions with probabilities. Figures, probes and `heads.jsonl` cover its subclasses."""

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities without dropout, (B or 1, N, Q, K): heads, query positions, key positions, row-major.

        Args:
            height, width: of the map, in positions.
            x: the maps (B, H, W, D); required only if probabilities depend on content.

        Raises:
            ValueError: the map is larger than the mixer's tables, or x is missing but required.
        """
        raise NotImplementedError


def axis_shifts(size: int, device: torch.device | None = None) -> Tensor:
    """Return the shifts along one axis: (size queries, size keys), int64, in positions."""
    positions = torch.arange(size, device=device)
    return positions[None, :] - positions[:, None]


def grid_shifts(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the shifts between all positions of a map, row-major: (H*W queries, H*W keys, 2), int64, in positions."""
    rows, columns = axis_shifts(height, device), axis_shifts(width, device)
    shape = (height, width, height, width)
    pairs = torch.stack([rows[:, None, :, None].expand(shape), columns[None, :, None, :].expand(shape)], dim=-1)
    return pairs.reshape(height * width, height * width, 2)


def sinusoids(shifts: Tensor, like: Tensor, base: float) -> Tensor:
    """Return the sines, then the cosines, of shifts (...): (..., F), where F is the last size of `like`, in its type.

    The wavelengths run from 2 pi to `base` * 2 pi positions.
    """
    features = like.shape[-1]
    exponents = torch.arange(0, features, 2, dtype=like.dtype, device=shifts.device) / features
    angles = shifts[..., None] * base**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def check_covered(grid: tuple[int, int], height: int, width: int) -> None:
    """Raise ValueError for a map that is larger than `grid`, for which tables were made."""
    if height > grid[0] or width > grid[1]:
        raise ValueError(f"the learned tables cover maps up to {grid[0]}x{grid[1]}, this one is {height}x{width}")


def check_map(x: Tensor, grid: tuple[int, int]) -> None:
    """Raise ValueError for maps (B, H, W, D) of another size than `grid`."""
    if tuple(x.shape[1:3]) != tuple(grid):
        raise ValueError(
            f"its weights fit maps of {grid[0]}x{grid[1]} positions only, this one is {x.shape[1]}x{x.shape[2]}"
        )


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
