"""How convolutional trained attention is, layer by layer (scripts/probe.py)."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnconv.report.colors import look
from attnconv.report.figures.data import Share, Shares
from attnconv.report.figures.style import new_figure, set_title, styled


@styled
def convolution_share(found: Shares) -> Figure:
    """Draw the shares by layer: trained networks in color, their initial weights hollow, convolution as the ceiling."""
    figure = new_figure(height=2.8)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, when in zip(axes, ("initial", "trained"), strict=True):
        for share in found.networks:
            _draw(axis, share, getattr(share, when))
        axis.axhline(100, color="black", linewidth=0.8, linestyle=(0, (4, 2)))
        axis.set(xlabel="layer", title="weights that training begins with" if when == "initial" else "trained weights")
        axis.set_ylim(0, 104)
    axes[0].set_ylabel("explained by the best\n3x3 convolution (%)")
    axes[1].annotate("a 3x3 convolution", (1, 100), xytext=(0, 3), textcoords="offset points", fontsize=6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    set_title(figure, found.title)
    return figure


def _draw(axis: Axes, share: Share, values: list[float]) -> None:
    color, marker = look(share.model)
    layers = range(1, len(values) + 1)
    axis.plot(layers, [100 * value for value in values], color=color, marker=marker, markersize=3.5, label=share.model)
    axis.set_xticks(layers)
