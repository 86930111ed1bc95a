"""The published formulation, written afresh from the paper and what is known of its code: what scripts/bench.py beats.

Float32, eager, dense: Gaussian scores as products with (d1, d2, d1^2, d2^2, d1 d2) for every pair of pixels, learned
positions looked up for every pair of rows and of columns, content scores in full, probabilities applied by one einsum,
images loaded one by one by two worker processes. It departs from the published code only where that would be slower for
no reason: positions are tabulated for the map at hand (the reference's for 50 x 50 pixels), norms and GELU are
PyTorch's own.

Axes: B batch, H W rows and columns of queries (i j) and keys (k l), N heads (n), D width (d), 5 features (f).
"""

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from attnconv.mixers.content import ContentAttention
from attnconv.mixers.encodings import LearnedEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.relative import LearnedRelativeVectors


class PublishedPositional(nn.Module):
    """Position-only attention, (B, H, W, D) -> (B, H, W, D): every probability computed, then one einsum."""

    encoding: Any
    value: Any

    def __init__(self, ours: PositionalAttention):
        super().__init__()
        self.encoding, self.value, self.dropout = ours.encoding, ours.value, ours.attention_dropout
        self.heads = ours.heads

    def scores(self, height: int, width: int) -> Tensor:
        """(N, H, W, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        scores = self.scores(height, width)
        probs = scores.flatten(3).softmax(dim=-1).view_as(scores)
        probs = F.dropout(probs, self.dropout, self.training)
        averages = torch.einsum("nijkl,bkld->bijnd", probs, x)
        return self.value(averages.reshape(batch, height, width, self.heads * channels))


class PublishedGaussian(PublishedPositional):
    """Scores as products of a vector per head with the features of every shift."""

    features: Tensor

    def __init__(self, ours: Any, grid: tuple[int, int]):
        super().__init__(ours)
        rows, columns = (torch.arange(size) for size in grid)
        down = (rows[None, :] - rows[:, None])[:, None, :, None].expand(*grid, *grid).float()
        aside = (columns[None, :] - columns[:, None])[None, :, None, :].expand(*grid, *grid).float()
        features = torch.stack([down, aside, down**2, aside**2, down * aside], dim=-1)
        self.register_buffer("features", features.to(ours.value.weight.device), persistent=False)

    def scores(self, height: int, width: int) -> Tensor:
        precision = self.encoding.spreads**2
        zero = torch.zeros_like(precision)
        linear = precision[:, None] * self.encoding.centers
        vectors = torch.stack([linear[:, 0], linear[:, 1], -precision / 2, -precision / 2, zero], dim=-1)
        return torch.einsum("nf,ijklf->nijkl", vectors, self.features)


class PublishedLearned(PublishedPositional):
    """Row and column embeddings of every shift, projected to a score per head."""

    def scores(self, height: int, width: int) -> Tensor:
        encoding = self.encoding
        rows = encoding.row_projection(encoding.row_embeddings(_index(height, encoding.grid[0], self.value)))
        columns = encoding.column_projection(encoding.column_embeddings(_index(width, encoding.grid[1], self.value)))
        return rows.permute(2, 0, 1)[:, :, None, :, None] + columns.permute(2, 0, 1)[:, None, :, None, :]


class PublishedLearnedContent(nn.Module):
    """Queries, keys and relative vectors, all probabilities of all images written out."""

    query: Any
    key: Any
    value: Any
    relative: Any

    def __init__(self, ours: ContentAttention):
        super().__init__()
        self.query, self.key, self.value, self.relative = ours.query, ours.key, ours.value, ours.relative
        self.heads, self.width, self.dropout = ours.heads, ours.width, ours.attention_dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        query, key = (part(x).view(batch, height, width, self.heads, channels) for part in (self.query, self.key))
        grid = self.relative.grid
        by_row, by_column = query.split(channels // 2, dim=-1)
        row_vectors = self.relative.row_embeddings(_index(height, grid[0], self.value))
        column_vectors = self.relative.column_embeddings(_index(width, grid[1], self.value))
        scores = torch.einsum("bijnd,bklnd->bijnkl", query, key)
        scores = scores + torch.einsum("bijnd,ikd->bijnk", by_row, row_vectors)[..., :, None]
        scores = scores + torch.einsum("bijnd,jld->bijnl", by_column, column_vectors)[..., None, :]
        scores = scores / math.sqrt(channels)
        probs = scores.flatten(4).softmax(dim=-1).view_as(scores)
        probs = F.dropout(probs, self.dropout, self.training)
        averages = torch.einsum("bijnkl,bkld->bijnd", probs, x)
        return self.value(averages.reshape(batch, height, width, self.heads * channels))


def _index(size: int, table: int, layer: nn.Linear) -> Tensor:
    positions = torch.arange(size, device=layer.weight.device)
    return positions[None, :] - positions[:, None] + table - 1


def published_mixer(ours: Any, grid: tuple[int, int]) -> nn.Module:
    """The same attention layer in its published formulation, with the same parameters (not copies of them).

    Raises:
        ValueError: the paper has no such layer.
    """
    if isinstance(ours, PositionalAttention) and ours.normalizer == "softmax":
        if isinstance(ours.encoding, QuadraticEncoding):
            return PublishedGaussian(ours, grid)
        if isinstance(ours.encoding, LearnedEncoding):
            return PublishedLearned(ours)
    if isinstance(ours, ContentAttention) and isinstance(ours.relative, LearnedRelativeVectors):
        plain = ours.encoding is None and ours.key_bias is None and ours.relative_bias is None and ours.pattern is None
        if plain and ours.asks_what and ours.asks_where and ours.normalizer == "softmax":
            return PublishedLearnedContent(ours)
    raise ValueError(
        f"the paper has no {type(ours).__name__} of this kind: sa_quadratic, sa_learned, sa_learned_content"
    )


def published_network(ours: Any) -> Any:
    """A copy of one of our networks with its mixers in their published formulation and the same weights."""
    theirs = copy.deepcopy(ours)
    for layer in theirs.layers:
        layer.mixer = published_mixer(layer.mixer, theirs.grid)
    return theirs


class PerImage(Dataset):
    """Images (N, H, W, C) uint8 as the published code reads them: one at a time, through PIL."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: list[float], std: list[float]):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def published_loader(
    images: np.ndarray, labels: np.ndarray, mean: list[float], std: list[float], batch: int
) -> DataLoader:
    """Shuffled batches from two worker processes."""
    return DataLoader(PerImage(images, labels, mean, std), batch_size=batch, shuffle=True, num_workers=2)
