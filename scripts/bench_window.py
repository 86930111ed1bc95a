"""Measure how the time of window attention grows with the window and with the map, forward and backward.

    python scripts/bench_window.py
    python scripts/bench_window.py --device cuda

Prints median times and the fitted exponents: of K^2 on a fixed map, and of the number of pixels with a fixed K.
Exponent 1 is linear; attention over the whole map has exponent 2 in the number of pixels.
"""

from attnconv.errors import one_line_errors
from attnconv.settings.arguments import benchmark_parser


def main() -> None:
    arguments = benchmark_parser(__doc__).parse_args()
    from attnconv.bench.layers import bench_windows  # imports torch

    bench_windows(arguments.device, arguments.rounds)


if __name__ == "__main__":
    with one_line_errors():
        main()
