"""The contract of token mixers.

It says how the network builds one, what it maps, and which attention analysis reads.

A mixer is a module that maps (B, H, W, D) to (B, H, W, D): B images, H rows and W columns of positions, D channels. The
network adds the projection, residuals, norms and the feed-forward part. All mixers are built with the same four
arguments, so that a config file can replace one by another; a mixer without heads or without probabilities ignores the
arguments that it does not need.
"""

from typing import Protocol

from torch import Tensor, nn


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
    """A mixer that averages pixels with probabilities. Figures, probes and `heads.jsonl` cover its subclasses."""

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities without dropout, (B or 1, N, Q, K): heads, query pixels, key pixels, row-major.

        Args:
            height, width: of the map, in positions.
            x: the maps (B, H, W, D); required only if probabilities depend on content.

        Raises:
            ValueError: the map is larger than the mixer's tables, or x is missing but required.
        """
        raise NotImplementedError
