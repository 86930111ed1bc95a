"""Figures as pure functions of data: nothing is read, trained or written here."""

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from attnconv.analysis.heads import head_statistics

MASSES = ((0.9, "dotted", 1.0), (0.5, "solid", 1.6))  # share of a head's attention inside the line, style, width

TINY = 1e-12  # stands for a probability that underflowed to 0, so that it has a logarithm


def mass_threshold(probs: np.ndarray, mass: float) -> float:
    """The largest t such that the cells with probability >= t hold at least `mass` of it."""
    descending = np.sort(probs, axis=None)[::-1]
    reached = np.searchsorted(np.cumsum(descending), mass * descending.sum())
    return float(descending[min(reached, descending.size - 1)])


def plot_heads(layers: list[Tensor], title: str, columns: int = 3) -> Figure:
    """Where each head of each layer looks from the central pixel (the paper's Figure 4, for any encoding).

    One panel a layer, one colour a head: a dot at the mean shift, a solid line around 50% of the attention and a
    dotted one around 90%. The black square is the query pixel.

    Args:
        layers: probabilities (N, H, W) of the central pixel of each layer, as `central_probs` gives them.
        title: printed above the panels.
        columns: panels side by side.
    """
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.1 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (axis, probs) in enumerate(zip(axes, layers, strict=False)):
        _draw_layer(axis, probs)
        axis.set_title(f"layer {index + 1}", fontsize=10)
    for axis in axes[len(layers) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("column shift (pixels of the map)", fontsize=9)
    figure.supylabel("row shift (pixels of the map)", fontsize=9)
    return figure


def _draw_layer(axis: matplotlib.axes.Axes, probs: Tensor) -> None:
    heads, height, width = probs.shape
    row_shifts, column_shifts = np.arange(height) - height // 2, np.arange(width) - width // 2
    colours = matplotlib.colormaps["tab10" if heads <= 10 else "tab20"](np.arange(20 if heads > 10 else 10))
    means, _ = head_statistics(probs.to(torch.float64))
    maps = probs.numpy().clip(min=TINY)
    for head in range(heads):
        colour = colours[head % len(colours)]
        for mass, style, line_width in MASSES:
            level = mass_threshold(maps[head], mass)
            # A one-hot head has no level set around which a line could run; its dot says it all.
            if maps[head].min() < level < maps[head].max():
                # In logarithms a Gaussian is a paraboloid, on which matplotlib's linear interpolation is nearly round.
                axis.contour(
                    column_shifts, row_shifts, np.log(maps[head]), [np.log(level)],
                    colors=[colour], linestyles=style, linewidths=line_width,
                )  # fmt: skip
        axis.plot(means[head, 1], means[head, 0], "o", color=colour, markersize=4)
    axis.plot(0, 0, "s", color="black", markersize=6, zorder=3)
    axis.set(xlim=(column_shifts[0] - 0.5, column_shifts[-1] + 0.5), ylim=(row_shifts[-1] + 0.5, row_shifts[0] - 0.5))
    axis.set_aspect("equal")
    axis.tick_params(labelsize=7)
    axis.grid(linewidth=0.3)
