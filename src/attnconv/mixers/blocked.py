"""Position-only attention and its value projection, a few images at a time, so that the data stays in a CPU's cache.

The averages of N heads are N times as large as the map. For a whole batch, they would leave the cache and be reloaded
for each product. Here, one block of images goes through all products before the next block starts. The rows of the
averages are (query, head), the order in which the projection reads them, so nothing is transposed. Gradients equal
those of the plain formulas up to rounding.

The plain formulas (`apply_dense`, `apply_separable`) are used on other devices, under torch.compile, torch.func and
forward-mode differentiation, and for second derivatives. They are also the oracle of the tests.

Axes: B batch, H W rows and columns, N heads, D width, Q K query and key positions, O outputs.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

BLOCK_BYTES = 2**20  # of dense averages per block; half or twice as many bytes are equally fast (LOG.md)

Gradients = tuple[Tensor | None, ...]


def apply_dense(probs: Tensor, x: Tensor) -> Tensor:
    """Average the map of each image: probs (N, Q, K), x (B, H, W, D) -> (B, H, W, N*D), head-major channels."""
    averages = torch.einsum("nqk,bkd->bqnd", probs, x.flatten(1, 2))
    return averages.flatten(2).unflatten(1, x.shape[1:3])


def apply_separable(rows: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """Average with factored probabilities: rows (N, H', H), columns (N, W', W), x (B, H, W, D) -> (B, H', W', N*D).

    Positions come before images, so that each axis is one large matrix product instead of one small product per image.
    """
    batch, height, width, channels = x.shape
    heads, out_height, _ = rows.shape
    positions_first = x.permute(1, 2, 0, 3).reshape(height, width * batch * channels)
    over_rows = rows.reshape(heads * out_height, height) @ positions_first
    over_both = columns[:, None] @ over_rows.view(heads, out_height, width, batch * channels)
    averages = over_both.unflatten(-1, (batch, channels)).permute(3, 1, 2, 0, 4)
    return averages.flatten(3)


def average_and_project(factors: tuple[Tensor, ...], x: Tensor, value: nn.Module) -> Tensor:
    """Average over the positions of maps x (B, H, W, D) and project the averages, (B, H, W, O).

    Args:
        factors: probabilities (N, Q, K), or their row and column factors (N, H, H) and (N, W, W).
        x: the maps.
        value: the projection, N*D -> O; blocks are used only if it is a plain nn.Linear.
    """
    if not (is_plain_linear(value) and x.device.type == "cpu" and _runs_eagerly()):
        return value(_averages(factors, x))
    # As in autocast's own products, float64 is not cast.
    casts = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    kind = torch.get_autocast_dtype("cpu") if casts else value.weight.dtype
    inputs = x.to(kind) if casts else x  # without autocast, another type is an error, as in the plain formulas
    blocked = BlockedDense if len(factors) == 1 else BlockedSeparable
    out = blocked.apply(inputs, *(part.to(kind) for part in (*factors, value.weight)))
    return out if value.bias is None else out + value.bias.to(kind)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is an nn.Linear itself, without hooks that using its weight would skip."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    around = any(getattr(module, name) for name in hooks) or _has_any_global_hook() or "forward" in vars(module)
    return type(module) is nn.Linear and not around


def _averages(factors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the averages (B, H, W, N*D) by the plain formulas."""
    if len(factors) == 1:
        return apply_dense(factors[0], x)
    rows, columns = factors
    return apply_separable(rows, columns, x)


def _runs_eagerly() -> bool:
    """Return whether operations run eagerly: a compiler would unroll the loops, and others cannot trace them."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or forward_ad._current_level >= 0
    return not (traced or torch._C._are_functorch_transforms_active())


def _is_batched(gradient: Tensor) -> bool:
    """Return whether this is a batch of gradients, which PyTorch propagates together (`is_grads_batched`, vmap)."""
    return torch._C._functorch.is_legacy_batchedtensor(gradient) or torch._C._functorch.is_batchedtensor(gradient)


class BlockedDense(torch.autograd.Function):
    """Average maps x (B, H, W, D) with probs (N, Q, K), and project with weight (O, N*D) to (B, H, W, O)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probs: Tensor, weight: Tensor) -> Tensor:
        heads, queries, _ = probs.shape
        channels = x.shape[-1]
        by_query = probs.transpose(0, 1).flatten(0, 1)
        inputs = x.flatten(1, 2)
        averages = x.new_empty(len(x), queries * heads, channels)
        out = x.new_empty(*x.shape[:3], len(weight))
        for block in _blocks(len(x), averages[:1].nbytes):
            torch.matmul(by_query, inputs[block], out=averages[block])
            torch.mm(averages[block].view(-1, heads * channels), weight.T, out=out[block].view(-1, len(weight)))
        ctx.save_for_backward(x, probs, weight, averages)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, probs, weight, averages = ctx.saved_tensors
        if torch.is_grad_enabled() or _is_batched(gradient):  # a second derivative will be needed, or many gradients
            return _plain_gradients(gradient, x, probs, weight)
        return BlockedDense._gradients(ctx.needs_input_grad, gradient.contiguous(), x, probs, weight, averages)

    @staticmethod
    def _gradients(
        needed: Sequence[bool], gradient: Tensor, x: Tensor, probs: Tensor, weight: Tensor, averages: Tensor
    ) -> Gradients:
        needs_x, needs_probs, needs_weight = needed
        heads, queries, keys = probs.shape
        batch, channels, outputs = len(x), x.shape[-1], len(weight)
        by_key = probs.permute(2, 1, 0).flatten(1)  # (K, Q*N)
        inputs = x.flatten(1, 2)
        for_x = torch.empty_like(inputs)
        for_probs = _zeros_wide(probs.new_empty(0), queries * heads, keys)
        for_weight = _zeros_wide(weight, *weight.shape)
        for block in _blocks(batch, averages[:1].nbytes):
            of_out = gradient[block].view(-1, outputs)
            if needs_weight:
                _add_product(for_weight, of_out.T, averages[block].view(-1, heads * channels))
            of_averages = torch.mm(of_out, weight).view(-1, queries * heads, channels)
            if needs_x:
                torch.matmul(by_key, of_averages, out=for_x[block])
            if needs_probs:  # false for frozen heads
                _add_product(for_probs, of_averages, inputs[block].transpose(1, 2))
        for_probs = for_probs.view(queries, heads, keys).transpose(0, 1)
        found = (for_x.view_as(x), for_probs.to(probs.dtype), for_weight.to(weight.dtype))
        return tuple(part if wanted else None for part, wanted in zip(found, needed, strict=True))


class BlockedSeparable(torch.autograd.Function):
    """The same with rows (N, H, H) and columns (N, W, W), one image at a time; the backward pass recomputes averages.

    Recomputing costs two small products; keeping the averages would take N times the memory of the map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
        heads, channels = len(rows), x.shape[-1]
        by_head = weight.unflatten(1, (heads, channels)).permute(1, 2, 0).contiguous()  # (N, D, O)
        out = x.new_empty(*x.shape[:3], len(weight))
        for image, projected in zip(x, out, strict=True):
            averages = _separable_averages(image, rows, columns)[0].view(heads, -1, channels)
            projected.view(-1, len(weight)).addbmm_(averages, by_head, beta=0)
        ctx.save_for_backward(x, rows, columns, weight)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, rows, columns, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or _is_batched(gradient):
            return _plain_gradients(gradient, x, rows, columns, weight)
        return BlockedSeparable._gradients(gradient.contiguous(), x, rows, columns, weight)

    @staticmethod
    def _gradients(gradient: Tensor, x: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> Gradients:
        heads, channels, outputs = len(rows), x.shape[-1], len(weight)
        height, width = x.shape[1:3]
        by_head = weight.unflatten(1, (heads, channels)).transpose(0, 1).contiguous()  # (N, O, D)
        by_key_row = rows.flatten(0, 1).T  # (H, N*H)
        by_key_column = columns.transpose(1, 2)[:, None]  # (N, 1, W, W)
        for_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        for_rows = _zeros_wide(rows, heads * height, height)
        for_columns = _zeros_wide(columns, heads * height, width, width)
        for_weight = _zeros_wide(weight, *by_head.shape)
        for image, of_out, of_image in zip(x, gradient, for_x, strict=True):
            averages, over_rows = _separable_averages(image, rows, columns)
            of_positions = of_out.view(1, -1, outputs).expand(heads, -1, -1)
            _add_product(for_weight, of_positions.transpose(1, 2), averages.view(heads, -1, channels))
            of_averages = torch.bmm(of_positions, by_head).view_as(averages)
            # Backward through the columns, then through the rows.
            _add_product(for_columns, of_averages.flatten(0, 1), over_rows.flatten(0, 1).transpose(1, 2))
            of_rows = torch.matmul(by_key_column, of_averages).view(heads * height, width * channels)
            _add_product(for_rows, of_rows, image.reshape(height, -1).T)
            torch.mm(by_key_row, of_rows, out=of_image.view(height, -1))
        for_weight = for_weight.transpose(0, 1).flatten(1).to(weight.dtype)
        for_columns = for_columns.view(heads, height, width, width).sum(dim=1).to(columns.dtype)
        return for_x, for_rows.view_as(rows).to(rows.dtype), for_columns, for_weight


def _blocks(images: int, bytes_per_image: int) -> list[slice]:
    """Return slices of the batch with at most BLOCK_BYTES of averages each, but at least one image."""
    size = max(1, BLOCK_BYTES // max(1, bytes_per_image))
    return [slice(start, start + size) for start in range(0, images, size)]


def _separable_averages(image: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averages (N, H, W, D) of one map (H, W, D), and those over the rows alone."""
    heads, height, _ = rows.shape
    over_rows = torch.mm(rows.reshape(heads * height, height), image.reshape(height, -1))
    over_rows = over_rows.view(heads, *image.shape)
    return torch.matmul(columns[:, None], over_rows), over_rows


def _zeros_wide(like: Tensor, *shape: int) -> Tensor:
    """Return zeros to accumulate in, of the type of `like` or float32, whichever is wider."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Compute total += left @ right, accumulating in the type of `total`.

    A batch of products is added product by product to a batch of totals, and its sum to a single total.
    """
    summed = left.dim() > total.dim()
    if total.dtype != left.dtype:
        product = left @ right
        total += product.sum(dim=0, dtype=total.dtype) if summed else product
    elif left.dim() == 2:
        total.addmm_(left, right)
    elif summed:
        total.addbmm_(left, right)
    else:
        total.baddbmm_(left, right)


def _plain_gradients(gradient: Tensor, x: Tensor, *parts: Tensor) -> Gradients:
    """Return the gradients of the plain formulas, which can be differentiated again.

    The last of `parts` is the projection.
    """
    *factors, weight = parts
    again = torch.is_grad_enabled()
    inputs = [part for part in (x, *parts) if part.requires_grad]
    with torch.enable_grad():
        out = F.linear(_averages(factors, x), weight)
    found = iter(torch.autograd.grad(out, inputs, gradient, create_graph=again))
    return tuple(next(found) if part.requires_grad else None for part in (x, *parts))
