"""Drawings without runs: the theorem (the paper's Figure 1) and its general form (Figure 11)."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from attnconv.report.figures.data import Floats
from attnconv.report.figures.style import head_color, new_figure, styled

SHIFTS = list(itertools.product((-1, 0, 1), repeat=2))  # of a 3 x 3 kernel, (row, column)
MAP = 5  # pixels per side of the theorem's drawing
SIDE, D_IN, D_OUT, KERNEL, HEADS = 3, 2, 3, 2, 5  # Figure 11's image, channels, kernel and heads, as in its caption


@styled
def theorem() -> Figure:
    """Draw nine heads, one per shift, as a 3 x 3 convolution."""
    figure = new_figure(height=1.75)
    draw_theorem(figure.subplots())
    return figure


def draw_theorem(axis: Axes) -> None:
    """Draw the theorem into axes: the map with its query, nine heads with one shift each, and their sum."""
    _draw_map(axis)
    for head, (row, column) in enumerate(SHIFTS):
        x, y = 7.6 + 3.4 * (column + 1), 2.5 + 1.95 * row
        color = head_color(head)
        axis.add_patch(
            Rectangle((x - 1.45, y - 0.75), 2.9, 1.5, facecolor=color, alpha=0.18, edgecolor=color, linewidth=0.8)
        )
        axis.text(x, y - 0.3, f"head {head + 1}", ha="center", va="center", fontsize=6.5, weight="bold")
        shift = f"shift ({row}, {column})".replace("-", "\N{MINUS SIGN}")
        axis.text(x, y + 0.33, shift, ha="center", va="center", fontsize=5.5)
    _arrow(axis, (5.15, 2.5), (6.0, 2.5))
    _arrow(axis, (16.0, 2.5), (16.95, 2.5))
    axis.text(19.4, 1.2, "sum of nine heads", ha="center", va="center", fontsize=7, weight="bold")
    axis.text(19.4, 2.5, r"$\Sigma_h\; W_h\, x_{q+\Delta_h}$", ha="center", va="center", fontsize=9)
    axis.text(19.4, 3.9, "= one pixel of a\n3x3 convolution", ha="center", va="center", fontsize=7)
    axis.set(xlim=(-0.1, 21.7), ylim=(5.6, -0.7), aspect="equal")
    axis.set_axis_off()


def _draw_map(axis: Axes) -> None:
    for row, column in itertools.product(range(MAP), repeat=2):
        shift = (row - MAP // 2, column - MAP // 2)
        color = head_color(SHIFTS.index(shift)) if shift in SHIFTS else "white"
        axis.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="#888888", linewidth=0.5, alpha=0.85))
    middle = MAP // 2
    axis.add_patch(Rectangle((middle, middle), 1, 1, fill=False, edgecolor="black", linewidth=2))
    axis.text(middle + 0.5, middle + 0.5, "q", ha="center", va="center", fontsize=8, weight="bold", color="white")
    axis.text(MAP / 2, -0.35, "map, query q", ha="center", va="center", fontsize=7)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, linewidth=1, color="black"))


@styled
def factorization() -> Figure:
    """Draw the computation of one query as one matrix, for a 2 x 2 convolution and for self-attention with five heads.

    Rows are pixels and their channels. Each matrix is the attention times the weights. Since the heads' maps span the
    pixels of the kernel, attention has weights that make both equal.
    """
    kernel = np.random.default_rng(0).normal(size=(KERNEL**2 * D_IN, D_OUT))
    pixels = SIDE * SIDE
    corner = [row * SIDE + column for row, column in itertools.product(range(KERNEL), repeat=2)]
    hard = np.eye(pixels)[:, corner]
    # Five heads whose maps span the four pixels: three heads with one pixel each, two heads that share two pixels.
    soft = hard @ np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0.3, 0.6], [0, 0, 0, 0.7, 0.4]])
    figure = new_figure(height=3)
    names = f"{KERNEL}x{KERNEL} convolution", f"self-attention, {HEADS} heads"
    for part, name, looked_at in zip(np.array(figure.subfigures(1, 2)), names, (hard, soft), strict=True):
        spread = np.kron(looked_at, np.eye(D_IN))
        weights = kernel if looked_at is hard else np.linalg.pinv(spread) @ np.kron(hard, np.eye(D_IN)) @ kernel
        axes = part.subplots(1, 3, width_ratios=[D_OUT, spread.shape[1], D_OUT])
        for axis, matrix, title in zip(
            axes, (spread @ weights, spread, weights), (r"$V_q$", "= pixels looked at", r"$\times\ W$"), strict=True
        ):
            _draw_matrix(axis, matrix)
            axis.set_title(title, fontsize=7)
        axes[0].set_ylabel(f"{pixels} pixels x {D_IN} channels", fontsize=7)
        axes[0].set_xlabel(f"{D_OUT} outputs", fontsize=6)
        axes[1].set_xlabel("taps x channels" if looked_at is hard else "heads x channels", fontsize=6)
        part.suptitle(name, fontsize=8)
    return figure


def _draw_matrix(axis: Axes, matrix: Floats) -> None:
    largest = np.abs(matrix).max()
    axis.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest", aspect="equal")
    axis.set(xticks=[], yticks=[])
    axis.set_xticks(np.arange(matrix.shape[1] + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(matrix.shape[0] + 1) - 0.5, minor=True)
    axis.grid(False)
    axis.grid(True, which="minor", color="#dddddd", linewidth=0.4)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(True)
