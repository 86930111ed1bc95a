"""Accuracy during training: by epoch (the paper's Figure 2) and by minutes of a CPU core."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from attnconv.report.colors import style_of
from attnconv.report.figures.data import Curve, Curves, History
from attnconv.report.figures.style import new_figure, set_title, styled


@styled
def by_epoch(found: Curves) -> Figure:
    """Draw test accuracy by epoch, one thin line per seed."""
    figure, axis = _seeds(found)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


@styled
def by_minutes(found: Curves) -> Figure:
    """Draw test accuracy by minutes of a CPU core, one thin line per seed; logarithmic if they span a decade."""
    figure, axis = _seeds(found)
    axis.set_xlabel("training time (minutes of one CPU core, all threads added up)")
    minutes = [minute for curve in found.curves for minute in curve.at]
    if max(minutes) > 10 * min(minutes):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    lowest = axis.get_ylim()[0]
    shown = [at for one in found.curves for at, by in zip(one.at, one.accuracy, strict=True) if 100 * by >= lowest]
    axis.set_xlim(left=0.8 * min(shown))
    return figure


def _seeds(found: Curves) -> tuple[Figure, Axes]:
    figure = new_figure(height=3)
    axis = figure.subplots()
    for model in models_in_order(found.curves):
        seen = False
        for curve in found.curves:
            if curve.model == model:
                color, marker = style_of(model)
                label = None if seen else model
                axis.plot(curve.at, _percent(curve.accuracy), color=color, marker=marker, label=label,
                          markersize=2.5, linewidth=0.9)  # fmt: skip
                seen = True
    last = [100 * curve.accuracy[-1] for curve in found.curves]
    axis.set(ylabel="test accuracy (%)", title=found.title, ylim=(min(last) - 25, min(max(last) + 3, 100.5)))
    axis.legend(loc="lower right")
    return figure, axis


def models_in_order(curves: list[Curve]) -> list[str]:
    """Return models by their mean final accuracy, best first: the order of the lines at the right."""
    last: dict[str, list[float]] = {}
    for curve in curves:
        last.setdefault(curve.model, []).append(curve.accuracy[-1])
    return sorted(last, key=lambda model: (-float(np.mean(last[model])), model))


@styled
def history(run: History) -> Figure:
    """Draw a run's accuracy and loss by epoch, training dashed."""
    figure = new_figure(height=2.5)
    color = style_of(run.model).color
    for axis, quantity, unit, factor in zip(
        figure.subplots(1, 2), ("acc", "loss"), ("accuracy (%)", "loss (nats)"), (100, 1), strict=True
    ):
        for split, style, shade in (("train", "--", 0.5), ("val", ":", 1.0), ("test", "-", 1.0)):
            points = run.metrics.get(f"{split}/{quantity}", [])
            if points:
                epochs, values = zip(*points, strict=True)
                axis.plot(epochs, factor * np.array(values), style, color=color, alpha=shade, label=split,
                          marker="o", markersize=2)  # fmt: skip
        axis.set(xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    set_title(figure, run.title)
    return figure


def _percent(values: list[float]) -> list[float]:
    return [100 * value for value in values]
