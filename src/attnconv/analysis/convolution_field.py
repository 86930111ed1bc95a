"""The theoretical receptive field of convolutional networks, computed from their graphs.

Each value of the graph has a field (the input pixels that one of its pixels sees) and a jump (the distance, in input
pixels, between neighboring pixels), per axis. Where branches meet, the result sees what any of them sees.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import SqueezeExcitation

from attnconv.models.resnet import NonLocalBlock

WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
EVERYWHERE = (NonLocalBlock, SqueezeExcitation, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POINTWISE = (nn.BatchNorm2d, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh,
             nn.Hardswish, nn.Hardsigmoid, nn.Dropout, nn.Dropout2d)  # fmt: skip
FUNCTIONS = (operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, torch.add, torch.mul, torch.cat,
             torch.relu, F.relu, F.gelu, F.silu, F.dropout, torch.sigmoid)  # fmt: skip
METHODS = ("relu", "relu_", "sigmoid", "contiguous", "add", "mul", "add_", "mul_")


@dataclass(frozen=True)
class _Seen:
    """Field and jump in pixels of the input, for rows and columns."""

    field: tuple[float, float]
    jump: tuple[float, float]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, EVERYWHERE) or super().is_leaf_module(m, module_qualified_name)


def convolution_fields(blocks: Sequence[nn.Module], image_side: int) -> list[int]:
    """Return the side of the theoretical receptive field after each block of a convolutional network, in image pixels.

    If kernels are not square, it is the longer side. Attention, over space or over channels, sees everything.

    Raises:
        ValueError: a part of a block is not supported; the message names it.
    """
    seen, fields = _Seen((1, 1), (1, 1)), []
    for block in blocks:
        seen = _through(block, seen)
        fields.append(int(min(max(seen.field), image_side)))
    return fields


def _through(block: nn.Module, seen: _Seen) -> _Seen:
    """Return the field of a block's output if its input has the field `seen`."""
    holder = nn.Sequential(block)  # otherwise the tracer would enter a single convolution
    values: dict[fx.Node, _Seen] = {}
    for node in _Tracer().trace(holder).nodes:
        sources = [values[source] for source in node.all_input_nodes if source in values]
        if node.op == "placeholder":
            values[node] = seen
        elif node.op == "call_module":
            values[node] = _after_module(holder.get_submodule(str(node.target)), str(node.target), sources[0])
        elif node.op == "output":
            return _joined(sources)
        elif sources:
            if node.target not in (*FUNCTIONS, *METHODS):
                raise ValueError(
                    f"cannot follow {node.target} in {type(block).__name__}: its receptive field is unknown"
                )
            values[node] = _joined(sources)
    raise ValueError(f"{type(block).__name__} has no output")


def _joined(sources: list[_Seen]) -> _Seen:
    """Return the field of a sum of values: the largest, because they share a center."""
    rows, columns = zip(*(source.field for source in sources), strict=True)
    return _Seen((max(rows), max(columns)), max(source.jump for source in sources))


def _after_module(module: nn.Module, name: str, seen: _Seen) -> _Seen:
    if isinstance(module, EVERYWHERE):
        return _Seen((float("inf"), float("inf")), seen.jump)
    if isinstance(module, POINTWISE):
        return seen
    if not isinstance(module, WINDOWS):
        raise ValueError(f"cannot follow {name} ({type(module).__name__}): its field is unknown")
    size, stride, gap = (_pair(getattr(module, of, 1)) for of in ("kernel_size", "stride", "dilation"))
    fields = [field + gap[axis] * (size[axis] - 1) * seen.jump[axis] for axis, field in enumerate(seen.field)]
    return _Seen((fields[0], fields[1]), (seen.jump[0] * stride[0], seen.jump[1] * stride[1]))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
