"""Measure how the time of window attention grows with the window and with the map, forward and backward.

    python scripts/bench_window.py
    python scripts/bench_window.py --device cuda

Prints median times and the fitted exponents: of K^2 on a fixed map, and of the number of pixels with a fixed K.
Exponent 1 is linear; attention over the whole map has exponent 2 in the number of pixels.
"""

import math
import statistics

import torch

from attnconv.bench.timing import benchmark_arguments, forward_backward_seconds
from attnconv.errors import one_line_errors
from attnconv.mixers.window import WindowAttention

IMAGES, WIDTH, HEADS = 8, 64, 8
WINDOWS = (3, 5, 7, 9, 11)
SIDES = (16, 24, 32, 48)


def measure(side: int, kernel_size: int, rounds: int, device: torch.device, precision: str) -> float:
    """Return the median seconds of one layer."""
    torch.manual_seed(0)
    mixer = WindowAttention(WIDTH, HEADS, (side, side), kernel_size=kernel_size, border="shift", impl="gathered").to(
        device
    )
    x = torch.randn(IMAGES, side, side, WIDTH, device=device, requires_grad=True)
    forward_backward_seconds(mixer, x, precision)
    return statistics.median(forward_backward_seconds(mixer, x, precision) for _ in range(rounds))


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Return the least-squares slope of log(seconds) against log(size)."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(x) for x in seconds]).slope


def main() -> None:
    device, precision, rounds = benchmark_arguments(__doc__)
    print(f"{device}, {precision}, torch {torch.__version__}; {IMAGES} images, width {WIDTH}, {HEADS} heads")

    by_window = [measure(32, kernel_size, rounds, device, precision) for kernel_size in WINDOWS]
    for kernel_size, seconds in zip(WINDOWS, by_window, strict=True):
        print(f"32x32 pixels, K={kernel_size}: {1e3 * seconds:.1f} ms")
    print(f"exponent of K^2: {exponent([k * k for k in WINDOWS], by_window):.2f}")

    by_side = [measure(side, 5, rounds, device, precision) for side in SIDES]
    for side, seconds in zip(SIDES, by_side, strict=True):
        print(f"{side}x{side} pixels, K=5: {1e3 * seconds:.1f} ms")
    print(f"exponent of the number of pixels: {exponent([side * side for side in SIDES], by_side):.2f}")


if __name__ == "__main__":
    with one_line_errors():
        main()
