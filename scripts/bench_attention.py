"""Time two ways to compute the same layer, forward and backward: the measurements behind `impl: auto`.

    python scripts/bench_attention.py       position-only: dense / separable;
                                            content: dense / absorbed, dense / fused; windows: gathered / dense
    python scripts/bench_attention.py --device cuda

It first checks that both give the same output. Then prints, for each size, the median ratio of their times over
alternating rounds; above 1, the second is faster. Finally, prints how the time of window attention scales: the fitted
exponents of K^2 on a fixed map, and of the number of pixels with a fixed K. LOG.md has the numbers, and code that
depends on them refers to this script.
"""

from attnconv.errors import one_line_errors
from attnconv.settings.arguments import ScriptParser, positive


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_device("auto")
    parser.add_argument("--rounds", type=positive, default=9, help="number of rounds (default: 9)")
    arguments = parser.parse_args()
    from attnconv.bench.layers import bench_ways, bench_windows  # imports torch

    bench_ways(arguments.device, arguments.rounds)
    bench_windows(arguments.device, arguments.rounds)


if __name__ == "__main__":
    with one_line_errors():
        main()
