"""Time two ways to compute the same layer, forward and backward: the measurements behind `impl: auto`.

    python scripts/bench_attention.py       position-only: dense / separable;
                                            content: dense / absorbed, dense / fused; windows: gathered / dense
    python scripts/bench_attention.py --device cuda

First checks that both give the same output. Then prints, for each size, the median ratio of their times over
alternating rounds; above 1, the second is faster. LOG.md has the numbers, and code that depends on them refers to this
script.
"""

from attnconv.errors import one_line_errors
from attnconv.settings.arguments import benchmark_parser


def main() -> None:
    arguments = benchmark_parser(__doc__).parse_args()
    from attnconv.bench.layers import bench_ways  # imports torch

    bench_ways(arguments.device, arguments.rounds)


if __name__ == "__main__":
    with one_line_errors():
        main()
