"""How many recipe trials each model had, which a comparison under one recipe must report."""

import re
from collections.abc import Iterable

from attnconv.report.comparisons import Row
from attnconv.report.tables import markdown

TUNED_ON = "sa_quadratic"  # by the trials whose names begin with no other model
RATES = re.compile(r"learning_rates_([\d.]+)_(bf16|fp32)")
OF_RATES = {"scale": "mini", "recipe": "modern", "fraction": 0.25, "epochs": 10, "seed": 100, "source": None}


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
