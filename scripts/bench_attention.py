"""Time two ways to compute the same layer, forward and backward: the measurements behind `impl: auto`.

    python scripts/bench_attention.py       position-only: dense / separable;
                                            content: dense / absorbed, dense / fused; windows: gathered / dense
    python scripts/bench_attention.py --device cuda

First checks that both give the same output. Then prints, for each size, the median ratio of their times over
alternating rounds; above 1, the second is faster. LOG.md has the numbers, and code that depends on them refers to this
script.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from attnconv.bench.timing import Spread, benchmark_arguments, forward_backward_seconds, ratios, take_turns
from attnconv.errors import one_line_errors
from attnconv.mixers.content import ContentAttention
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.relative import LearnedRelativeVectors
from attnconv.mixers.window import WindowAttention

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


def compare(slow: nn.Module, fast: nn.Module, x: torch.Tensor, rounds: int, precision: str) -> Spread:
    """Return the ratios slow / fast, timed alternately.

    Raises:
        AssertionError: the two outputs differ by more than float32 rounding.
    """
    fast.load_state_dict(slow.state_dict())
    torch.testing.assert_close(slow(x), fast(x), rtol=1e-3, atol=1e-4)
    works = {name: partial(forward_backward_seconds, layer, x, precision) for name, layer in
             (("slow", slow), ("fast", fast))}  # fmt: skip
    seconds = take_turns(works, rounds, x.device)
    return ratios(seconds["slow"], seconds["fast"])


def main() -> None:
    device, precision, rounds = benchmark_arguments(__doc__)
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


if __name__ == "__main__":
    with one_line_errors():
        main()
