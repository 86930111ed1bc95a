"""Who needs how much data: the runs of experiment=data_size as tables, with an interval at every number.

Runs of one seed have the same subset of the images whatever the model, so models are compared seed by seed. Runs of
different precision have tables of their own.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from attnconv.report.stats import crossover, paired_difference, summarise
from attnconv.report.tables import markdown

REFERENCE = "sa_quadratic"
FEWEST = 3  # seeds for which an interval is shown

Accuracies = dict[str, dict[float, dict[int, float]]]  # model -> fraction -> seed -> test accuracy


def studies(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
    """Rows of runs.csv that belong to the experiment, by (name, scale, recipe, precision)."""
    found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["name"].startswith("data_size_"):
            found.setdefault((row["name"], row["scale"], row["recipe"], row["precision"]), []).append(row)
    return found


def accuracies(rows: Iterable[dict[str, Any]]) -> Accuracies:
    """Test accuracy of every run of one study, models by name.

    Raises:
        ValueError: the runs are of several precisions, which are neither paired nor averaged.
    """
    rows = list(rows)
    if len(precisions := {row["precision"] for row in rows}) > 1:
        raise ValueError(f"runs of several precisions: {', '.join(sorted(precisions))}")
    found: Accuracies = {}
    for row in sorted(rows, key=lambda row: (row["model"] != REFERENCE, row["model"], row["fraction"], row["seed"])):
        found.setdefault(row["model"], {}).setdefault(row["fraction"], {})[int(row["seed"])] = row["test_acc"]
    return found


def accuracy_table(found: Accuracies) -> str:
    """Mean test accuracy in percent, with half of Student's 95% interval where there are three seeds or more."""
    fractions = sorted({fraction for by_fraction in found.values() for fraction in by_fraction})
    lines = []
    for model, by_fraction in found.items():
        cells = [_mean(list(by_fraction.get(fraction, {}).values())) for fraction in fractions]
        lines.append([f"`{model}`", *cells])
    return markdown(["model", *(f"{fraction:.3g}" for fraction in fractions)], lines)


def difference_table(found: Accuracies, reference: str = REFERENCE) -> str:
    """Percentage points by which each model is above the reference, paired by seed; in bold if 0 is outside of 95%."""
    fractions = sorted(found[reference])
    lines = []
    for model in found:
        if model == reference:
            continue
        cells = []
        for fraction in fractions:
            ours, theirs = found[model].get(fraction, {}), found[reference][fraction]
            cells.append(_paired(ours, theirs) if ours.keys() & theirs.keys() else "")
        lines.append([f"`{model}` - `{reference}`", *cells, _crossover(found[model], found[reference])])
    return markdown(["difference", *(f"{fraction:.3g}" for fraction in fractions), "curves cross at"], lines)


INTRODUCTION = """# Who needs how much data?

Made by `python scripts/make_tables.py` from the runs of `python train.py experiment=data_size` in results/runs.csv.
Columns are fractions of the 50,000 training images. Last-epoch test accuracy in percent, mean over seeds, each with a
subset of its own, ± half of Student's 95% interval where there are three seeds; their number if it is not three.
Differences are paired by seed, in percentage points; bold where 0 is outside of the 95% interval, which is that of one
difference: of twenty, one is bold by chance. Curves cross at the fraction from which on the order stays as it is at the
largest; the interval is a bootstrap over seeds, which with three of them holds the truth in three of four cases
(attnconv.report.stats), and the share is that of resamples in which they cross.

The recipe was tuned on `sa_quadratic` with all of the images; no other model was tuned. At equal epochs 1% of the
images is 80 steps, so that slow learning can look like need of data; equal steps tell them apart, and are short
themselves.
"""


def data_size_page(rows: Iterable[dict[str, Any]]) -> str:
    """results/data_size.md."""
    parts, of_all = [INTRODUCTION], sorted(studies(rows).items())
    places = Counter(key[:3] for key, _ in of_all)
    for (name, scale, recipe, precision), of_study in of_all:
        apart = f", precision={precision}" if places[name, scale, recipe] > 1 else ""
        found, example = accuracies(of_study), of_study[0]
        passes = "1 pass" if example["epochs"] == 1 else f"{int(example['epochs'])} passes"
        counted = (
            f"{passes} over the images used" if example["equal"] == "epochs" else f"those of {passes} over all images"
        )
        parts.append(
            f"\n## Equal {example['equal']}: {counted} ({name}, scale={scale}, "
            f"recipe={recipe}{apart})\n\n{accuracy_table(found)}"
        )
        if REFERENCE in found:
            parts.append(f"\n{difference_table(found)}")
    return "".join(parts)


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    summary = summarise([100 * value for value in values])
    count = "" if summary.n == FEWEST else f" (n={summary.n})"
    if summary.t is None or summary.n < FEWEST:
        return f"{summary.mean:.1f}{count}"
    return f"{summary.mean:.1f} ± {summary.t.high - summary.mean:.1f}{count}"


def _paired(ours: dict[int, float], theirs: dict[int, float]) -> str:
    percent, of_theirs = ({seed: 100 * value for seed, value in side.items()} for side in (ours, theirs))
    paired = paired_difference(percent, of_theirs)
    if paired.t is None or len(paired.seeds) < FEWEST:
        return f"{paired.mean:+.1f} (n={len(paired.seeds)})"
    text = f"{paired.mean:+.1f} ± {paired.t.high - paired.mean:.1f}"
    return text if paired.t.low <= 0 <= paired.t.high else f"**{text}**"


def _crossover(ours: dict[float, dict[int, float]], theirs: dict[float, dict[int, float]]) -> str:
    shared = [fraction for fraction in ours if ours[fraction].keys() & theirs.get(fraction, {}).keys()]
    if len(shared) < 2:
        return ""
    found = crossover({fraction: ours[fraction] for fraction in shared}, theirs)
    place = "none" if found.fraction is None else f"{found.fraction:.2g}"
    if min(len(ours[fraction].keys() & theirs[fraction].keys()) for fraction in shared) < FEWEST:
        return place if found.fraction is None else f"{place} (n < {FEWEST})"
    between = f" [{found.interval.low:.2g}, {found.interval.high:.2g}]" if found.interval else ""
    return f"{place}{between} ({found.share:.0%})"
