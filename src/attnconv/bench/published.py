"""The paper's network and its training, written as a whole from the paper and its published code.

It shares no code with the rest of src/attnconv, so it has two uses: scripts/bench.py times it as the baseline, and
tests compare our network with it. Parameters have the same names, so weights can be copied from one to the other.

Float32, eager, dense: Gaussian scores as products with (d1, d2, d1^2, d2^2, d1 d2) for each pair of pixels, learned
positions looked up for each pair of rows and of columns, content scores in full, probabilities applied by one einsum,
images loaded one by one by two worker processes. It differs from the published code only where that is slower without
need: positions are tabulated for the size of the map (the authors': for 50 x 50 pixels), and norms and GELU are
PyTorch's own.

Axes: B batch, H W rows and columns of queries (i j) and keys (k l), N heads (n), D width (d), 5 features (f).
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


def shifts(size: int) -> Tensor:
    """Return key minus query along one axis, (queries, keys)."""
    positions = torch.arange(size)
    return positions[None, :] - positions[:, None]


class GaussianScores(nn.Module):
    """Scores of Gaussian heads, (N, H, W, H, W): one vector per head times the features of each shift.

    Args:
        isotropic: one spread per head; otherwise a 2 x 2 matrix S with inverse covariance S S^T.
    """

    features: Tensor

    def __init__(self, heads: int, grid: tuple[int, int], isotropic: bool):
        super().__init__()
        self.centers = nn.Parameter(torch.empty(heads, 2).normal_(0, 2))
        self.spreads = nn.Parameter(torch.ones(heads) if isotropic else torch.eye(2).repeat(heads, 1, 1))
        down = shifts(grid[0])[:, None, :, None].expand(*grid, *grid).float()
        across = shifts(grid[1])[None, :, None, :].expand(*grid, *grid).float()
        features = torch.stack([down, across, down**2, across**2, down * across], dim=-1)
        self.register_buffer("features", features, persistent=False)

    def forward(self) -> Tensor:
        if self.spreads.dim() == 1:
            a = c = self.spreads**2
            b = torch.zeros_like(a)
        else:
            inverse = torch.einsum("nij,nkj->nik", self.spreads, self.spreads)
            a, b, c = inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]
        first, second = self.centers[:, 0], self.centers[:, 1]
        vectors = -0.5 * torch.stack(
            [-2 * (a * first + b * second), -2 * (c * second + b * first), a, c, 2 * b], dim=-1
        )
        return torch.einsum("nf,ijklf->nijkl", vectors, self.features)


class LearnedScores(nn.Module):
    """Scores of row and column embeddings, (N, H, W, H, W).

    Each shift is embedded and projected to one score per head.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, heads: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.row_embeddings = nn.Embedding(2 * grid[0] - 1, width)
        self.column_embeddings = nn.Embedding(2 * grid[1] - 1, width)
        self.row_projection = nn.Linear(width, heads, bias=False)
        self.column_projection = nn.Linear(width, heads, bias=False)
        self.register_buffer("rows", shifts(grid[0]) + grid[0] - 1, persistent=False)
        self.register_buffer("columns", shifts(grid[1]) + grid[1] - 1, persistent=False)

    def forward(self) -> Tensor:
        rows = self.row_projection(self.row_embeddings(self.rows)).permute(2, 0, 1)
        columns = self.column_projection(self.column_embeddings(self.columns)).permute(2, 0, 1)
        return rows[:, :, None, :, None] + columns[:, None, :, None, :]


class PositionalAttention(nn.Module):
    """Attention without content, (B, H, W, D) -> (B, H, W, D); all images of a batch share one dropout mask."""

    def __init__(self, encoding: nn.Module, width: int, heads: int, dropout: float):
        super().__init__()
        self.encoding, self.dropout = encoding, dropout
        self.value = nn.Linear(heads * width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.encoding()
        probs = F.dropout(scores.flatten(3).softmax(dim=-1), self.dropout, self.training).view_as(scores)
        return self.value(torch.einsum("nijkl,bkld->bijnd", probs, x).flatten(3))


class RelativeVectors(nn.Module):
    """Row and column embeddings of half the width each."""

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.row_embeddings = nn.Embedding(2 * grid[0] - 1, width // 2)
        self.column_embeddings = nn.Embedding(2 * grid[1] - 1, width // 2)


class ContentAttention(nn.Module):
    """Attention by q.k + q.r, (B, H, W, D) -> (B, H, W, D); queries and keys have D channels per head."""

    rows: Tensor
    columns: Tensor

    def __init__(self, width: int, heads: int, grid: tuple[int, int], dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key = nn.Linear(width, heads * width), nn.Linear(width, heads * width)
        self.relative = RelativeVectors(width, grid)
        self.value = nn.Linear(heads * width, width)
        self.register_buffer("rows", shifts(grid[0]) + grid[0] - 1, persistent=False)
        self.register_buffer("columns", shifts(grid[1]) + grid[1] - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        query, key = (part(x).unflatten(-1, (self.heads, width)) for part in (self.query, self.key))
        by_row, by_column = query.split(width // 2, dim=-1)
        scores = torch.einsum("bijnd,bklnd->bijnkl", query, key)
        scores = scores + torch.einsum("bijnd,ikd->bijnk", by_row, self.relative.row_embeddings(self.rows))[..., None]
        columns = self.relative.column_embeddings(self.columns)
        scores = scores + torch.einsum("bijnd,jld->bijnl", by_column, columns)[..., None, :]
        probs = (scores / math.sqrt(width)).flatten(4).softmax(dim=-1)
        probs = F.dropout(probs, self.dropout, self.training).view_as(scores)
        return self.value(torch.einsum("bijnkl,bkld->bijnd", probs, x).flatten(3))


class Layer(nn.Module):
    """Attention, a dense layer, dropout, residual, norm; then a feed-forward network, dropout, residual, norm."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int, dropout: float):
        super().__init__()
        self.mixer, self.projection = mixer, nn.Linear(width, width)
        self.mixer_norm = nn.LayerNorm(width, eps=1e-12)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        attended = F.dropout(self.projection(self.mixer(x)), self.dropout, self.training)
        x = self.mixer_norm(attended + x)
        fed = F.dropout(self.contract(F.gelu(self.expand(x))), self.dropout, self.training)
        return self.feed_forward_norm(fed + x)


class PublishedNetwork(nn.Module):
    """The paper's network: images (B, C, height, width) -> logits (B, classes).

    Args:
        encoding: quadratic, generalized (Gaussians with any covariance), learned, or learned + content.

    Raises:
        ValueError: the paper does not have this encoding.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], classes: int, encoding: str, patch: int = 2, layers: int = 6,
        heads: int = 9, width: int = 400, hidden: int = 512, dropout: float = 0.1, attention_dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        channels, height, columns = image_shape
        self.patch, grid = patch, (height // patch, columns // patch)

        def mixer() -> nn.Module:
            if encoding == "learned + content":
                return ContentAttention(width, heads, grid, attention_dropout)
            if encoding == "learned":
                return PositionalAttention(LearnedScores(heads, width, grid), width, heads, attention_dropout)
            if encoding not in ("quadratic", "generalized"):
                raise ValueError(f"the paper has no encoding {encoding!r}")
            scores = GaussianScores(heads, grid, isotropic=encoding == "quadratic")
            return PositionalAttention(scores, width, heads, attention_dropout)

        self.stem = nn.Linear(channels * patch * patch, width)
        self.layers = nn.ModuleList(Layer(mixer(), width, hidden, dropout) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 2, 3, 1)
        squares = [x[:, i :: self.patch, j :: self.patch] for i in range(self.patch) for j in range(self.patch)]
        x = self.stem(torch.cat(squares, dim=-1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=(1, 2)))


ENCODINGS = {
    "sa_quadratic": "quadratic",
    "sa_quadratic_generalized": "generalized",
    "sa_learned": "learned",
    "sa_learned_content": "learned + content",
}


def published_network(config: Any, image_shape: tuple[int, int, int], classes: int, ours: nn.Module) -> Any:
    """Return the published counterpart of one of our networks, with its weights, on its device and in its type.

    Args:
        config: the configuration (attnconv.config.Config) that `ours` was built from.

    Raises:
        ValueError: the paper does not have this network.
    """
    node, like = config.model, next(ours.parameters())
    if node["name"] not in ENCODINGS or node["mixer"]["normalizer"] != "softmax":
        raise ValueError(f"the paper has no model={node['name']} of this kind: it has {', '.join(ENCODINGS)}")
    sizes = {key: node[key] for key in ("patch", "layers", "heads", "width", "hidden", "dropout", "attention_dropout")}
    theirs = PublishedNetwork(image_shape, classes, ENCODINGS[node["name"]], **sizes)
    theirs.load_state_dict(ours.state_dict())
    return theirs.to(like.device, like.dtype)


def published_optimizer(network: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay; centers and spreads do not decay."""
    free = [part for name, part in network.named_parameters() if name.endswith(("centers", "spreads"))]
    decayed = [part for name, part in network.named_parameters() if not name.endswith(("centers", "spreads"))]
    groups: list[dict[str, Any]] = [{"params": free, "weight_decay": 0.0}, {"params": decayed}]
    return torch.optim.SGD(groups, lr, 0.9, weight_decay=1e-4)


def published_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    """Train for one epoch and return the mean loss."""
    network.train()
    device, losses = next(network.parameters()).device, []
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


class PerImage(Dataset):
    """Images (N, H, W, C) uint8, read as in the published code: one at a time, through PIL."""

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
    """Return shuffled batches from two worker processes."""
    return DataLoader(PerImage(images, labels, mean, std), batch_size=batch, shuffle=True, num_workers=2)
