"""The verdicts on all claims in one figure."""

from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attnconv.report.claims import FAILS, HOLDS, NOT_RUN, UNDECIDED
from attnconv.report.colors import GRAY, GREEN, ORANGE, VERMILION
from attnconv.report.figures.data import Verdicts
from attnconv.report.figures.style import new_figure, styled

MARKS = {HOLDS: (GREEN, "o", True), FAILS: (VERMILION, "s", True), UNDECIDED: (ORANGE, "D", True),
         NOT_RUN: (GRAY, "o", False)}  # fmt: skip
TEXT = 67  # percent of the width, for the claims
LONGEST = 76  # characters of a claim in one line; longer ones take two smaller lines


@styled
def verdicts(found: Verdicts) -> Figure:
    """Draw one row per claim and one column per verdict; the heading counts the marks of each column.

    Marks are half filled if some parts have not run.
    """
    count = len(found.rows)
    figure = new_figure(height=0.152 * count + 0.5)
    axis = figure.subplots()
    columns = {status: TEXT + 4 + 11 * place for place, status in enumerate(MARKS)}
    for row, verdict in enumerate(found.rows):
        if row % 2 == 0:
            axis.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", linewidth=0)
        axis.text(1, row, verdict.name, fontsize=6, weight="bold", va="center")
        claim = fill(verdict.claim.rstrip(".").replace("`", ""), LONGEST)
        axis.text(5, row, claim, fontsize=5 if "\n" in claim else 6, va="center", linespacing=1)
        color, marker, filled = MARKS[verdict.status]
        face = color if filled else "white"
        axis.add_line(Line2D([columns[verdict.status]], [row], color=color, marker=marker, markersize=5,
                             fillstyle="left" if verdict.partial else "full", markerfacecolor=face,
                             markerfacecoloralt="white", linestyle=""))  # fmt: skip
    for status, x in columns.items():
        total = sum(verdict.status == status for verdict in found.rows)
        axis.text(x, -1.1, f"{status}\n{total}", fontsize=6, ha="center", va="center")
    axis.set(xlim=(0, 109), ylim=(count - 0.5, -2))
    axis.set_axis_off()
    return figure
