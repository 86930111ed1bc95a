"""Dense against separable application of position-only attention, forward and backward, in one process.

    python scripts/bench_positional.py                 the sizes that `impl: auto` decides between
    python scripts/bench_positional.py --device cuda

Prints, per size, the median over alternating rounds of dense time / separable time, after checking that both give the
same output. `attnconv.mixers.positional.SEPARABLE_FROM_PIXELS` is the size from which the ratio stays above 1.
"""

import argparse
import statistics
from functools import partial

import torch

from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.study.timing import forward_backward_seconds
from attnconv.training.precision import choose_device, choose_precision

SIZES = ((128, 8, 64), (32, 12, 64), (32, 16, 64), (16, 16, 400), (16, 32, 64))  # images, side of the map, width


def compare(images: int, side: int, width: int, rounds: int, device: torch.device, precision: str) -> list[float]:
    """Ratios dense / separable of `rounds` alternating measurements.

    Raises:
        AssertionError: the two outputs differ by more than float32 rounding.
    """
    torch.manual_seed(0)
    build = partial(PositionalAttention, width, 9, (side, side), QuadraticEncoding)
    dense, separable = build(impl="dense").to(device), build(impl="separable").to(device)
    separable.load_state_dict(dense.state_dict())
    x = torch.randn(images, side, side, width, device=device, requires_grad=True)
    torch.testing.assert_close(dense(x), separable(x), rtol=1e-4, atol=1e-4)
    for mixer in (dense, separable):
        forward_backward_seconds(mixer, x, precision)
    times = [[forward_backward_seconds(mixer, x, precision) for mixer in (dense, separable)] for _ in range(rounds)]
    return [slow / fast for slow, fast in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    print(f"{device}, {precision}, torch {torch.__version__}; dense / separable time, median (min to max)")
    for images, side, width in SIZES:
        ratios = compare(images, side, width, arguments.rounds, device, precision)
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{images:4d} images of {side}x{side}x{width}: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
