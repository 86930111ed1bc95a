"""Receptive fields of layers, in theory and in effect, and their response to shifted and shuffled maps.

The receptive field of stacked layers is measured in two ways: in theory, from the pixels that each layer connects, and
in effect, from gradients, as in Luo et al. (2016, arXiv 1701.04128). The second lies inside the first. Luo et al. count
pixels above 4.55% of the largest influence. With residuals, the pixel itself dominates a broad field, so we count the
pixels that hold 95.45% of all influence.

Axes: B batch, H W rows and columns, D width, Q K output and input pixels (row-major).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.errors import ConfigError
from attnconv.mixers.content import ContentAttention
from attnconv.mixers.convolution import Convolution
from attnconv.mixers.involution import Involution
from attnconv.mixers.locally_connected import LocallyConnected
from attnconv.mixers.patterns import axis_window, both_axes, window
from attnconv.mixers.window import WindowAttention
from attnconv.models.backbone import Backbone
from attnconv.models.build import build_model

EFFECTIVE_SHARE = 0.9545  # two standard deviations of a Gaussian


def support(mixer: nn.Module, grid: tuple[int, int]) -> Tensor:
    """Return which input pixels each output pixel of a mixer sees, by its definition, (Q, K) bool."""
    if isinstance(mixer, Convolution):
        return both_axes(*(axis_window(size, mixer.convolution.kernel_size[0], "zero") for size in grid))
    if isinstance(mixer, Involution | LocallyConnected):
        return window(grid, mixer.kernel_size, "zero")[0]
    if isinstance(mixer, WindowAttention):
        return window(grid, mixer.kernel_size, mixer.border)[0]
    if isinstance(mixer, ContentAttention) and mixer.pattern is not None:
        return mixer.pattern(grid=grid, heads=mixer.heads).any(dim=0)
    return torch.ones(grid[0] * grid[1], grid[0] * grid[1], dtype=torch.bool)


def stacked_support(one_layer: Tensor, depth: int, pixel: int) -> Tensor:
    """Return the pixels that output `pixel` sees through `depth` layers that each see `one_layer` (Q, K), (K,) bool."""
    seen = torch.zeros(len(one_layer), dtype=torch.bool)
    seen[pixel] = True
    for _ in range(depth):
        # With a residual, each pixel sees itself.
        seen = seen | one_layer[seen].any(dim=0)
    return seen


def widest_pair(node: dict[str, Any], depth: int, image_shape: tuple[int, int, int]) -> int:
    """Return the largest distance along a row at which each pair of pixels is seen by some output pixel, in positions.

    Args:
        node: a `model` node of a network around a mixer (attnconv.models.backbone).
        depth: number of layers.
        image_shape: (C, H, W) of the images, in pixels.

    Raises:
        ConfigError: the network has no layers around a mixer of attnconv, so its receptive field is unknown.
    """
    model: Any = build_model(node, image_shape, classes=2)
    mixer: Any = model.layers[0].mixer if isinstance(model, Backbone) else None
    if not type(mixer).__module__.startswith("attnconv."):
        raise ConfigError(f"the receptive field of {node.get('name', 'this network')} is unknown")
    height, width = model.grid
    one_layer = support(mixer, (height, width))
    fields = torch.stack([stacked_support(one_layer, depth, pixel) for pixel in range(height * width)])
    together = (fields.T.float() @ fields.float() > 0).view(height, width, height, width)
    row = torch.arange(height)
    same_row = together[row, :, row]  # (H, W, W)
    reached = 0
    while reached + 1 < width and same_row.diagonal(reached + 1, dim1=1, dim2=2).all():
        reached += 1
    return reached


def influence(function: Callable[[Tensor], Tensor], maps: Tensor, place: tuple[int, int]) -> Tensor:
    """Return the influence of each input pixel on one output pixel: the norm of all gradients, (rows, columns).

    Args:
        function: from maps (B, H, W, D) to maps (B, H', W', D').
        maps: inputs to average squared gradients over.
        place: row and column of the output pixel.
    """
    maps = maps.detach().requires_grad_()
    out = function(maps)[:, place[0], place[1]]
    # A random direction of the output channels for each input, so that none cancels another one for all of them.
    (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), maps)
    return gradient.square().sum(dim=(0, 3)).sqrt()


def effective_side(influences: Tensor) -> float:
    """Return the side, in pixels, of a square with as many pixels as hold 95.45% of all influence.

    Raises:
        ValueError: an influence is not finite.
    """
    if not influences.isfinite().all():
        raise ValueError("influences must be finite")
    falling = influences.flatten().sort(descending=True).values.double()
    before = falling.cumsum(0) - falling
    return math.sqrt(int((before < EFFECTIVE_SHARE * falling.sum()).sum()))


def shift_error(layer: Callable[[Tensor], Tensor], maps: Tensor, margin: int) -> float:
    """Return the relative change of the output if the map is shifted by a row and a column instead of the output.

    |layer(shifted x) - shifted layer(x)| / |layer(x)| over pixels at least `margin` from the border; 0 if the layer
    treats all places alike.

    Raises:
        ValueError: no pixel is as far from the border, or the output is 0 at all of them.
    """
    step = (1, 1)
    with torch.no_grad():
        expected = layer(maps).roll(step, dims=(1, 2))
        moved = layer(maps.roll(step, dims=(1, 2)))
    height, width = expected.shape[1:3]
    if not 0 <= 2 * margin < min(height, width):
        raise ValueError(f"no pixel of a {height}x{width} map is {margin} pixels from its border")
    inside = (slice(None), slice(margin, height - margin), slice(margin, width - margin))
    return _relative(moved[inside], expected[inside])


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|.

    Raises:
        ValueError: `expected` is 0.
    """
    if not expected.any():
        raise ValueError("the layer's output is 0, so it has no relative change")
    return float((found - expected).norm() / expected.norm())


def permutation_error(layer: Callable[[Tensor], Tensor], maps: Tensor) -> float:
    """Return the same for a random order of all pixels instead of a shift: 0 if the layer ignores positions."""
    order = torch.randperm(maps.shape[1] * maps.shape[2], generator=torch.Generator().manual_seed(0))

    def shuffle(x: Tensor) -> Tensor:
        return x.flatten(1, 2)[:, order].reshape(x.shape)

    with torch.no_grad():
        return _relative(layer(shuffle(maps)), shuffle(layer(maps)))
