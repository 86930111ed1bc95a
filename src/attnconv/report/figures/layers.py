"""How convolutional trained attention is, layer by layer (scripts/probe.py)."""

from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnconv.report.colors import style_of
from attnconv.report.figures.data import Share, Shares
from attnconv.report.figures.style import new_figure, plain, set_title, styled


@styled
def convolution_share(found: Shares) -> Figure:
    """Draw the shares by layer, initial and trained, over bands for attention of known kinds."""
    figure = new_figure(height=3.3)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, when in zip(axes, ("initial", "trained"), strict=True):
        for level in found.levels:
            axis.axhspan(100 * level.low, 100 * level.high, color="#888888", alpha=0.22, linewidth=0)
        for share in found.networks:
            _draw(axis, share, getattr(share, when))
        axis.axhline(100, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
        axis.set(xlabel="layer", title="before training" if when == "initial" else "after training")
        axis.set_ylim(0, 107)
    axes[0].set_ylabel("explained by the best\n3x3 convolution (%)")
    axes[1].annotate("a 3x3 convolution", (1, 100), xytext=(0, 2), textcoords="offset points", fontsize=6)
    for level in found.levels:
        middle = 50 * (level.low + level.high)
        axes[0].text(6.15, middle, level.label, fontsize=5.5, ha="right", va="center")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    set_title(figure, found.title)
    return figure


def _draw(axis: Axes, share: Share, runs: list[list[float]]) -> None:
    """Draw the runs as marks, and their mean as a line, which is dashed for a single run."""
    color, marker = style_of(share.model)
    layers = range(1, len(runs[0]) + 1)
    dots: dict[str, Any] = {"color": color, "marker": marker, "markersize": 3.5,
            "markerfacecolor": color if share.corrected else "white"}  # fmt: skip
    for values in runs:
        axis.plot(layers, [100 * value for value in values], linestyle="", **dots)
    style = "-" if len(runs) > 1 else "--"
    axis.plot(layers, [100 * fmean(of_layer) for of_layer in zip(*runs, strict=True)], style, color=color)
    axis.plot([], [], style, label=plain(share.label), **dots)
    axis.set_xticks(layers)
