"""ConViT's gated positional self-attention: each head learns how much to attend to positions and how much to content.

probabilities = (1 - sigmoid(g)) softmax(content) + sigmoid(g) softmax(position), one gate g per head (d'Ascoli et al.
2021, arXiv 2103.10697). The position part starts as a convolution: heads on a square grid of shifts, alpha = 1. As in
the paper's network, the values are the inputs themselves: each part averages them, and the gate mixes the averages.

Differences from that paper: the position scores are Gaussians with learned centers and spreads; ConViT learns three
free weights on (row, column, squared distance) per head.

Axes: B batch, H W rows and columns, N heads, D width, Q K query and key positions.
"""

import math

import torch
from torch import Tensor, nn

from attnconv.mixers.base import AttentionMixer
from attnconv.mixers.content import ContentAttention
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention


class GatedAttention(AttentionMixer):
    """Content attention and quadratic position-only attention behind a gate per head, (B, H, W, D) -> (B, H, W, D).

    Args:
        width, heads, grid: as for all mixers.
        attention_dropout: of the probabilities of each part (ConViT: of their mixture).
        alpha: initial sharpness of the position scores, -alpha |shift - center|^2.
        gate: initial gate; sigmoid(1) = 0.73 of the attention goes to positions.
        normalizer: of both parts.

    Raises:
        ValueError: heads is not a square number.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        grid: tuple[int, int],
        attention_dropout: float = 0.0,
        alpha: float = 1.0,
        gate: float = 1.0,
        normalizer: str = "softmax",
    ):
        super().__init__()
        self.content = ContentAttention(width, heads, grid, attention_dropout, normalizer=normalizer)
        self.position = PositionalAttention(
            width, heads, grid, QuadraticEncoding, attention_dropout, normalizer=normalizer
        )
        # The parts only average; one projection is applied to the mixture.
        self.content.value, self.position.value = nn.Identity(), nn.Identity()
        self.value = nn.Linear(heads * width, width)
        self.gates = nn.Parameter(torch.full((heads,), float(gate)))
        with torch.no_grad():
            self.encoding.centers.copy_(square_of_shifts(heads))
            self.encoding.spreads.fill_(math.sqrt(2 * alpha))

    @property
    def encoding(self) -> QuadraticEncoding:
        """Return the encoding of the position part."""
        assert isinstance(self.position.encoding, QuadraticEncoding)
        return self.position.encoding

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities without dropout, (B, N, Q, K), of the maps x (B, H, W, D); rows sum to 1."""
        gate = self.gates.sigmoid().view(-1, 1, 1)
        content = self.content.attention_probs(height, width, x)
        return (1 - gate) * content + gate * self.position.attention_probs(height, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gates.sigmoid().repeat_interleave(x.shape[-1])
        return self.value((1 - gate) * self.content(x) + gate * self.position(x))


def square_of_shifts(heads: int) -> Tensor:
    """Return the shifts of a square kernel with one tap per head, (N, 2): for 9 heads, rows and columns -1, 0, 1.

    Raises:
        ValueError: heads is not a square number.
    """
    side = math.isqrt(heads)
    if side * side != heads:
        raise ValueError(f"the convolutional start needs a square number of heads (1, 4, 9, ...), not {heads}")
    steps = torch.arange(side) - (side - 1) / 2
    return torch.cartesian_prod(steps, steps).reshape(heads, 2)
