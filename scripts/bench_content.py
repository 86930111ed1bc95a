"""Dense against fused content attention (q.k + q.r), forward and backward, in one process.

    python scripts/bench_content.py
    python scripts/bench_content.py --device cuda

Prints, per size, the median over alternating rounds of dense time / fused time, after checking that both give the same
output. It is what `impl: auto` of attnconv.mixers.content goes by.
"""

import argparse
import statistics
from functools import partial

import torch

from attnconv.mixers.content import ContentAttention
from attnconv.mixers.relative import LearnedRelativeVectors
from attnconv.study.timing import forward_backward_seconds
from attnconv.training.precision import choose_device, choose_precision

SIZES = ((128, 8, 64), (32, 12, 64), (16, 16, 64), (8, 16, 400), (4, 24, 64))  # images, side of the map, width


def compare(images: int, side: int, width: int, rounds: int, device: torch.device, precision: str) -> list[float]:
    """Ratios dense / fused of `rounds` alternating measurements.

    Raises:
        AssertionError: the two outputs differ by more than float32 rounding.
    """
    torch.manual_seed(0)
    build = partial(ContentAttention, width, 9, (side, side), relative=LearnedRelativeVectors)
    dense, fused = build(impl="dense").to(device), build(impl="fused").to(device)
    fused.load_state_dict(dense.state_dict())
    x = torch.randn(images, side, side, width, device=device, requires_grad=True)
    torch.testing.assert_close(dense(x), fused(x), rtol=1e-3, atol=1e-4)
    for mixer in (dense, fused):
        forward_backward_seconds(mixer, x, precision)
    times = [[forward_backward_seconds(mixer, x, precision) for mixer in (dense, fused)] for _ in range(rounds)]
    return [slow / fast for slow, fast in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    precision = choose_precision("auto", device)
    print(f"{device}, {precision}, torch {torch.__version__}; dense / fused time, median (min to max)")
    for images, side, width in SIZES:
        ratios = compare(images, side, width, arguments.rounds, device, precision)
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{images:4d} images of {side}x{side}x{width}: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
