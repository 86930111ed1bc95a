"""PyTorch's counter of floating-point operations, with the products, complex numbers and FFTs that it leaves out."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.convolution)  # that the counter takes for real ones


def flop_counter() -> FlopCounterMode:
    """Return a counter of all matrix products, convolutions and FFTs, two operations per real multiply-add."""
    more: dict[Any, Callable[..., int]] = {
        ATEN.mv: lambda matrix, vector, **_: 2 * matrix.numel(),
        ATEN.addmv: lambda added, matrix, vector, **_: 2 * matrix.numel(),
        ATEN.dot: lambda left, right, **_: 2 * left.numel(),
        ATEN.vdot: lambda left, right, **_: 2 * left.numel(),
        ATEN.addbmm: lambda added, left, right, **_: 2 * left.numel() * right.shape[-1],
        ATEN._trilinear: _trilinear,
        ATEN._cdist_forward: lambda left, right, *_, **__: 2 * left.numel() * right.shape[-2],
    }
    counts = {operator: _of_kind(count) for operator, count in more.items()}
    counts |= {operator: _of_kind(flop_registry[operator]) for operator in PRODUCTS}
    counts |= {operator: _raw(_fft) for operator in (ATEN._fft_r2c, ATEN._fft_c2r, ATEN._fft_c2c)}
    return FlopCounterMode(display=False, custom_mapping=counts)


def _of_kind(count: Callable[..., int]) -> Callable[..., int]:
    """Return a count of real multiply-adds as one that also takes complex numbers: four real ones each."""

    def counted(*arguments: Any, out_val: Any = None, **options: Any) -> int:
        complex_ = isinstance(out_val, Tensor) and out_val.is_complex()
        return count(*arguments, out_val=out_val, **options) * (4 if complex_ else 1)

    return _raw(counted)


def _raw(count: Callable[..., int]) -> Callable[..., int]:
    """Mark a count as one that takes tensors, not their shapes."""
    count._get_raw = True  # type: ignore[attr-defined]
    return count


def _trilinear(left: Tensor, weight: Tensor, right: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Return the operations of nn.Bilinear, from (B, 1, I, 1), (1, O, I, J) and (B, 1, 1, J) to (B, O)."""
    pairs = weight.numel()  # O * I * J: each is multiplied by an input of one side, and those sums by the other
    return 2 * left.shape[0] * (pairs + pairs // right.shape[-1])


def _fft(numbers: Tensor, dim: Any, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Return 5 n log2 n per transform of n complex numbers, and half as many if they are real: the usual count."""
    shape = max(numbers.shape, out_val.shape, key=math.prod)
    length = math.prod(shape[axis] for axis in dim)
    factor = 5 if numbers.is_complex() and out_val.is_complex() else 2.5
    return int(factor * math.prod(shape) * math.log2(max(2, length)))
