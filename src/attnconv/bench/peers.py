"""Other people's small networks for CIFAR-10 and their recipes, written from public descriptions.

scripts/cpu10.py trains them for the same time as ours. Each keeps its own optimizer, batch size, schedule and crops.
Two things differ from the sources: the schedule follows the clock, because ten minutes hold a small part of the
published epochs, and augmentations meant for hundreds of epochs (RandAugment, AutoAugment, mixup, CutMix) are off.

Axes: B batch, C channels, H W rows and columns, N positions, D width.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from attnconv.bench.published import PublishedNetwork, published_optimizer
from attnconv.data.augmentation import normalize
from attnconv.data.dataset import Split
from attnconv.models.resnet import ResNet

CIFAR = (3, 32, 32)
CLASSES = 10
WHITENED_IMAGES = 5000
WHITENING_FLOOR = 5e-4


class CctLayer(nn.Module):
    """A layer of CCT, (B, N, D) -> (B, N, D): its second residual branch starts from the norm of the first."""

    def __init__(self, width: int, heads: int, hidden: int, drop_path: float):
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=False, attn_drop=0.1)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = self.second_norm(x + self.drop_path(self.attention(self.first_norm(x))))
        return x + self.drop_path(self.feed_forward(x))


class Cct(nn.Module):
    """CCT-2/3x2 (Hassani et al. 2021, arXiv 2104.05704): images (B, 3, 32, 32) -> logits (B, 10)."""

    def __init__(self, width: int = 128, heads: int = 2, layers: int = 2):
        super().__init__()

        def stage(channels: int, out: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]

        self.tokenizer = nn.Sequential(*stage(CIFAR[0], 64), *stage(64, width))
        self.positions = nn.Parameter(torch.empty(1, (CIFAR[1] // 4) * (CIFAR[2] // 4), width))
        rates = torch.linspace(0, 0.1, layers).tolist()
        self.layers = nn.Sequential(*(CctLayer(width, heads, width, rate) for rate in rates))
        self.norm, self.pool, self.head = nn.LayerNorm(width), nn.Linear(width, 1), nn.Linear(width, CLASSES)
        nn.init.trunc_normal_(self.positions, std=0.2)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.layers(self.tokenizer(images).flatten(2).transpose(1, 2) + self.positions))
        return self.head((self.pool(x).softmax(dim=1).transpose(1, 2) @ x).squeeze(1))


class Airbench(nn.Module):
    """The network of airbench94 (Jordan 2024, arXiv 2404.00498): images (B, 3, 32, 32) -> logits (B, 10).

    A fixed whitening of 2 x 2 patches, then three pairs of 3 x 3 convolutions with max pooling. Batch norms learn no
    scale. Convolutions start as the identity on their first channels.

    Args:
        split: the training images, which define the whitening.
    """

    def __init__(self, split: Split, widths: Iterable[int] = (64, 256, 256)):
        super().__init__()
        self.whiten = nn.Conv2d(CIFAR[0], 24, 2)
        self.whiten.weight.requires_grad = False
        self.whiten.weight.copy_(whitening_filters(split))
        self.whiten.bias = nn.Parameter(torch.zeros(24))
        blocks: list[nn.Module] = []
        channels = 24
        for width in widths:
            blocks += [conv(channels, width), nn.MaxPool2d(2), norm(width), nn.GELU()]
            blocks += [conv(width, width), norm(width), nn.GELU()]
            channels = width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, CLASSES, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.blocks(F.gelu(self.whiten(images))), 3)
        return self.head(x.flatten(1)) / 9


def conv(channels: int, out: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution that starts as the identity on its first channels."""
    layer = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:channels])
    return layer


def norm(width: int) -> nn.BatchNorm2d:
    """Return a batch norm that learns a shift, but no scale."""
    layer = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad = False
    return layer


@torch.no_grad()
def whitening_filters(split: Split) -> Tensor:
    """Return 24 filters of 2 x 2 pixels: the principal directions of patches over their spread, and their negatives."""
    images = normalize(split.images[:WHITENED_IMAGES], split.mean, split.std)
    patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + WHITENING_FLOOR).sqrt()).T.flip(0)
    return torch.cat([filters, -filters]).unflatten(1, (CIFAR[0], 2, 2))


class Lookahead:
    """Every five steps, pull the weights toward a slow copy of themselves, more strongly late in training."""

    def __init__(self, network: nn.Module):
        self.tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        self.slow = [tensor.clone() for tensor in self.tensors]
        self.steps = 0

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Count a step of training at `progress`, in 0..1."""
        self.steps += 1
        if self.steps % 5 == 0:
            self._update(0.95**5 * progress**3)

    @torch.no_grad()
    def end(self) -> None:
        """Leave the slow copy in the network."""
        self._update(1.0)

    def _update(self, kept: float) -> None:
        for slow, fast in zip(self.slow, self.tensors, strict=True):
            slow.lerp_(fast, 1 - kept)
            fast.copy_(slow)


def cosine(warmup: float) -> Callable[[float], float]:
    """Return the factor on the learning rate at a progress in 0..1: a ramp, then half a cosine."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return factor


def triangle(progress: float) -> float:
    """Return airbench's factor: 0.2 at the start, 1 at 23% of training, 0.07 at the end."""
    if progress < 0.23:
        return 0.2 + 0.8 * progress / 0.23
    return 1 - 0.93 * (progress - 0.23) / 0.77


def adamw(lr: float, weight_decay: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function from a network to its optimizer."""
    return lambda network: torch.optim.AdamW(network.parameters(), lr, weight_decay=weight_decay)


def sgd(lr: float, weight_decay: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function from a network to its optimizer, with momentum 0.9."""
    return lambda network: torch.optim.SGD(network.parameters(), lr, 0.9, weight_decay=weight_decay)


def airbench_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return Nesterov SGD as in airbench94: shifts of batch norms at 64 times the rate, and no longer the stem's bias.

    airbench states rates for the sum over 1,024 images: 11.5, divided by the size of Nesterov steps with momentum 0.85.
    The loss here is the mean. A group with `until` stops training at that progress.
    """
    step = 1 + 1 / (1 - 0.85)
    lr, decay = 11.5 / step, 0.0153 / step
    named = {name: part for name, part in network.named_parameters() if part.requires_grad}
    shifts = [part for name, part in named.items() if name.startswith("blocks") and name.endswith("bias")]
    rest = [part for name, part in named.items() if name.endswith("weight")]
    groups: list[dict[str, Any]] = [
        {"params": shifts, "lr": 64 * lr, "weight_decay": decay / (64 * lr)},
        {"params": rest, "lr": lr, "weight_decay": decay / lr},
        {"params": [named["whiten.bias"]], "lr": lr, "weight_decay": decay / lr, "until": 3 / 9.9},
    ]
    return torch.optim.SGD(groups, lr, momentum=0.85, nesterov=True)


@dataclass(frozen=True)
class Peer:
    """A network and its recipe.

    Args:
        mixing: what mixes positions: a class of results/cpu10.md.
        build: makes the network; it may look at the training images.
        factor: maps progress in 0..1 to the factor on the learning rate of each group.
        data: settings of the crops and flips.
    """

    mixing: str
    source: str
    build: Callable[[Split], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    factor: Callable[[float], float]
    batch_size: int
    label_smoothing: float = 0.0
    lookahead: bool = False
    data: tuple[str, ...] = field(default=("data.crop_padding=4", "data.padding_mode=constant"))


def published_mini(split: Split) -> nn.Module:
    """Return the paper's quadratic network at our mini scale, with its dropout."""
    return PublishedNetwork(CIFAR, CLASSES, "quadratic", patch=4, width=64, hidden=256)


def vit_tiny(split: Split) -> nn.Module:
    """Return timm's ViT-Ti with patches of 4 x 4 pixels."""
    return timm.create_model("vit_tiny_patch16_224", img_size=CIFAR[1], patch_size=4, num_classes=CLASSES)


PEERS = {
    "published_mini": Peer(
        "attention", "Cordonnier et al. 2020, arXiv 1911.03584: its network and recipe at our mini scale",
        published_mini, published_optimizer, cosine(0.05), batch_size=100,
    ),
    "vit_tiny": Peer(
        "attention",
        "timm's vit_tiny, patch 4; AdamW at 1e-3, weight decay 0.05 (DeiT, arXiv 2012.12877; here on all parameters)",
        vit_tiny, adamw(1e-3, 0.05), cosine(0.025), batch_size=128, label_smoothing=0.1,
    ),
    "cct_2_3x2": Peer(
        "both", "Hassani et al. 2021, arXiv 2104.05704: CCT-2/3x2",
        lambda split: Cct(), adamw(5e-4, 0.03), cosine(0.05), batch_size=128, label_smoothing=0.1,
    ),
    "resnet18": Peer(
        "convolution", "kuangliu/pytorch-cifar: ResNet-18, SGD at 0.1",
        lambda split: ResNet(CIFAR, CLASSES, (2, 2, 2, 2), 64), sgd(0.1, 5e-4), cosine(0.0), batch_size=128,
    ),
    "airbench94": Peer(
        "convolution", "Jordan 2024, arXiv 2404.00498: airbench94 without test-time augmentation",
        Airbench, airbench_optimizer, triangle, batch_size=1024, label_smoothing=0.2, lookahead=True,
        data=("data.crop_padding=2", "data.padding_mode=reflect", "data.alternating_flip=true"),
    ),
}  # fmt: skip
