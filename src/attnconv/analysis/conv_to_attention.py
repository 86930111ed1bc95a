"""The theorem as code: a convolution becomes multi-head attention that computes the same function, and back.

Theorem 1 of the paper: K^2 heads with a quadratic encoding express any K x K convolution. There is one head per tap of
the kernel (Lemma 1), a Gaussian around the tap's shift so narrow that one pixel gets all of its attention (Lemma 2).
The paper claims the pixels off the border: at the border softmax shares the attention among the pixels that there are,
where a convolution meets its padding. Here the keys are the padded map, so that a head finds there what the convolution
would, and the border is right as well; queries are the pixels at which the convolution has an output, which covers
strides, even kernels and convolutions without padding. Dilation only moves the heads; groups are zeros in the values.

Axes: B batch, C channels, H W rows and columns, N heads (taps, row-major), G groups, O outputs.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from attnconv.errors import UserError
from attnconv.mixers.blocked import apply_separable
from attnconv.mixers.encodings import QuadraticEncoding, exact_positions
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.shifts import grid_shifts

# From 104 on exp(-alpha) is 0 in float32, and softmax gives exactly one pixel everything (the paper says 46).
ALPHA = 104.0
PADDING_MODES = {"zeros": "constant", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}


class Inconvertible(UserError):
    """A convolution that has no attention to become, or an attention that is no convolution."""


class ConvolutionAsAttention(nn.Module):
    """Multi-head attention with a quadratic encoding that computes a convolution, (B, C, H, W) -> (B, O, H', W').

    Also (B, C, L) -> (B, O, L') for a one-dimensional convolution.

    Args:
        convolution: nn.Conv1d or nn.Conv2d; any size, stride, dilation, groups, padding and padding mode.
        alpha: sharpness of the heads, in 1/pixels^2; see `leak` for the error that it leaves.

    Parameters: encoding (centers (N, 2) in pixels of the padded map, spreads (N,) in 1/pixels), value (G, N*C/G, O/G),
    bias (O,) or None.

    Raises:
        Inconvertible: another kind of convolution.
    """

    def __init__(self, convolution: nn.Conv1d | nn.Conv2d, alpha: float = ALPHA):
        super().__init__()
        if type(convolution) not in (nn.Conv1d, nn.Conv2d):
            raise Inconvertible(f"{type(convolution).__name__} is none of nn.Conv1d and nn.Conv2d")
        self.axes = len(convolution.kernel_size)
        # A row of pixels is a map of one row.
        one = (1,) * (2 - self.axes)
        self.kernel_size, self.stride, self.dilation = (
            one + tuple(sizes) for sizes in (convolution.kernel_size, convolution.stride, convolution.dilation)
        )
        # Last axis first, both sides of each, as F.pad wants it; it knows "same" too.
        self.padding: list[int] = list(convolution._reversed_padding_repeated_twice)
        self.padding_mode = PADDING_MODES[convolution.padding_mode]
        self.groups = convolution.groups

        weight = convolution.weight.detach().reshape(*convolution.weight.shape[:2], *self.kernel_size)
        outputs, inputs, rows, columns = weight.shape
        taps = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(weight)
        self.encoding = QuadraticEncoding(heads=rows * columns, width=inputs, grid=(rows, columns)).to(weight)
        with torch.no_grad():
            self.encoding.centers.copy_(taps * torch.tensor(self.dilation).to(weight))
            self.encoding.spreads.fill_(math.sqrt(2 * alpha))
        by_group = weight.reshape(self.groups, outputs // self.groups, inputs, rows * columns)
        self.value = nn.Parameter(by_group.permute(0, 3, 2, 1).flatten(1, 2).contiguous())
        self.bias = None if convolution.bias is None else nn.Parameter(convolution.bias.detach().clone())

    @property
    def heads(self) -> int:
        """N, the number of taps."""
        return math.prod(self.kernel_size)

    def axis_probs(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Factors of the probabilities on a padded H x W map: (N, H' queries, H keys) and (N, W' queries, W keys)."""
        with exact_positions(self.value.device):
            scores = (self.encoding.row_scores, self.encoding.column_scores)
            rows, columns = (
                of_axis(self._shifts(axis, size)).softmax(dim=-1)
                for axis, (of_axis, size) in enumerate(zip(scores, (height, width), strict=True))
            )
            return rows, columns

    def attention_probs(self, height: int, width: int, x: Tensor | None = None) -> Tensor:
        """Probabilities (1, N, H'*W', H*W) of the outputs' pixels over the pixels of a padded H x W map."""
        rows, columns = self.axis_probs(height, width)
        return torch.einsum("nij,nkl->nikjl", rows, columns).flatten(3).flatten(1, 2)[None]

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, self.padding, mode=self.padding_mode) if any(self.padding) else x
        if self.axes == 1:
            return self._attend(padded.unsqueeze(-2)).squeeze(-2)
        return self._attend(padded)

    def _attend(self, padded: Tensor) -> Tensor:
        rows, columns = self.axis_probs(*padded.shape[-2:])
        averages = apply_separable(rows.to(padded), columns.to(padded), padded.permute(0, 2, 3, 1))
        batch, height, width, _ = averages.shape
        # Heads of N*C channels; a group of outputs takes, of every head, its group of channels.
        grouped = averages.reshape(batch * height * width, self.heads, self.groups, -1).permute(2, 0, 1, 3).flatten(2)
        out = (grouped @ self.value.to(padded)).permute(1, 0, 2).reshape(batch, height, width, -1)
        return (out if self.bias is None else out + self.bias.to(padded)).permute(0, 3, 1, 2)

    def _shifts(self, axis: int, size: int) -> Tensor:
        """Key minus query along one axis of a padded map, (queries, keys), in pixels; queries are at the first taps."""
        keys = torch.arange(size, device=self.value.device)
        last = size - 1 - self.dilation[axis] * (self.kernel_size[axis] - 1)
        return keys - torch.arange(0, last + 1, self.stride[axis], device=keys.device)[:, None]


def leak(alpha: float) -> float:
    """Share of a head's attention that misses its pixel, far from any border: 1 - (sum over j of exp(-alpha j^2))^-2.

    An output is then off by at most `2 leak(alpha) max|x|` per unit of kernel weight.
    """
    reach = 1 + math.ceil(math.sqrt(800 / alpha))
    others = 2 * math.fsum(math.exp(-alpha * j * j) for j in range(1, reach))
    return -math.expm1(-2 * math.log1p(others))


def convert(model: nn.Module, alpha: float = ALPHA) -> dict[str, ConvolutionAsAttention]:
    """Replace every convolution inside a model, in place; returns what has replaced them, by name.

    Raises:
        Inconvertible: there is none, or some cannot be converted; all of these are named, and nothing is replaced.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    strange = [f"{name} ({type(module).__name__})" for name, module in found.items() if not _is_plain(module)]
    if strange:
        raise Inconvertible(f"cannot convert {', '.join(strange)}: no plain nn.Conv1d or nn.Conv2d")
    if not found:
        raise Inconvertible("the model has no convolution")
    made: dict[int, ConvolutionAsAttention] = {}
    replaced = {}
    # A convolution that stands in several places stays one layer.
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in {id(convolution) for convolution in found.values()}:
            replaced[name] = made.setdefault(id(module), ConvolutionAsAttention(module, alpha))
    for name, attention in replaced.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, attention)
    return replaced


def refuse_convolutions(model: nn.Module, x: Tensor) -> None:
    """Run a converted model and refuse it if anything inside still computes a convolution.

    Raises:
        Inconvertible: naming the modules in which one is computed without being a layer of its own.
    """
    seen: set[str] = set()
    tracker = ModuleTracker()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in str(function):
                seen.add(max(tracker.parents, key=len))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), tracker, Watch():
        model(x)
    if seen:
        raise Inconvertible(f"cannot convert the convolutions that {', '.join(sorted(seen))} computes by itself")


def convolution_from_attention(layer: Any, height: int, width: int, tolerance: float = 1e-6) -> nn.Conv2d:
    """The convolution that a layer of hard heads computes, the converse of the theorem.

    On an H x W map both have the same output (B, H, W, D), permuted for the convolution, wherever no head would look
    out of the map: there a head looks at the nearest pixel, and a convolution at its padding.

    Args:
        layer: position-only attention with a linear value projection.
        tolerance: attention that a head may spend on other pixels than its own.

    Raises:
        Inconvertible: attention that depends on content, or a head that is not hard or not the same everywhere.
    """
    if not isinstance(layer, PositionalAttention) or not isinstance(layer.value, nn.Linear):
        raise Inconvertible(f"{type(layer).__name__} is no position-only attention with a linear value projection")
    probs = layer.attention_probs(height, width)[0].detach()
    shifts = grid_shifts(height, width, probs.device)
    middle = height // 2 * width + width // 2
    heads = [_hard_shift(head, probs[head], shifts, middle, tolerance) for head in range(layer.heads)]
    reach = [max(abs(shift[axis]) for shift in heads) for axis in range(2)]
    weight, channels = layer.value.weight, layer.value.out_features
    convolution = nn.Conv2d(
        layer.value.in_features // layer.heads,
        channels,
        (2 * reach[0] + 1, 2 * reach[1] + 1),
        padding=(reach[0], reach[1]),
        bias=layer.value.bias is not None,
    ).to(weight)
    with torch.no_grad():
        convolution.weight.zero_()
        for head, (row, column) in enumerate(heads):  # heads that look at one pixel add up
            convolution.weight[:, :, row + reach[0], column + reach[1]] += weight.unflatten(1, (layer.heads, -1))[
                :, head
            ]
        if convolution.bias is not None and layer.value.bias is not None:
            convolution.bias.copy_(layer.value.bias)
    return convolution


def _hard_shift(head: int, probs: Tensor, shifts: Tensor, middle: int, tolerance: float) -> tuple[int, int]:
    """The one shift (row, column) in pixels that a head of probabilities (Q, K) looks at from everywhere."""
    shift = shifts[middle, probs[middle].argmax()]
    at_shift = (shifts == shift).all(dim=-1)
    least = probs[at_shift].min().item()
    if least < 1 - tolerance:
        row, column = shift.tolist()
        raise Inconvertible(
            f"head {head} is no tap of a convolution: of the attention of some pixel only {least:.6f} is at its shift, "
            f"{row} rows and {column} columns away"
        )
    row, column = shift.tolist()
    return row, column


def _is_plain(module: nn.Module) -> bool:
    return type(module) in (nn.Conv1d, nn.Conv2d)
