"""The result of a sweep as means over seeds: a table at its end, and a plot against the swept setting."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from attnconv.files import write_whole

NOT_SHOWN = ("seed", "name", "data.subset_seed", "output", "collected")  # seeds, and names that only repeat settings
MOST_SWEPT = 3  # swept settings in one plot: one for the axis, the others for the lines


@dataclass(frozen=True)
class Found:
    """The result of one finished run of a sweep.

    Attributes:
        overrides: the swept ones, by key.
        accuracy: on the validation set if there is one, else on the test set.
        split: val or test.
        precision: of the run; means never mix two.
    """

    overrides: dict[str, str]
    accuracy: float
    split: str
    precision: str

    @classmethod
    def of(cls, overrides: Sequence[str], result: dict[str, Any]) -> "Found":
        """Return the result in the content of result.json."""
        split = "val" if "val_acc" in result else "test"
        pairs = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
        if "model.start" in pairs:  # copied heads come from another seed in each run
            pairs["model.start"] = re.sub(r"/seed\d+/", "/seed*/", pairs["model.start"])
        return cls(pairs, result[f"{split}_acc"], split, result.get("precision", ""))


Cells = dict[tuple[str, ...], list[float]]


def over_seeds(found: Sequence[Found]) -> tuple[list[str], Cells]:
    """Return the swept keys except the seed, and the accuracies of runs that differ in nothing else."""
    keys = list(dict.fromkeys(key for run in found for key in run.overrides))
    swept = [key for key in keys if key not in NOT_SHOWN and len({run.overrides.get(key) for run in found}) > 1]
    for own in ("precision", "split"):
        if len({getattr(run, own) for run in found}) > 1:
            swept.append(own)
    cells: Cells = {}
    for run in found:
        values = run.overrides | {"precision": run.precision, "split": run.split}
        cells.setdefault(tuple(values.get(key, "") for key in swept), []).append(run.accuracy)
    return swept, cells


def accuracy_of(found: Sequence[Found]) -> str:
    """Return what the accuracies are of: "val accuracy", or "accuracy" if some runs have no validation set."""
    splits = {run.split for run in found}
    return f"{splits.pop()} accuracy" if len(splits) == 1 else "accuracy"


def seeds_table(found: Sequence[Found]) -> str:
    """Return one line per setting: mean accuracy, standard deviation and number of runs.

    Return an empty string if no setting has two runs.
    """
    swept, cells = over_seeds(found)
    if not any(len(accuracies) > 1 for accuracies in cells.values()):
        return ""
    names = [" ".join(f"{key}={value}" for key, value in zip(swept, values, strict=True) if value) for values in cells]
    width = max(map(len, names))
    lines = [f"{accuracy_of(found)} over seeds:"]
    for name, accuracies in zip(names, cells.values(), strict=True):
        spread = f", sd {stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
        lines.append(f"  {name:<{width}} mean {mean(accuracies):.2%}{spread}, n={len(accuracies)}".rstrip())
    return "\n".join(lines)


def plot(found: Sequence[Found], path: Path) -> bool:
    """Plot accuracy against the swept setting, with bars of one standard deviation over seeds, into a PNG.

    Returns:
        False, without a plot, if only seeds were swept, or more settings than a plot can show.
    """
    swept, cells = over_seeds(found)
    if not 1 <= len(swept) <= MOST_SWEPT:
        return False
    from attnconv.report.figures.style import image_bytes  # imports matplotlib

    write_whole(path, image_bytes(_figure(swept, cells, f"{accuracy_of(found)} (%)")))
    return True


def _figure(swept: list[str], cells: Cells, label: str) -> Any:
    from attnconv.report.figures.style import new_figure, plain, styled

    @styled
    def draw() -> Any:
        figure = new_figure(3.2)
        axis = figure.subplots()
        numbers = [place for place in range(len(swept)) if all(_is_number(values[place]) for values in cells)]
        x = max(numbers, key=lambda place: len({values[place] for values in cells}), default=0)
        lines: dict[tuple[str, ...], list[tuple[str, list[float]]]] = {}
        for values, accuracies in cells.items():
            lines.setdefault((*values[:x], *values[x + 1 :]), []).append((values[x], accuracies))
        for others, points in lines.items():
            if numbers:
                points.sort(key=lambda point: float(point[0]))
            axis.errorbar(
                [float(value) if numbers else plain(value) for value, _ in points],
                [100 * mean(accuracies) for _, accuracies in points],
                [100 * stdev(accuracies) if len(accuracies) > 1 else 0 for _, accuracies in points],
                marker="o",
                capsize=2,
                linestyle="-" if numbers else "none",
                label=plain(", ".join(others)),
            )
        axis.set(xlabel=swept[x], ylabel=label)
        shown = [float(values[x]) for values in cells] if numbers else [0.0]
        if min(shown) > 0 and max(shown) >= 10 * min(shown):
            axis.set_xscale("log")
        if len(lines) > 1:
            axis.legend(title=", ".join(swept[:x] + swept[x + 1 :]), fontsize="small")
        return figure

    return draw()


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) is not None
