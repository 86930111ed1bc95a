"""The theorem as code: convert a convolution to multi-head attention that computes the same function.

Theorem 1 of the paper: K^2 heads with a quadratic encoding express any K x K convolution. There is one head per tap of
the kernel (Lemma 1), a Gaussian around the tap's shift that is so narrow that one pixel gets all of its attention
(Lemma 2). The paper proves equality away from the border; at the border, softmax only distributes attention to existing
pixels, but a convolution sees padding. Here the keys are the padded map, so heads see the same padding, and the border
is correct as well. The queries are the pixels where the convolution has an output; this covers strides, even kernels
and convolutions without padding. Dilation only moves the heads, and groups are zeros in the values.
attnconv.analysis.convert converts whole networks, and attnconv.analysis.attention_to_conv does the converse.

Axes: B batch, C channels, H W rows and columns, N heads (taps, row-major), G groups, O outputs.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.analysis.plain_convolution import Inconvertible, read_convolution, same_pads
from attnconv.mixers.blocked import apply_separable
from attnconv.mixers.encodings import QuadraticEncoding, exact_positions

# From 104 on, exp(-alpha) is 0 in float32, and softmax gives one pixel exactly everything (the paper says 46).
ALPHA = 104.0
LARGEST_ALPHA = 1e30  # its scores are finite in float32
# Parameters that a bias is, or is computed from.
OF_BIAS = re.compile(r"bias(_\w+)?|parametrizations\.bias\..*")
# Attributes that shape the heads when they are built.
FIXED = ("in_channels", "out_channels", "groups", "kernel_size", "dilation", "padding", "padding_mode")
QUERIES_AT_ONCE = 256  # along an axis: memory for a long sequence grows with its length, not with the square


def check_alpha(alpha: Any) -> None:
    """Raise ValueError if alpha is not a number above 0 and at most LARGEST_ALPHA."""
    try:
        usable = not isinstance(alpha, bool) and 0 < alpha <= LARGEST_ALPHA
    except (TypeError, ValueError, RuntimeError):  # not one number
        usable = False
    if not usable:
        raise ValueError(f"alpha must be a number above 0 and at most {LARGEST_ALPHA:g}, not {alpha!r}")


def _is_traced() -> bool:
    """Return whether the code must not depend on values or sizes, because a trace or torch.func takes it for all."""
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return traced or torch._C._are_functorch_transforms_active()


class ConvolutionAsAttention(nn.Module):
    """Multi-head attention with a quadratic encoding that computes a convolution, (B, C, H, W) -> (B, O, H', W').

    It also maps (B, C, L) -> (B, O, L') for a one-dimensional convolution, and both without B. The type of the output,
    also under autocast, and its memory format are those of the convolution. Both are equal for finite inputs: an
    infinite pixel has an attention of 0 elsewhere, and 0 * inf is nan.

    Args:
        convolution: an nn.Conv1d or nn.Conv2d with any size, stride, dilation, groups, padding and padding mode, or a
            layer that computes one (see attnconv.analysis.plain_convolution).
        alpha: sharpness of the heads, in 1/pixels^2; see `leak` for the remaining error.

    Parameters: encoding (centers (N, 2) in pixels of the padded map, spreads (N,) in 1/pixels), value (G, N*C/G, O/G),
    bias (O,) or None. All are copies; they are frozen where the convolution's are. The encoding stays in float32 or
    wider, because bf16 has no odd numbers beyond 256.

    Raises:
        Inconvertible: a layer that computes anything else than one convolution.
        ValueError: alpha is not above 0, or above LARGEST_ALPHA.
    """

    is_converted = True  # attention_mixers leaves it out

    def __init__(self, convolution: nn.Module, alpha: float = ALPHA):
        super().__init__()
        check_alpha(alpha)
        try:
            plain = read_convolution(convolution)
        except Inconvertible as reason:
            raise Inconvertible(f"{type(convolution).__name__}: {reason}") from reason
        weight = plain.weight
        self.out_channels, self.groups = weight.shape[0], plain.groups
        self.in_channels = weight.shape[1] * plain.groups
        self.kernel_size, self.stride, self.dilation = tuple(weight.shape[2:]), plain.stride, plain.dilation
        self.padding, self.pads, self.pad_mode = convolution.padding, plain.pads, plain.pad_mode
        self.padding_mode: Any = convolution.padding_mode
        self.channels_last = _is_channels_last(weight)

        rows, columns = self._two(self.kernel_size)
        exact = torch.promote_types(weight.dtype.to_real(), torch.float32)
        with torch.no_grad(), weight.device:  # whatever PyTorch's default device is
            self.encoding = QuadraticEncoding(heads=rows * columns, width=self.in_channels, grid=(rows, columns))
            self.encoding.to(dtype=exact)
            taps = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
            self.encoding.centers.copy_(taps * torch.tensor(self._two(self.dilation)))
            self.encoding.spreads.fill_(math.sqrt(2 * alpha))
        by_group = weight.detach().reshape(self.groups, self.out_channels // self.groups, -1, self.heads)
        value = by_group.permute(0, 3, 2, 1).flatten(1, 2).clone(memory_format=torch.contiguous_format)
        of_bias: list[bool] = []
        of_weight: list[bool] = []
        for name, parameter in convolution.named_parameters():
            (of_bias if OF_BIAS.fullmatch(name) else of_weight).append(parameter.requires_grad)
        learns = any(of_weight)
        self.value = nn.Parameter(value, requires_grad=learns)
        self.encoding.requires_grad_(learns)
        self.bias: nn.Parameter | None = None
        if plain.bias is not None:
            self.bias = nn.Parameter(plain.bias.detach().clone(), requires_grad=any(of_bias) if of_bias else learns)
        self.train(convolution.training)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError("weight cannot be set, because it is computed from `value`: set that")
        if name in FIXED and name in vars(self) and vars(self)[name] != value:
            raise AttributeError(f"{name} cannot be set after conversion: set it on the convolution, and convert that")
        super().__setattr__(name, value)

    @property
    def heads(self) -> int:
        """N, the number of taps."""
        return math.prod(self.kernel_size)

    @property
    def weight(self) -> Tensor:
        """The kernel (O, C/G, ...) of the values, as the convolution has it; to change it, change `value`."""
        taps = self.value.unflatten(1, (self.heads, -1)).permute(0, 3, 2, 1)
        return taps.reshape(self.out_channels, -1, *self.kernel_size)

    def axis_probs(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Factors of the probabilities on a padded H x W map: (N, H' queries, H keys) and (N, W' queries, W keys)."""
        rows, columns = (
            self._probs(axis, self._queries(axis, size), slice(0, size)) for axis, size in enumerate((height, width))
        )
        return rows, columns

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Return probabilities (1, N, H'*W', H*W) of the output pixels over the pixels of a padded H x W map."""
        rows, columns = self.axis_probs(height, width)
        return torch.einsum("nij,nkl->nikjl", rows, columns).flatten(3).flatten(1, 2)[None]

    def forward(self, input: Tensor) -> Tensor:  # the name that PyTorch's convolutions use
        x = input
        self._check(x)
        maps = x if x.dim() == len(self.kernel_size) + 2 else x[None]
        pads = self.pads
        if pads is None:
            pads = same_pads(tuple(maps.shape[2:]), self.kernel_size, self.stride, self.dilation)
        padded = F.pad(maps, pads, mode=self.pad_mode) if any(pads) else maps
        one_row = len(self.kernel_size) == 1
        out = self._attend(padded.unsqueeze(-2) if one_row else padded)
        out = out.squeeze(-2) if one_row else out
        # The products leave channels last; a convolution's output does so if its input or its kernel does.
        last = _is_channels_last(x) or (self.channels_last and x.dim() == 4)
        out = out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        return out if maps is x else out[0]

    def _attend(self, padded: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, O, H', W') by blocks of queries, with the keys that a block's heads can see."""
        sizes = (padded.shape[2], padded.shape[3])
        queries = [self._queries(axis, size) for axis, size in enumerate(sizes)]
        blocks = [[all_] if _is_traced() else all_.split(QUERIES_AT_ONCE) for all_ in queries]
        rows = []
        for block in blocks[0]:
            row_keys = self._keys(0, block, sizes[0])
            row_probs = self._probs(0, block, row_keys)
            parts = []
            for other in blocks[1]:
                column_keys = self._keys(1, other, sizes[1])
                factors = row_probs, self._probs(1, other, column_keys)
                parts.append(self._attend_block(*factors, padded[:, :, row_keys, column_keys]))
            rows.append(torch.cat(parts, dim=2))
        return torch.cat(rows, dim=1).permute(0, 3, 1, 2)

    def _attend_block(self, rows: Tensor, columns: Tensor, maps: Tensor) -> Tensor:
        averages = apply_separable(rows.to(maps), columns.to(maps), maps.permute(0, 2, 3, 1))
        batch, height, width, _ = averages.shape
        # Heads of N*C channels; a group of outputs uses its group of channels of each head.
        wide = averages.reshape(batch * height * width, self.heads, self.groups, self.in_channels // self.groups)
        out = (wide.permute(2, 0, 1, 3).flatten(2) @ self.value).permute(1, 0, 2)
        out = out.reshape(batch, height, width, self.out_channels)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _queries(self, axis: int, size: int) -> Tensor:
        """Return the position of the first tap for each output along an axis of a padded map, in pixels."""
        last = size - 1 - self._two(self.dilation)[axis] * (self._two(self.kernel_size)[axis] - 1)
        if last < 0:
            raise RuntimeError(f"a padded map of {size} pixels is smaller than the kernel")
        return torch.arange(0, last + 1, self._two(self.stride)[axis], device=self.value.device)

    def _keys(self, axis: int, queries: Tensor, size: int) -> slice:
        """Return the keys of an axis outside of which the softmax of all heads is exactly 0 for these queries."""
        if size <= QUERIES_AT_ONCE or queries.is_meta or _is_traced():
            return slice(0, size)
        kind, centers = torch.finfo(self.encoding.centers.dtype), self.encoding.centers[:, axis]
        alpha = self.encoding.spreads.square().min().item() / 2
        # exp(-alpha d^2) is 0 outside; two more pixels, because the nearest key is up to half a pixel from the center.
        reach = math.ceil(math.sqrt((1 - math.log(kind.smallest_normal * kind.eps)) / max(alpha, kind.eps))) + 2
        ends = (queries[0] + centers.min()).item(), (queries[-1] + centers.max()).item()
        first, last = (min(max(round(end), 0), size - 1) for end in ends)
        return slice(max(first - reach, 0), min(last + reach + 1, size))

    def _probs(self, axis: int, queries: Tensor, keys: slice) -> Tensor:
        """Return probabilities (N, Q, K) of queries (Q,) over some keys of one axis."""
        shifts = torch.arange(keys.start, keys.stop, device=queries.device) - queries[:, None]
        with exact_positions(queries.device):
            of_axis = (self.encoding.row_scores, self.encoding.column_scores)[axis]
            return of_axis(shifts).softmax(dim=-1)

    def _check(self, x: Tensor) -> None:
        """Raise RuntimeError for inputs that the convolution would not accept either."""
        axes = len(self.kernel_size)
        if x.dim() not in (axes + 1, axes + 2) or x.shape[-axes - 1] != self.in_channels:
            raise RuntimeError(f"expected {self.in_channels} channels of {axes}-D maps, not {tuple(x.shape)}")
        if x.dtype != self.value.dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            raise RuntimeError(f"expected an input of {self.value.dtype}, as the weights are, not {x.dtype}")

    def _two(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Return sizes of rows and columns: a sequence is a map with one row."""
        rows, columns = (1, *sizes)[-2:]
        return rows, columns

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ConvolutionAsAttention":
        before = [parameter.detach() for parameter in self.encoding.parameters()]
        super()._apply(fn, recurse)
        for parameter, exact in zip(self.encoding.parameters(), before, strict=True):
            if parameter.dtype.itemsize < 4:
                parameter.data = exact.to(parameter.device)
        return self


def leak(alpha: float) -> float:
    """Return the share of a head's attention outside of its pixel, away from the border.

    It is 1 - (sum_j exp(-alpha j^2))^-2.

    The error of an output is at most `2 leak(alpha) max|x|` per unit of kernel weight.
    """
    if alpha < 1:  # the sum has many terms; by Poisson's formula it is that of exp(-(pi k)^2 / alpha), times a factor
        few = 2 * math.fsum(math.exp(-((math.pi * k) ** 2) / alpha) for k in range(1, 10))
        return 1 - alpha / math.pi / (1 + few) ** 2
    others = 2 * math.fsum(math.exp(-alpha * j * j) for j in range(1, 30))
    return -math.expm1(-2 * math.log1p(others))


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
