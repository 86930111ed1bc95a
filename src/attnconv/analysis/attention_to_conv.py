"""The converse of the theorem: convert hard attention to the convolution that it computes.

Axes: B batch, H W rows and columns, Q K query and key pixels (row-major), N heads, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.plain_convolution import Inconvertible, refuse_hooks, static_same_pads
from attnconv.mixers.base import grid_shifts
from attnconv.mixers.positional import PositionalAttention
from attnconv.models.process_state import evaluating

TOLERANCE = 1e-6  # attention that a head may give to other pixels than its own
MODES = {"constant": "zeros"}  # name in F.pad -> name in nn.Conv2d; other names are the same


def convolution_from_attention(
    layer: Any, height: int | None = None, width: int | None = None, tolerance: float = TOLERANCE
) -> Any:
    """Build the convolution that a layer of hard heads computes.

    On an H x W map, position-only attention and the convolution have the same output (B, H, W, D), permuted for the
    convolution, wherever no head looks outside of the map. There, a head looks at the nearest pixel, and a convolution
    sees its padding. ConvolutionAsAttention equals its convolution everywhere and needs no map.

    Args:
        layer: position-only attention with a linear value projection, or a ConvolutionAsAttention.
        height, width: of the map, for position-only attention.
        tolerance: attention that a head may give to other pixels than its own.

    Raises:
        Inconvertible: attention depends on content, a head is not hard or not the same at all pixels, or the layer
            computes something else with its heads.
        ValueError: position-only attention needs a map.
    """
    if isinstance(layer, ConvolutionAsAttention):
        return _of_converted(layer, tolerance)
    if not isinstance(layer, PositionalAttention) or not isinstance(layer.value, nn.Linear):
        raise Inconvertible(f"{type(layer).__name__} is not position-only attention with a linear value projection")
    if height is None or width is None:
        raise ValueError("position-only attention computes a convolution on a map: pass its height and width")
    return _of_positional(layer, height, width, tolerance)


def _of_positional(layer: PositionalAttention, height: int, width: int, tolerance: float) -> nn.Conv2d:
    value: Any = layer.value
    refuse_hooks(layer)
    refuse_hooks(value)
    probs = layer.attention_probs(height, width)[0].detach()
    shifts = grid_shifts(height, width, probs.device)
    heads = [_hard_shift(head, probs[head], shifts, (height, width), tolerance) for head in range(layer.heads)]
    reach = [max(abs(shift[axis]) for shift in heads) for axis in range(2)]
    convolution = nn.Conv2d(
        value.in_features // layer.heads,
        value.out_features,
        (2 * reach[0] + 1, 2 * reach[1] + 1),
        padding=(reach[0], reach[1]),
        bias=value.bias is not None,
    ).to(value.weight)
    by_head = value.weight.unflatten(1, (layer.heads, -1))
    with torch.no_grad():
        convolution.weight.zero_()
        for head, (row, column) in enumerate(heads):  # heads that look at the same pixel add up
            convolution.weight[:, :, row + reach[0], column + reach[1]] += by_head[:, head]
        if convolution.bias is not None:
            convolution.bias.copy_(value.bias)
    for name, parameter in convolution.named_parameters():
        parameter.requires_grad_(getattr(value, name).requires_grad)
    _require_equal(layer, convolution, height, width, reach)
    return convolution


@torch.no_grad()
def _require_equal(
    layer: PositionalAttention, convolution: nn.Conv2d, height: int, width: int, reach: list[int]
) -> None:
    """Raise Inconvertible if a layer and its convolution differ where no head looks outside of an H x W map."""
    weight = convolution.weight
    if weight.device.type == "meta":
        return
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, height, width, convolution.in_channels, generator=draw, dtype=weight.dtype, device="cpu")
    x = x.to(weight.device)
    with evaluating(layer):
        attended, convolved = layer(x), convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    rows, columns = (slice(edge, size - edge) for edge, size in zip(reach, (height, width), strict=True))
    difference = (attended - convolved)[:, rows, columns].abs()
    if difference.numel() and difference.max() > 1e-2 * convolved.abs().max():
        raise Inconvertible("computes something else than a weighted sum of what its heads look at")


def _hard_shift(head: int, probs: Tensor, shifts: Tensor, grid: tuple[int, int], tolerance: float) -> tuple[int, int]:
    """Return the shift (row, column), in pixels, that a head (Q, K) looks at from all queries that can.

    A shift of more than half the map is inside the map for few queries, none of them in the middle.
    """
    height, width = grid
    places = (shifts[..., 0] + height - 1) * (2 * width - 1) + shifts[..., 1] + width - 1
    count = (2 * height - 1) * (2 * width - 1)
    flat = probs.flatten()
    least = flat.new_full((count,), torch.inf).scatter_reduce(0, places.flatten(), flat, "amin")
    total = flat.new_zeros(count).scatter_add(0, places.flatten(), flat)
    hard = least >= 1 - tolerance
    best = int(total.where(hard, -1.0).argmax() if hard.any() else total.argmax())
    row, column = best // (2 * width - 1) - height + 1, best % (2 * width - 1) - width + 1
    # The few pixels for which a long shift lies inside the map do not make it a tap: at the others, the head must look
    # at the nearest pixel.
    if hard[best] and (abs(row) > height // 2 or abs(column) > width // 2):
        least[best] = _nearest(probs, row, column, grid).min()
        hard[best] = least[best] >= 1 - tolerance
    if not hard[best]:
        raise Inconvertible(
            f"head {head} is not a tap of a convolution: at some pixel, only {least[best]:.6f} of its attention is on "
            f"the shift by {row} rows and {column} columns"
        )
    return row, column


def _nearest(probs: Tensor, row: int, column: int, grid: tuple[int, int]) -> Tensor:
    """Return the attention (Q,) on the pixel that is nearest to each query's shift by (row, column)."""
    height, width = grid
    rows = (torch.arange(height, device=probs.device) + row).clamp(0, height - 1)
    columns = (torch.arange(width, device=probs.device) + column).clamp(0, width - 1)
    return probs.gather(1, (rows[:, None] * width + columns).reshape(-1, 1))[:, 0]


def _of_converted(layer: ConvolutionAsAttention, tolerance: float) -> Any:
    refuse_hooks(layer)
    taps = [_hard_tap(layer, head, tolerance) for head in range(layer.heads)]
    kernel = torch.zeros_like(layer.weight)
    for source, target in enumerate(taps):  # heads may have swapped places, or met
        kernel.flatten(2)[:, :, target] += layer.weight.detach().flatten(2)[:, :, source]
    kind: Any = {1: nn.Conv1d, 2: nn.Conv2d}[len(layer.kernel_size)]
    shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)
    more: dict[str, Any] = {"dilation": layer.dilation, "groups": layer.groups, "bias": layer.bias is not None}
    if layer.pads is None:
        from timm.layers import Conv2dSame

        if kind is nn.Conv1d:
            raise Inconvertible("its SAME padding depends on the map, which nn.Conv1d does not support")
        kind = Conv2dSame
    else:
        more |= {"padding": _padding(layer), "padding_mode": MODES.get(layer.pad_mode, layer.pad_mode)}
    convolution = kind(*shape, **more)
    convolution.to(layer.value).train(layer.training)
    if layer.channels_last:
        convolution.to(memory_format=torch.channels_last)
    with torch.no_grad():
        convolution.weight.copy_(kernel).requires_grad_(layer.value.requires_grad)
        if layer.bias is not None:
            convolution.bias.copy_(layer.bias)
            convolution.bias.requires_grad_(layer.bias.requires_grad)
    return convolution


def _padding(layer: ConvolutionAsAttention) -> Any:
    """Return the padding of a layer in nn.Conv2d's format: first axis first, one number for both sides, or "same"."""
    assert layer.pads is not None
    if min(layer.pads) < 0:
        raise Inconvertible("crops its input, which nn.Conv2d does not support")
    before, behind = layer.pads[::2][::-1], layer.pads[1::2][::-1]
    if before == behind and layer.padding != "same":
        return before
    if max(layer.stride) == 1 and layer.pads == static_same_pads(layer.kernel_size, layer.dilation):
        return "same"
    raise Inconvertible("pads its sides differently, which nn.Conv2d does not support")


def _hard_tap(layer: ConvolutionAsAttention, head: int, tolerance: float) -> int:
    """Return the tap (row-major) that a head looks at, which may change in training."""
    places, least = [], 1.0
    for axis, (size, gap) in enumerate(zip(layer._two(layer.kernel_size), layer._two(layer.dilation), strict=True)):
        extent = gap * (size - 1) + 1
        query = torch.zeros(1, dtype=torch.int64, device=layer.value.device)
        probs = layer._probs(axis, query, slice(-extent, 2 * extent))[head, 0]
        place = int(probs.argmax()) - extent
        least *= probs.max().item()
        if place % gap or not 0 <= place < extent:
            raise Inconvertible(f"head {head} has moved off the kernel's taps")
        places.append(place // gap)
    if least < 1 - tolerance:
        raise Inconvertible(f"head {head} is not a tap of a convolution: only {least:.6f} of its attention is at one")
    return places[0] * layer._two(layer.kernel_size)[1] + places[1]
