"""Costs and reach of mixers: growth with the number of pixels, and the distance task."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attnconv.report.colors import BLUE, style_of
from attnconv.report.figures.data import Cost, Reach
from attnconv.report.figures.style import new_figure, panels, styled


@styled
def growth(costs: list[Cost]) -> Figure:
    """Draw the exponent of time in pixels, in theory and measured, and the activations, one row per model."""
    costs = sorted(costs, key=lambda cost: (cost.theory, cost.measured, cost.model))
    figure = new_figure(height=0.155 * len(costs) + 0.9)
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
    for row, cost in enumerate(costs):
        time.plot([cost.theory, cost.measured], [row, row], color=BLUE, linewidth=0.8)
        time.plot(cost.theory, row, "|", color="black", markersize=7)
        time.plot(cost.measured, row, "o", color=BLUE, markersize=3.8)
        memory.plot(cost.megabytes, row, "o", color=BLUE, markersize=3.8)
    time.set_yticks(range(len(costs)), [cost.model for cost in costs], fontsize=6.2)
    time.set(xlabel="exponent of time in the number of pixels", xlim=(0.4, 2.6), ylim=(len(costs) - 0.4, -0.6))
    time.set_title("stroke: theory, mark: measured")
    memory.set(xlabel="activations of one image (MB)", title="at scale=paper", xscale="log", xlim=(1, 250))
    memory.grid(axis="y", visible=True)
    for axis in (time, memory):
        axis.tick_params(axis="y", length=0)
    time.grid(axis="y", visible=False)
    return figure


@styled
def long_range(reaches: list[Reach]) -> Figure:
    """Draw accuracy against distance, one panel per model and one line per depth, shaded beyond the theoretical limit.

    The dotted line is the accuracy without seeing two marks together.
    """
    models = sorted({reach.model for reach in reaches})
    distances = sorted({distance for reach in reaches for distance in reach.accuracies})
    counting = [100 * reaches[0].counting[distance] for distance in distances]
    figure, axes = panels(len(models), 3, height=1.55)
    for axis, model in zip(axes, models, strict=True):
        for reach in reaches:
            if reach.model == model:
                _draw_reach(axis, reach)
        axis.plot(distances, counting, color="#777777", linewidth=0.8, linestyle=":")
        axis.set(title=model, ylim=(44, 106), xlim=(distances[0] - 1.5, distances[-1] + 1.5), xticks=distances)
        axis.axhline(50, color="#bbbbbb", linewidth=0.6)  # chance
        axis.set(xlabel="distance (pixels)", ylabel="test accuracy (%)")
        axis.label_outer()
    lines = [
        Line2D([], [], color="black", linestyle="-", marker="o", markersize=3),
        Line2D([], [], color="black", linestyle="--", marker="o", markersize=3, markerfacecolor="white"),
        Line2D([], [], color="#777777", linewidth=0.8, linestyle=":"),
    ]
    names = ["1 layer", "2 layers", "without seeing two marks together"]
    figure.legend(lines, names, loc="outside lower center", ncols=3)
    return figure


def _draw_reach(axis: Axes, reach: Reach) -> None:
    color = style_of(reach.model).color
    distances = sorted(reach.accuracies)
    one = reach.layers == 1
    axis.plot(distances, [100 * reach.accuracies[distance] for distance in distances], "-" if one else "--",
              color=color, marker="o", markersize=3, markerfacecolor=color if one else "white")  # fmt: skip
    if reach.limit < max(distances):
        axis.axvspan(reach.limit + 1, max(distances) + 2, color=color, alpha=0.07, linewidth=0)
        axis.annotate(f"limit, {reach.layers} layer{'' if one else 's'}", (reach.limit + 1.2, 45), fontsize=5.4)
