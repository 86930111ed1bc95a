"""How often do nominal 95% intervals from a few seeds hold the truth? `python scripts/interval_coverage.py`

Of the crossover of two straight lines over seven fractions (independent normal noise of 0.01 at every point), and of
the probability of improvement between means half an sd apart: what attnconv.report.stats and results/data_size.md say.
"""

import math

import numpy as np

from attnconv.report.stats import crossover, probability_of_improvement_interval
from attnconv.settings.arguments import ScriptParser

SAMPLES, RESAMPLES = 1000, 1000
FRACTIONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
PLACE, SLOPE, NOISE = 0.1, 0.01, 0.01  # where the lines cross, their difference per e-fold, the noise of one run


def curve(accuracies: np.ndarray) -> dict[float, dict[int, float]]:
    """Accuracies (fractions, seeds) as attnconv.report.stats wants them."""
    return {fraction: dict(enumerate(row)) for fraction, row in zip(FRACTIONS, accuracies.tolist(), strict=True)}


def main() -> None:
    ScriptParser(__doc__).parse_args()
    draw = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(0.25))  # P(X > Y) of two normals half an sd apart
    print(f"{SAMPLES} samples, {RESAMPLES} resamples each; share of intervals that hold the truth")
    for seeds in (3, 5, 10):
        crossed = improved = 0
        for _ in range(SAMPLES):
            a, b = draw.normal(0, NOISE, (2, len(FRACTIONS), seeds))
            a += SLOPE * np.log(np.array(FRACTIONS) / PLACE)[:, None]
            interval = crossover(curve(a), curve(b), resamples=RESAMPLES).interval
            crossed += interval is not None and interval.low <= PLACE <= interval.high
            x, y = draw.normal(0.5, 1, seeds), draw.normal(0, 1, seeds)
            better = probability_of_improvement_interval(x, y, resamples=RESAMPLES)
            improved += better is not None and better.low <= truth <= better.high
        print(f"{seeds:>3} seeds: crossover {crossed / SAMPLES:.1%}, improvement {improved / SAMPLES:.1%}")


if __name__ == "__main__":
    main()
