"""Measure how convolutional an attention layer is: numbers for what the paper shows in figures.

A convolution looks at fixed shifts, one pixel per tap, for all images and pixels. For each head, we measure how narrow
it is, and how much of its map the shift alone determines. For each layer, we measure whether its heads together, with
shared values, compute a convolution, and how much of its output the best convolution explains.
attnconv.analysis.calibration has the same numbers for attention of known kinds.

Axes: B images, H W rows and columns, N heads, Q K query and key pixels (row-major over H x W), D channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnconv.analysis.heads import central_query, head_statistics
from attnconv.mixers.base import grid_shifts

KERNELS = (1, 3, 5, 7)
RANK_TOLERANCE = 1e-3  # a direction that needs weights of a thousand does not count as in the span of the heads
RIDGE = 1e-7  # for features of unit variance: keeps least squares regular if features are dependent
MOST_WEIGHTS = 0.5  # p/n of a fit: with more weights per pixel, a fit is meaningless
CONSTANT = 1e-6  # outputs that vary less than this, relative to their size, are rounding errors
CHUNK = 32  # images per batch
ROUNDED = 1e-4  # rows whose sum is this near to 1 are probabilities


def head_rows(layer: int, probs: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """Return one row per head: the number of its layer, its own number from 1, and its numbers (see `head_numbers`)."""
    numbers = head_numbers(probs, height, width)
    return [
        {"layer": layer, "head": head, **dict(zip(numbers, of_head, strict=True))}
        for head, of_head in enumerate(zip(*numbers.values(), strict=True), 1)
    ]


def head_numbers(probs: Tensor, height: int, width: int) -> dict[str, list[float]]:
    """Describe each head by a list of N numbers per quantity.

    Args:
        probs: attention (B or 1, N, Q, K). Rows with another sum than 1, such as those of sigmoid attention, are
            divided by it first; rows of zeros stay.

    Returns:
        center_row, center_column: mean shift of the central pixel's attention, in positions.
        spread: standard deviation per axis around it, in positions. radius_50, radius_90: radii of the discs around it
            that hold this share of the attention.
        distance: mean distance between a query and the attended pixels, in positions, over images and queries.
        entropy: in nats, over images and queries; log(K) for uniform attention.
        one_pixel: largest probability, over images and queries.
        by_shift, by_place, by_content: shares of the variance of the probabilities, see `variance_shares`.
    """
    probs = _summing_to_one(probs.double())
    central = probs[:, :, central_query(height, width)].mean(dim=0).unflatten(-1, (height, width))
    centers, covariances = head_statistics(central)
    shifts = grid_shifts(height, width, probs.device).double()
    lengths = shifts.norm(dim=-1)
    numbers = {
        "center_row": centers[:, 0],
        "center_column": centers[:, 1],
        "spread": (covariances.diagonal(dim1=1, dim2=2).sum(-1) / 2).sqrt(),
        "radius_50": radius(central, centers, 0.5),
        "radius_90": radius(central, centers, 0.9),
        "distance": (probs * lengths).sum(-1).mean(dim=(0, 2)),
        "entropy": torch.special.entr(probs).sum(-1).mean(dim=(0, 2)),
        "one_pixel": probs.amax(-1).mean(dim=(0, 2)),
        **{f"by_{cause}": share for cause, share in variance_shares(probs, height, width).items()},
    }
    return {name: values.tolist() for name, values in numbers.items()}


def _summing_to_one(probs: Tensor) -> Tensor:
    sums = probs.sum(dim=-1, keepdim=True)
    return torch.where(((sums - 1).abs() < ROUNDED) | (sums == 0), probs, probs / sums)


def radius(central: Tensor, centers: Tensor, share: float) -> Tensor:
    """Return radii (N,) around centers (N, 2) that hold `share` of the attention (N, H, W), in positions."""
    _, height, width = central.shape
    shifts = grid_shifts(height, width, central.device)[central_query(height, width)].to(central)
    distances, order = (shifts - centers[:, None]).norm(dim=-1).sort(dim=-1)
    held = central.flatten(1).gather(1, order).cumsum(dim=-1)
    # Rounding may leave the sum slightly below its limit.
    first = (held >= share * held[:, -1:] - 1e-9).int().argmax(dim=-1)
    return distances.gather(1, first[:, None])[:, 0]


def variance_shares(probs: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Return the shares of each head's variance due to shift, place and content, (N,) each.

    This is the law of total variance in three steps: the mean at a shift; how the mean over images differs from it
    between places (as it must near the border); and how single images differ from that. The shares sum to 1. A head
    with uniform attention has no variance; its map then depends on the shift alone.

    Args:
        probs: (B or 1, N, Q, K).
    """
    heads, queries = probs.shape[1:3]
    shifts = grid_shifts(height, width, probs.device) + torch.tensor([height - 1, width - 1], device=probs.device)
    which = (shifts[..., 0] * (2 * width - 1) + shifts[..., 1]).flatten()
    over_images = probs.mean(dim=0).flatten(1)
    count = torch.bincount(which, minlength=(2 * height - 1) * (2 * width - 1)).to(probs)
    sums = torch.zeros(heads, len(count), dtype=probs.dtype, device=probs.device).index_add(1, which, over_images)
    at_shift = (sums / count)[:, which]
    parts = {
        "shift": (at_shift - over_images.mean(dim=1, keepdim=True)).square().sum(dim=1),
        "place": (over_images - at_shift).square().sum(dim=1),
        "content": (probs.flatten(2) - over_images).square().mean(dim=0).sum(dim=1),
    }
    total = torch.stack(list(parts.values())).sum(dim=0)
    even = total < 1e-12 * queries
    shares = {name: torch.where(even, 0.0, part / total.clamp_min(1e-300)) for name, part in parts.items()}
    return shares | {"shift": torch.where(even, 1.0, shares["shift"])}


def joint_residual(probs: Tensor, height: int, width: int, kernel: int = 3) -> float:
    """Return how far a random K x K convolution is from what the heads can compute: 0 for all convolutions, 1 for none.

    A layer computes a convolution if values V_h, one per head and shared by all pixels, give sum_h A_h[q, k] V_h = W_t
    at the pixel k = q + t of each tap t, and 0 elsewhere, for each query q. It is necessary that the taps of each
    single query lie in the span of the heads there (the paper's generalized lemma), but this is not sufficient: heads
    that swap places between pixels span all taps everywhere, but no values fit all pixels. So this is one least-squares
    fit over all images and queries: the mean squared distance of the taps' indicators from the span of the heads' maps.
    Queries whose taps are not all inside the map are left out.

    Args:
        probs: (B or 1, N, Q, K).

    Raises:
        ValueError: the kernel does not fit into the map, or has no center.
    """
    _require_center([kernel])
    shifts = grid_shifts(height, width, probs.device)
    taps = shifts.abs().amax(dim=-1) <= kernel // 2  # (Q, K)
    whole = taps.sum(dim=1) == kernel**2
    if not whole.any():
        raise ValueError(f"a {kernel}x{kernel} kernel does not fit into a {height}x{width} map")
    maps = probs[:, :, whole].double().transpose(0, 1)  # (N, B, Q, K)
    # The taps of all queries are in the same order: by key, which is by shift.
    at_taps = maps[..., taps[whole]].unflatten(-1, (-1, kernel**2))
    count = at_taps.shape[1] * at_taps.shape[2]
    gram = maps.flatten(1) @ maps.flatten(1).T
    cross = at_taps.sum(dim=(1, 2))  # (N, taps)
    sizes, directions = torch.linalg.eigh(gram)
    spanned = sizes > RANK_TOLERANCE**2 * sizes[-1]
    explained = (directions[:, spanned].T @ cross).square() / sizes[spanned, None]
    return 1 - explained.sum().item() / (kernel**2 * count)


def _require_center(kernels: Sequence[int]) -> None:
    """Raise ValueError for a kernel whose size is not odd."""
    if even := [kernel for kernel in kernels if kernel < 1 or kernel % 2 == 0]:
        raise ValueError(f"kernels have odd sizes, not {even[0]}")


def convolution_shares(
    inputs: Tensor, outputs: Tensor, kernels: Sequence[int] = KERNELS
) -> list[tuple[float | None, float]]:
    """Return the share of a layer's output that the best K x K convolution of its input explains, and p/n of its fit.

    Each fit is least squares with a bias on half of the images. With p weights fitted to n pixels, errors on the fitted
    half are too small by a share of about p/n, and errors on the other half are too large by about the same share, even
    if neighboring pixels err together. Their geometric mean is unbiased. The share is 1 - sqrt(E_fitted E_held), where
    each E is a squared error divided by the variance of its half. The share is None for a constant output, or if p/n is
    above a half. The units of inputs and outputs do not matter. The convolutions are zero-padded.

    Args:
        inputs, outputs: of the layer, (B, H, W, D) each.
        kernels: sizes K, odd; the result has a share for each.

    Raises:
        ValueError: fewer than two images, or a kernel without a center.
    """
    _require_center(kernels)
    half = len(inputs) // 2
    if half == 0:
        raise ValueError("fitting and testing need two or more images")
    halves = [(inputs[:half], outputs[:half]), (inputs[half : 2 * half], outputs[half : 2 * half])]
    largest, pixels = max(kernels), inputs[:half, ..., 0].numel()
    chosen = [_columns(kernel, largest, inputs.shape[-1]) for kernel in kernels]
    moments = _moments(*halves[0], largest)
    fits = [_fit(*moments, columns) for columns in chosen]
    errors = [_relative_errors(*part, largest, chosen, fits) for part in halves]
    shares: list[tuple[float | None, float]] = []
    for columns, fitted, held in zip(chosen, *errors, strict=True):
        ratio = len(columns) / pixels
        known = fitted is not None and held is not None and ratio <= MOST_WEIGHTS
        shares.append((1 - math.sqrt(fitted * held) if known else None, ratio))
    return shares


def _moments(x: Tensor, y: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the sums of products (P, P) of the features of all pixels, and of features and outputs (P, D)."""
    gram, cross = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for some, wanted in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        # In float64: after a layer norm, channels are linearly dependent, and float32's rounding errors are larger than
        # the ridge that controls such directions.
        features = _patches(some.double(), kernel)
        gram = gram + features.T @ features
        cross = cross + features.T @ wanted.double().flatten(0, 2)
    return gram, cross


def _fit(gram: Tensor, cross: Tensor, columns: Tensor) -> Tensor:
    """Return weights (P, D) of some features, the last of which is one.

    This is ridge regression on features of unit variance.
    """
    rest, count = columns[:-1], gram[-1, -1]
    means, mean = gram[rest, -1] / count, cross[-1] / count
    covariance = gram[rest][:, rest] / count - means[:, None] * means
    scale = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    unit = covariance / (scale[:, None] * scale) + RIDGE * torch.eye(len(rest), dtype=gram.dtype)
    slopes = torch.linalg.solve(unit, (cross[rest] / count - means[:, None] * mean) / scale[:, None]) / scale[:, None]
    return torch.cat([slopes, (mean - means @ slopes)[None]])


def _relative_errors(x: Tensor, y: Tensor, kernel: int, chosen: list[Tensor], fits: list[Tensor]) -> list[float | None]:
    """Return the squared error of each fit over the variance of the outputs; None if that is a rounding error."""
    errors = torch.zeros(len(fits), dtype=torch.float64)
    for some, wanted in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        features, flat = _patches(some.double(), kernel), wanted.double().flatten(0, 2)
        for index, (columns, weights) in enumerate(zip(chosen, fits, strict=True)):
            errors[index] += (features[:, columns] @ weights - flat).square().sum()
    flat = y.double().flatten(0, 2)
    variance = (flat - flat.mean(dim=0)).square().sum()
    constant = bool(variance <= CONSTANT**2 * flat.square().sum())
    return [None if constant else error for error in (errors / variance).tolist()]


def _patches(x: Tensor, kernel: int) -> Tensor:
    """Return each pixel's zero-padded K x K neighborhood and a one as features: (B, H, W, D) -> (B*H*W, D*K*K + 1)."""
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)
    return F.pad(unfolded, (0, 1), value=1.0)


def _columns(kernel: int, largest: int, channels: int) -> Tensor:
    """Return which features of the largest kernel a smaller one has, including the one."""
    inside = torch.zeros(largest, largest, dtype=torch.bool)
    margin = (largest - kernel) // 2
    inside[margin : margin + kernel, margin : margin + kernel] = True
    return torch.cat([inside.flatten().repeat(channels), torch.ones(1, dtype=torch.bool)]).nonzero().squeeze(1)


def layer_numbers(probs: Tensor, inputs: Tensor, outputs: Tensor, height: int, width: int) -> dict[str, Any]:
    """Describe a layer: joint_residual for a 3 x 3 kernel, and conv1 ... conv7, the shares of the best convolutions.

    Also return fit_ratio, p/n of the largest of these fits.
    """
    shares = convolution_shares(inputs, outputs)
    return {
        # On smaller maps, no pixel has all of its neighbors.
        "joint_residual": joint_residual(probs, height, width) if min(height, width) >= 3 else None,
        **{f"conv{kernel}": share for kernel, (share, _) in zip(KERNELS, shares, strict=True)},
        "fit_ratio": max(ratio for _, ratio in shares),
    }
