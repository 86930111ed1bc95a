"""Where Gaussian heads look: the paper's Figures 3, 4, 12 and 14, from centers and spreads.

A Gaussian head has a share m of its attention inside the ellipse at sqrt(-2 ln(1 - m)) standard deviations, and this
ellipse is drawn. The paper instead draws contours of the probabilities on 11 x 11 positions, with rows upward
(`as_printed`).

Axes: L layers, N heads, E epochs.
"""

import itertools
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from attnconv.report.figures.data import CentersInTraining, Floats, Gaussians, radius
from attnconv.report.figures.style import head_color, panels, set_title, styled

MASSES: tuple[tuple[float, Any, float], ...] = (
    (0.5, "solid", 1.2),
    (0.9, (0, (1, 1.2)), 0.8),
)  # share of the attention inside, line style, width
NARROWEST = 2.5  # positions: minimum half width of a frame
PRINTED = 11  # positions per side of the map that the paper's code draws
MOST_HEADS, MOST_IN_ALL = 32, 288  # in a panel, and in a figure: matplotlib takes a minute for a thousand
MOST_DOTS = 16  # of heads that are counted above a panel
THRESHOLDS = 1000  # number of thresholds that it tries between 0 and the largest probability


@styled
def centers(heads: Gaussians, columns: int = 3) -> Figure:
    """Draw one panel per layer, all on one scale: a dot at each center, ellipses around 50% and 90% of its attention.

    Centers and ellipses outside of all shifts of the map are not cut off, but counted above their panel.
    """
    heads = _first(heads)
    count = len(heads.centers)
    figure, axes = panels(count, min(columns, count), height=2.3)
    half = frame(heads)
    for layer, axis in enumerate(axes):
        beyond = draw_layer(axis, heads, layer, half)
        axis.set_title(f"layer {layer + 1}", pad=15)
        _count_beyond(axis, beyond)
        _label_shifts(axis)
    set_title(figure, heads.title)
    _explain(figure)
    return figure


def _first(heads: Gaussians) -> Gaussians:
    """Return the heads that a figure can show, and say in its title which they are if they are not all."""
    layers, count = heads.centers.shape[:2]
    most = min(count, MOST_HEADS)
    shown = min(layers, max(1, MOST_IN_ALL // most))
    if (shown, most) == (layers, count):
        return heads
    title = f"{heads.title}: the first {most:,} of {count:,} heads in the first {shown:,} of {layers:,} layers"
    return Gaussians(title, heads.grid, heads.centers[:shown, :most], heads.spreads[:shown, :most])


def frame(heads: Gaussians) -> float:
    """Return half the side of the frame that holds all ellipses within the shifts of the map, in positions."""
    widest = max(heads.grid)
    layers, count = heads.centers.shape[:2]
    places = itertools.product(range(layers), range(count), MASSES)
    reaches = [heads.reach(layer, head, mass) for layer, head, (mass, *_) in places]
    reaches = [reach for reach in reaches if not math.isnan(reach)]
    reaches += [float(value) for value in np.abs(heads.centers).max(-1).ravel() if not math.isnan(value)]
    return 1.04 * max([NARROWEST, *(reach for reach in reaches if reach <= widest)])


def draw_layer(axis: Axes, heads: Gaussians, layer: int, half: float) -> dict[str, list[int]]:
    """Draw layer `layer`, from 0; return the heads whose center or ellipse of some share is outside of the frame."""
    _draw_frame(axis, half, "")
    beyond: dict[str, list[int]] = {"center": [], "50%": [], "90%": []}
    for head, center in enumerate(heads.centers[layer]):
        if np.isnan(center).any():
            continue
        color = head_color(head)
        if np.abs(center).max() > half:
            beyond["center"].append(head)
        axis.plot(center[1], center[0], "o", color=color, markersize=2.8, zorder=3)
        for mass, style, width in MASSES:
            if heads.reach(layer, head, mass) > half:
                beyond[f"{mass:.0%}"].append(head)
                continue
            deviations, directions = heads.axes_of(layer, head)
            size = 2 * radius(mass) * deviations
            angle = math.degrees(math.atan2(directions[0, 0], directions[1, 0]))
            axis.add_patch(
                Ellipse((center[1], center[0]), *size, angle=angle, fill=False, edgecolor=color, linestyle=style,
                        linewidth=width)
            )  # fmt: skip
    return beyond


def _draw_frame(axis: Axes, half: float, title: str) -> None:
    # Hollow and below the centers, many of which lie on the query.
    axis.plot(0, 0, "s", color="black", markerfacecolor="none", markersize=5, zorder=1.5)
    axis.set(xlim=(-half, half), ylim=(half, -half), title=title, aspect="equal")
    axis.tick_params(labelsize=7, length=2.5, width=0.6)
    axis.locator_params(nbins=5, steps=[1, 2, 4, 5, 10], integer=True)


def _label_shifts(axis: Axes) -> None:
    """Label the axes of the outer panels, which the others share."""
    axis.set_xlabel("column shift (positions)", fontsize=7)
    axis.set_ylabel("row shift (positions)", fontsize=7)
    axis.label_outer()


def _count_beyond(axis: Axes, beyond: dict[str, list[int]]) -> None:
    """List above a panel what is outside of its frame, heads as dots in their colors."""
    for line, (what, heads) in enumerate((what, heads) for what, heads in beyond.items() if heads):
        text = f"{what} outside" if what == "center" else f"{what} ring outside"
        dots = [("●", 48 + 4.2 * place, head_color(head)) for place, head in enumerate(heads[:MOST_DOTS])]
        more = [(f"+{len(heads) - MOST_DOTS}", 50 + 4.2 * MOST_DOTS, "black")] if len(heads) > MOST_DOTS else []
        colored = [(text, 0.0, "black"), *dots, *more]
        for label, right, color in colored:
            axis.annotate(label, (0, 1), xytext=(right, 11 - 6.5 * line), xycoords="axes fraction", fontsize=5.5,
                          textcoords="offset points", color=color, va="center", annotation_clip=False)  # fmt: skip


def _explain(figure: Figure) -> None:
    lines = [Line2D([], [], color="black", linestyle=style, linewidth=width) for _, style, width in MASSES]
    marks = [
        Line2D([], [], color="black", marker=marker, markerfacecolor=face, linestyle="", markersize=size)
        for marker, face, size in (("s", "none", 5), ("o", "black", 3))
    ]
    figure.legend(
        [*marks, *lines], ["query", "center of a head", "50% of its attention", "90%"],
        loc="outside lower center", ncols=4, handlelength=1.8, columnspacing=1.2, fontsize=7, frameon=False,
    )  # fmt: skip


@styled
def as_printed(heads: Gaussians, columns: int = 3) -> Figure:
    """Draw Figure 4 as the paper's own code does, for comparison with the print.

    Probabilities are on a map of 11 x 11 positions with rows upward, and contours are linearly interpolated at
    thresholds chosen among 1000. The circles of narrow heads become polygons.
    """
    heads = _first(heads)
    count = len(heads.centers)
    figure, axes = panels(count, min(columns, count), height=1.95)
    shifts = np.arange(PRINTED) - PRINTED // 2
    for layer, axis in enumerate(axes):
        for head in np.flatnonzero(~np.isnan(heads.centers[layer, :, 0])).tolist():
            probs = printed_probs(heads, layer, head)
            for mass, style, width in MASSES:
                level = printed_threshold(probs, mass)
                if probs.min() < level < probs.max():
                    axis.contour(shifts, shifts, probs, [level], colors=[head_color(head)],
                                 linestyles=["dotted" if mass > 0.5 else style], linewidths=width)  # fmt: skip
        axis.plot(0, 0, "s", color="black", markersize=4, zorder=4)
        ticks = (shifts[0], 0, shifts[-1])
        axis.set(title=f"layer {layer + 1}", aspect="equal", xticks=ticks, yticks=ticks)
        axis.tick_params(labelsize=7, length=2.5, width=0.6)
        _label_shifts(axis)
    set_title(figure, f"{heads.title}, as printed")
    return figure


def printed_probs(heads: Gaussians, layer: int, head: int) -> Floats:
    """Return the softmax of a head's scores over the PRINTED x PRINTED shifts around the query."""
    shifts = np.arange(PRINTED) - PRINTED // 2
    offsets = np.stack(np.meshgrid(shifts, shifts, indexing="ij"), -1) - heads.centers[layer, head]
    spread = heads.spreads[layer, head]
    whitened = offsets * spread if spread.ndim == 0 else offsets @ spread
    scores = -0.5 * (whitened**2).sum(-1)
    probs = np.exp(scores - scores.max())
    return np.asarray(probs / probs.sum())


def printed_threshold(probs: Floats, mass: float) -> float:
    """Return the probability above which cells hold a share `mass`, interpolated between THRESHOLDS equal steps."""
    levels = np.linspace(0, probs.max(), THRESHOLDS)
    held = np.array([probs[probs >= level].sum() for level in levels])
    return float(np.interp(-mass, -held, levels))


@styled
def centers_in_training(found: CentersInTraining) -> Figure:
    """Draw one panel per epoch: where the centers of one layer are, and where they came from."""
    count = len(found.epochs)
    figure, axes = panels(count, 4, height=1.5)
    half = 1.08 * max(NARROWEST, min(max(found.grid), float(np.abs(found.centers).max())))
    for index, (axis, epoch) in enumerate(zip(axes, found.epochs, strict=True)):
        _draw_frame(axis, half, "before training" if epoch == 0 else f"epoch {epoch}")
        for head in range(found.centers.shape[1]):
            path = found.centers[: index + 1, head]
            axis.plot(path[:, 1], path[:, 0], color=head_color(head), linewidth=0.7, alpha=0.6)
            axis.plot(path[-1, 1], path[-1, 0], "o", color=head_color(head), markersize=3.2, zorder=3)
        _label_shifts(axis)
    set_title(figure, f"{found.title}, layer {found.layer}")
    return figure
