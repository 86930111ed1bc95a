"""How convolutional an attention layer is: numbers for what the paper shows by eye.

A convolution looks at fixed shifts, one pixel per tap, whatever the image and wherever the pixel. So every head is
asked how narrow it is, and how much of its map the shift alone tells; a layer, whether its heads together span the taps
of a convolution (the generalised lemma), and how much of its output the best convolution explains.

Axes: B images, H W rows and columns, N heads, Q K query and key pixels (row-major over H x W), D channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnconv.analysis.heads import central_query, head_statistics
from attnconv.mixers.shifts import grid_shifts

KERNELS = (1, 3, 5, 7)
RANK_TOLERANCE = 1e-3  # a direction that heads reach only with weights of a thousand is not in their span
RIDGE = 1e-7  # of the mean feature power: keeps dead features from making least squares singular
CHUNK = 32  # images at a time


def head_numbers(probs: Tensor, height: int, width: int) -> dict[str, list[float]]:
    """Describe every head, a list of N numbers per quantity.

    Args:
        probs: attention (B or 1, N, Q, K), rows summing to 1.

    Returns:
        center_row, center_column: mean shift of the central pixel's attention, in positions.
        spread: standard deviation per axis around it, in positions; radius_50, radius_90: of the discs around it that
            hold so much of the attention.
        distance: mean distance between a query and what it attends to, in positions, over images and queries.
        entropy: in nats, over images and queries; log(K) is an even look at everything.
        one_pixel: largest probability, over images and queries.
        by_shift, by_place, by_content: shares of the variance of the probabilities, see `variance_shares`.
    """
    probs = probs.double()
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


def radius(central: Tensor, centers: Tensor, share: float) -> Tensor:
    """Radii (N,) in positions around centers (N, 2) that hold `share` of the central pixel's attention (N, H, W)."""
    _, height, width = central.shape
    shifts = grid_shifts(height, width, central.device)[central_query(height, width)].to(central)
    distances, order = (shifts - centers[:, None]).norm(dim=-1).sort(dim=-1)
    held = central.flatten(1).gather(1, order).cumsum(dim=-1)
    # Rounding may leave the sum a little short of what it should reach.
    first = (held >= share * held[:, -1:] - 1e-9).int().argmax(dim=-1)
    return distances.gather(1, first[:, None])[:, 0]


def variance_shares(probs: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Share of each head's variance over images, queries and keys that is due to shift, place and content: (N,) each.

    The law of total variance, in three steps: the mean at a shift; how the mean over images departs from it from place
    to place (as it must near the border); how single images depart from that. They sum to 1. A head that looks evenly
    everywhere has no variance; its map is then told by the shift alone.

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


def lemma_residual(probs: Tensor, height: int, width: int, kernel: int = 3) -> float:
    """How far the taps of a K x K convolution are from the span of the heads: 0 all in it, 1 all orthogonal to it.

    The generalised lemma: attention computes any K x K convolution if and only if, for every query q, the indicator of
    the pixel q + shift lies in the span of the heads' probabilities, for every shift of the kernel. This is the mean
    squared distance of the indicators from the span, over images, taps, and queries whose taps are inside the map.

    Args:
        probs: (B or 1, N, Q, K).

    Raises:
        ValueError: the kernel fits nowhere in the map.
    """
    reach = kernel // 2
    shifts = grid_shifts(height, width, probs.device)
    taps = shifts.abs().amax(dim=-1) <= reach  # (Q, K)
    whole = taps.sum(dim=1) == kernel**2
    if not whole.any():
        raise ValueError(f"a {kernel}x{kernel} kernel fits nowhere in a {height}x{width} map")
    probs = probs[:, :, whole].double().transpose(1, 2)  # (B, Q, N, K)
    _, sizes, directions = torch.linalg.svd(probs, full_matrices=False)
    spanned = sizes > RANK_TOLERANCE * sizes[..., :1]
    inside = (directions.square() * spanned[..., None]).sum(dim=-2)  # (B, Q, K): squared length within the span
    return (1 - inside)[:, taps[whole]].mean().item()


def convolution_shares(inputs: Tensor, outputs: Tensor, kernels: Sequence[int] = KERNELS) -> list[float]:
    """Share of a layer's output that the best K x K convolution of its input explains, on images it was not fitted to.

    Least squares with a bias on the first half of the images; 1 - (squared error) / (squared distance from the mean)
    on the second half. The convolutions are zero-padded.

    Args:
        inputs, outputs: what went into the layer and came out, (B, H, W, D) each.
        kernels: sizes K, odd; a share is given for each.

    Raises:
        ValueError: fewer than two images.
    """
    half = len(inputs) // 2
    if half == 0:
        raise ValueError("a fit and its test need two images or more")
    largest = max(kernels)
    gram, cross = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x, y in zip(inputs[:half].split(CHUNK), outputs[:half].split(CHUNK), strict=True):
        # In float64: after a layer norm channels are linearly dependent, and what float32 rounds off is more than the
        # ridge that keeps such directions still.
        features = _patches(x.double(), largest)
        gram = gram + features.T @ features
        cross = cross + features.T @ y.double().flatten(0, 2)

    errors, weights = torch.zeros(len(kernels), dtype=torch.float64), []
    chosen = [_columns(kernel, largest, inputs.shape[-1]) for kernel in kernels]
    for columns in chosen:
        part = gram[columns][:, columns]
        ridge = RIDGE * part.diagonal().mean() * torch.eye(len(part), dtype=part.dtype)
        weights.append(torch.linalg.solve(part + ridge, cross[columns]).to(inputs))
    for x, y in zip(inputs[half:].split(CHUNK), outputs[half:].split(CHUNK), strict=True):
        features, wanted = _patches(x, largest), y.flatten(0, 2)
        for index, (columns, weight) in enumerate(zip(chosen, weights, strict=True)):
            errors[index] += (features[:, columns] @ weight - wanted).double().square().sum()
    held_out = outputs[half:].double().flatten(0, 2)
    return (1 - errors / (held_out - held_out.mean(dim=0)).square().sum()).tolist()


def _patches(x: Tensor, kernel: int) -> Tensor:
    """Features of every pixel, its zero-padded K x K neighbourhood and a one: (B, H, W, D) -> (B*H*W, D*K*K + 1)."""
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)
    return F.pad(unfolded, (0, 1), value=1.0)


def _columns(kernel: int, largest: int, channels: int) -> Tensor:
    """Which of the features of the largest kernel a smaller one has, the one included."""
    inside = torch.zeros(largest, largest, dtype=torch.bool)
    margin = (largest - kernel) // 2
    inside[margin : margin + kernel, margin : margin + kernel] = True
    return torch.cat([inside.flatten().repeat(channels), torch.ones(1, dtype=torch.bool)]).nonzero().squeeze(1)


def layer_numbers(probs: Tensor, inputs: Tensor, outputs: Tensor, height: int, width: int) -> dict[str, Any]:
    """Describe a layer: lemma_residual of a 3 x 3 kernel, and conv1 ... conv7, what the best convolution explains."""
    shares = zip(KERNELS, convolution_shares(inputs, outputs), strict=True)
    return {
        # On smaller maps no pixel has all of its neighbours.
        "lemma_residual": lemma_residual(probs, height, width) if min(height, width) >= 3 else None,
        **{f"conv{kernel}": share for kernel, share in shares},
    }
