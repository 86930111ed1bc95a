"""results/data_size.md: how much data each model needs, from experiment=data_size and, for all images, table1.

Each protocol (attnconv.report.protocols) has its own tables.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attnconv.report.comparisons import REFERENCE, Cell, Row, accuracy_text, between, check_alike, logits, spread_of
from attnconv.report.protocols import Protocol, Ratio, protocols
from attnconv.report.stats import Estimate, components, crossing, pooled_within
from attnconv.report.tables import markdown, read_table
from attnconv.runs.bounds import AMOUNT, COUNT, SHARE

LEVELS = (0.45, 0.6, 0.7, 0.8)  # accuracies for which the images needed are interpolated
TUNED_ON = "sa_quadratic"  # by the trials whose names begin with no other model
RATES = re.compile(r"learning_rates_([\d.]+)_(bf16|fp32)")
OF_RATES = {"scale": "mini", "recipe": "modern", "fraction": 0.25, "epochs": 10, "seed": 100, "source": None}

INTRODUCTION = f"""# How much data does each model need?

Made by `python scripts/make_tables.py` from the runs of `python train.py experiment=data_size` in results/runs.csv;
runs on all images at equal epochs are those of `experiment=table1`. All models have as many parameters as
`sa_quadratic`.

- Accuracy is the test accuracy of the last epoch, in percent, with a 95% interval and the number of runs. Each seed
  has its own subset, which all models use.
- Differences from `{REFERENCE}`, the control, are paired by seed and subset, in percentage points.
  They are computed on the logit of accuracy. **Bold**: significant at 5% with Holm's correction over the table of its
  protocol.
- All cells of a protocol share one standard deviation, which gives three seeds usable intervals. It assumes that
  fractions and models are equally noisy; the line below each protocol's tables shows how noisy they are. If 1% of the
  images is 1.5 times as noisy as most fractions, its 95% interval covers the true difference in 82% of simulated
  studies; if 25% is 0.6 times as noisy, in 99.8%; and Holm's correction finds a difference between equal models in 10%
  of studies, not in 5%. If a model is twice as noisy as the others, its intervals cover the true difference in 88%, and
  those of the others in 99% (`attnconv.report.stats`).
- *Images needed*: images that a model needs for an accuracy, divided by those of `{REFERENCE}`, interpolated in the
  logarithm of the images, for each seed; Student's interval of these seeds. *Slope*: growth of the difference of logits
  per doubling of the images.
- *The order changes between*: the last two neighboring fractions, among those with a significant difference, at which
  different models are ahead; "not located" if there are no such fractions.
"""


# The runs that `components_text` needs.
GRID = (
    "`python train.py -m scale=mini model=conv3x3 match=parameters data.fraction=0.01 seed=0,1,2 "
    "data.subset_seed=0,1,2 name='grid_${data.subset_seed}' eval_every=20 logger=none precision=fp32`"
)


def read_trials(path: Path) -> list[dict[str, Any]]:
    """Return the epochs of the trials in results/mini_recipe_trials.csv.

    Raises:
        FileError: see `read_table`.
    """
    numbers = {"epoch": COUNT, "train_loss": AMOUNT, "train_acc": SHARE, "val_loss": AMOUNT, "val_acc": SHARE}
    return read_table(path, numbers, ("trial",), unique=("trial", "epoch"))


def data_size_page(rows: Iterable[Row], trials: list[dict[str, Any]]) -> str:
    """Return results/data_size.md.

    Args:
        rows: of runs.csv.
        trials: of mini_recipe_trials.csv.
    """
    rows = list(rows)
    found = protocols(rows)
    parts = [INTRODUCTION, f"\n## Recipe trials of each model\n\n{recipes_table(rows, trials)}"]
    parts.append(f"\n## Seed or subset?\n\n{components_text(rows)}")
    if len(found) > 1:
        parts.append(f"\n## Comparison of the protocols\n\n{side_by_side(found)}")
    parts += [section(protocol) for protocol in found]
    return "".join(parts) if found else f"{INTRODUCTION}\nNot run yet: `python train.py experiment=data_size`.\n"


def section(protocol: Protocol) -> str:
    """Return the tables of one protocol."""
    parts = [f"\n## {protocol.heading}\n\n{accuracy_table(protocol)}"]
    if protocol.gaps:
        parts.append(f"\n{difference_table(protocol)}\n{need_table(protocol)}")
    parts.append(f"\n{spread_text(protocol)} {origin_text(protocol.rows)}\n")
    return "".join(parts)


def accuracy_table(protocol: Protocol) -> str:
    """Return mean accuracies by model and fraction, with pooled intervals; model names link to the runs."""
    spread = pooled_within(logits(runs).values() for cell in protocol.cells.values() for runs in cell.values())
    lines = []
    for model in protocol.models:
        first = next(row for row in protocol.rows if row["model"] == model)
        folder = first["run"].rpartition("/frac")[0]
        texts = [accuracy_text(cell[model], spread) if model in cell else "" for cell in protocol.cells.values()]
        lines.append([f"[`{model}`](runs/{folder})", *texts])
    return markdown(["model", *(f"{fraction:.3g}" for fraction in protocol.cells)], lines)


def difference_table(protocol: Protocol) -> str:
    """Return differences from the control in points by model and fraction, and where the order changes."""
    lines = []
    for model in protocol.models[1:] if protocol.models[0] == REFERENCE else protocol.models:
        texts = [cell_text(protocol, (model, fraction)) for fraction in protocol.cells]
        place = crossing({f: protocol.sign((model, f)) for f in protocol.cells if (model, f) in protocol.gaps})
        lines.append([f"`{model}`", *texts, f"{place[0]:.3g} and {place[1]:.3g}" if place else "not located"])
    names = (f"{fraction:.3g}" for fraction in protocol.cells)
    return markdown([f"minus `{REFERENCE}`, points", *names, "the order changes between"], lines)


def cell_text(protocol: Protocol, key: tuple[str, float]) -> str:
    """Return one difference, in bold if significant, empty if there is none."""
    if key not in protocol.gaps:
        return ""
    return f"**{protocol.gaps[key]}**" if protocol.sure.get(key) else str(protocol.gaps[key])


def need_table(protocol: Protocol) -> str:
    """Return the images needed by accuracy, and the slope per doubling."""
    lines = []
    for model in (model for model in protocol.models if model != REFERENCE):
        known = protocol.has_curves(model)
        ratios = [times_text(protocol.ratio(model, level)) if known else "" for level in LEVELS]
        lines.append([f"`{model}`", *ratios, slope_text(protocol.slope(model))])
    return markdown(["images needed", *(f"for {level:.0%}" for level in LEVELS), "slope"], lines)


def times_text(ratio: Ratio | None) -> str:
    """Return an images-needed ratio as text; there is none for an accuracy outside of the range of either curve."""
    if ratio is None:
        return "out of range"
    ends = " [{:.2f}, {:.2f}]".format(*ratio.ends) if ratio.ends else ""
    return f"{ratio.value:.2f} x{ends}, n={ratio.n}"


def slope_text(found: Estimate | None) -> str:
    """Return a slope in logits per doubling as text."""
    if found is None:
        return ""
    return f"{found.value:+.3f}{between(found.interval(), '+.3f')}, n={found.n}"


def side_by_side(found: list[Protocol]) -> str:
    """Return all differences under all protocols, and where two protocols contradict each other."""
    keys = sorted({key for protocol in found for key in protocol.gaps})
    lines = [
        [f"`{model}`", f"{fraction:.3g}", *(cell_text(protocol, (model, fraction)) for protocol in found)]
        for model, fraction in keys
    ]
    header = [
        f"minus `{REFERENCE}`, points",
        "fraction",
        *(f"{protocol.title}, {protocol.precision}" for protocol in found),
    ]
    return f"{markdown(header, lines)}\n{' '.join(disagreements(found)) or 'They do not contradict each other.'}\n"


def disagreements(found: list[Protocol]) -> Iterator[str]:
    """Yield a sentence for each model and fraction that is ahead in one protocol and behind in another."""
    for model, fraction in sorted({key for protocol in found for key in protocol.gaps}):
        ahead, behind = (
            [p for p in found if (model, fraction) in p.gaps and p.sign((model, fraction)) == sign] for sign in (1, -1)
        )
        if ahead and behind:
            where = (" and ".join(f"{p.title} ({p.precision})" for p in some) for some in (ahead, behind))
            yield "At {:.3g} of the images the protocols disagree on `{}`: ahead after {}, behind after {}.".format(
                fraction, model, *where
            )


def spread_text(protocol: Protocol) -> str:
    """Return the pooled standard deviation, that of each fraction, and that without each model, as text."""
    if protocol.spread is None:
        return "No model has two runs at one fraction, so there are no intervals."
    alone = {fraction: spread_of([cell]) for fraction, cell in protocol.cells.items()}
    parts = [", ".join(f"{one.sd:.3f} at {fraction:.3g}" for fraction, one in alone.items() if one)]
    left_out = {model: spread_of(_without(model, protocol.cells.values())) for model in protocol.models}
    parts.append(", ".join(f"{one.sd:.3f} without `{model}`" for model, one in left_out.items() if one))
    return (
        f"Standard deviation of a logit, without the effects of model and seed: {protocol.spread.sd:.3f} with "
        f"{protocol.spread.df} degrees of freedom ({'; '.join(filter(None, parts))})."
    )


def _without(model: str, cells: Iterable[Cell]) -> Iterator[Cell]:
    for cell in cells:
        yield {other: runs for other, runs in cell.items() if other != model}


def origin_text(rows: Iterable[Row]) -> str:
    """Return the commits, precision and machines of some runs as text."""
    rows = list(rows)
    commits, devices = (sorted({of(row) for row in rows}) for of in (lambda row: row["commit"][:7], _machine))
    return (
        f"Commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}; {rows[0]['precision']}; {'; '.join(devices)}."
    )


def _machine(row: Row) -> str:
    return f"{row['device']} ({row['cpu_family']})" if row["cpu_family"] else str(row["device"])


def components_text(rows: Iterable[Row]) -> str:
    """Return the components of the variance between runs if seeds and subsets were crossed; else the command for it."""
    lines = []
    grids: dict[tuple[str, str, float], dict[tuple[int, int], Row]] = {}
    wanted = {"data": "cifar10", "scale": "mini", "recipe": "modern", "holdout": 0, "source": None}
    for row in rows:
        if row["name"] == f"grid_{row['subset_seed']}" and wanted.items() <= row.items():
            key = row["model"], row["precision"], row["fraction"]
            grids.setdefault(key, {})[row["seed"], row["subset_seed"]] = row
    for (model, precision, fraction), grid in grids.items():
        check_alike({place: run for place, run in grid.items()})
        seeds, subsets = ({place[axis] for place in grid} for axis in (0, 1))
        if min(len(seeds), len(subsets)) > 1 and len(grid) == len(seeds) * len(subsets):
            values = [[100 * grid[seed, subset]["test_acc"] for subset in sorted(subsets)] for seed in sorted(seeds)]
            found = components(values)
            parts = (f"{part:.2f}" for part in (found.seed, found.subset, found.rest))
            lines.append([f"`{model}`", precision, f"{fraction:.3g}", f"{len(seeds)} x {len(subsets)}", *parts])
    what = "Standard deviations, in points, due to the seed, to the subset of the images, and to both (rest)"
    if not lines:
        return f"{what}, need runs that cross both. Not run: {GRID}, 9 runs of a minute each on one core.\n"
    header = ["model", "precision", "fraction", "seeds x subsets", "seed", "subset", "rest"]
    return (
        f"{what}; estimates below 0 are set to 0, and few\n"
        f"seeds give rough ones. Command: {GRID}\n\n{markdown(header, lines)}"
    )


def recipes_table(rows: Iterable[Row], trials: Iterable[dict[str, str]]) -> str:
    """Return the number of recipe trials of each model, and the gain from a separate learning rate.

    Args:
        rows: of runs.csv.
        trials: of mini_recipe_trials.csv.
    """
    tuned: dict[str, set[str]] = {}
    for trial in trials:
        model, colon, _ = trial["trial"].partition(":")
        tuned.setdefault(model if colon and model.startswith("sa_") else TUNED_ON, set()).add(trial["trial"])
    rates = learning_rates(rows)
    lines = []
    for model in sorted(tuned.keys() | {model for model, _ in rates}):
        precisions = [precision for name, precision in sorted(rates) if name == model]
        texts = (gain_text(rates[model, precision], precision) for precision in precisions)
        lines.append([f"`{model}`", str(len(tuned.get(model, ()))), "; ".join(texts) or "not run"])
    note = (
        "Trials are the runs that chose the recipe on a validation set (results/mini_recipe_trials.csv). Models "
        "outside the table had none.\nGain: validation accuracy with the better of half and twice the learning rates, "
        "minus that with the common ones, in points,\none seed each (`python train.py experiment=learning_rates`). "
        "Positive: other rates may suit the model better, and\nits rows below may be lower bounds. Negative: it loses "
        "with both.\n"
    )
    return f"{note}\n{markdown(['model', 'trials', 'gain from half or twice the learning rates'], lines)}"


def learning_rates(rows: Iterable[Row]) -> dict[tuple[str, str], dict[float, float]]:
    """Return validation accuracies of experiment=learning_rates by model and precision, and by relative rate."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for row in rows:
        match = RATES.fullmatch(row["name"])
        if match and row["val_acc"] is not None and OF_RATES.items() <= row.items():
            found.setdefault((row["model"], row["precision"]), {})[float(match[1])] = row["val_acc"]
    return found


def gain_text(by_rate: dict[float, float], precision: str) -> str:
    """Return the gain of the best other learning rate over the common one."""
    others = {rate: accuracy for rate, accuracy in by_rate.items() if rate != 1}
    if 1 not in by_rate or not others:
        return f"{len(by_rate)} of 3 rates ({precision}, one seed)"
    best = max(others, key=lambda rate: others[rate])
    return f"{100 * (others[best] - by_rate[1]):+.1f} at {best:g} x ({precision}, {len(by_rate)} rates, one seed)"
