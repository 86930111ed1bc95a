"""Time single layers, forward and backward: two ways to compute the same layer, and windows of growing size."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from attnconv.bench.timing import Spread, forward_backward, growth_exponent, ratios, take_turns
from attnconv.mixers.content import ContentAttention
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.relative import LearnedRelativeVectors
from attnconv.mixers.window import WindowAttention
from attnconv.training.device import choose_device, choose_precision

SIZES = ((128, 8, 64), (32, 12, 64), (32, 16, 64), (8, 16, 400), (8, 32, 64))  # images, side of the map, width
LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[str, str]]] = {
    "position-only, dense / separable": (
        partial(PositionalAttention, heads=9, encoding=QuadraticEncoding),
        ("dense", "separable"),
    ),
    "content q.k + q.r, dense / absorbed": (
        partial(ContentAttention, heads=9, relative=LearnedRelativeVectors),
        ("dense", "absorbed"),
    ),
    "content q.k + q.r, dense / fused": (
        partial(ContentAttention, heads=9, relative=LearnedRelativeVectors),
        ("dense", "fused"),
    ),
    "windows of 7 x 7, gathered / dense": (partial(WindowAttention, heads=8, kernel_size=7), ("gathered", "dense")),
    "windows of 3 x 3, gathered / dense": (partial(WindowAttention, heads=8, kernel_size=3), ("gathered", "dense")),
}
# Windows: images, width and heads; sides of the windows; sides of the maps.
IMAGES, WIDTH, HEADS = 8, 64, 8
WINDOWS = (3, 5, 7, 9, 11)
SIDES = (16, 24, 32, 48)


def bench_ways(device_name: str, rounds: int) -> None:
    """Print the ratios of all layers and sizes, as scripts/bench_attention.py describes."""
    device = choose_device(device_name)
    precision = choose_precision("auto", device)
    print(f"{device}, {precision}, torch {torch.__version__}; median ratio (min to max)")
    for name, (layer, impls) in LAYERS.items():
        print(name)
        for images, side, width in SIZES:
            torch.manual_seed(0)
            slow, fast = (layer(width=width, grid=(side, side), impl=impl).to(device) for impl in impls)
            x = torch.randn(images, side, side, width, device=device, requires_grad=True)
            found = compare(slow, fast, x, rounds, precision)
            size = f"{images:4d} images of {side}x{side}x{width}"
            print(f"{size}: {found.median:.2f} ({found.low:.2f} to {found.high:.2f})", flush=True)


def compare(slow: nn.Module, fast: nn.Module, x: torch.Tensor, rounds: int, precision: str) -> Spread:
    """Return the ratios slow / fast, timed alternately.

    Raises:
        AssertionError: the two outputs differ by more than float32 rounding.
    """
    fast.load_state_dict(slow.state_dict())
    torch.testing.assert_close(slow(x), fast(x), rtol=1e-3, atol=1e-4)
    workloads = {name: partial(forward_backward, layer, x, precision) for name, layer in
             (("slow", slow), ("fast", fast))}  # fmt: skip
    seconds = take_turns(workloads, rounds, x.device)
    return ratios(seconds["slow"], seconds["fast"])


def bench_windows(device_name: str, rounds: int) -> None:
    """Print times and exponents of window attention, as scripts/bench_attention.py describes."""
    device = choose_device(device_name)
    precision = choose_precision("auto", device)
    print(f"{device}, {precision}, torch {torch.__version__}; {IMAGES} images, width {WIDTH}, {HEADS} heads")

    by_window = window_seconds([(32, kernel_size) for kernel_size in WINDOWS], rounds, device, precision)
    for kernel_size, seconds in zip(WINDOWS, by_window, strict=True):
        print(f"32x32 pixels, K={kernel_size}: {1e3 * seconds:.1f} ms")
    print(f"exponent of K^2: {growth_exponent([k * k for k in WINDOWS], by_window):.2f}")

    by_side = window_seconds([(side, 5) for side in SIDES], rounds, device, precision)
    for side, seconds in zip(SIDES, by_side, strict=True):
        print(f"{side}x{side} pixels, K=5: {1e3 * seconds:.1f} ms")
    print(f"exponent of the number of pixels: {growth_exponent([side * side for side in SIDES], by_side):.2f}")


def window_seconds(sizes: list[tuple[int, int]], rounds: int, device: torch.device, precision: str) -> list[float]:
    """Return the median seconds of one layer for each (side, kernel size), timed alternately."""
    workloads = {}
    for side, kernel_size in sizes:
        torch.manual_seed(0)
        mixer = WindowAttention(
            WIDTH, HEADS, (side, side), kernel_size=kernel_size, border="shift", impl="gathered"
        ).to(device)
        x = torch.randn(IMAGES, side, side, WIDTH, device=device, requires_grad=True)
        workloads[f"{side}, {kernel_size}"] = partial(forward_backward, mixer, x, precision)
    return [statistics.median(seconds) for seconds in take_turns(workloads, rounds, device).values()]
