"""The style of all figures, and their files: equal data gives equal bytes."""

import functools
import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from attnconv.files import write_whole
from attnconv.report.colors import HEADS

P = ParamSpec("P")

STYLE = Path(__file__).parents[1] / "attnconv.mplstyle"
COLUMN = 5.5  # inches: the width of the paper's text
LINE = 72  # characters of a title in one line
FORMATS = ("png", "pdf")
# By default, files contain the version of matplotlib and the time.
METADATA = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a function draw in the project's style, whatever style is active."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float, width: float = COLUMN) -> Figure:
    """Return an empty figure; sizes in inches."""
    return Figure(figsize=(width, height))


def panels(count: int, columns: int, height: float, width: float = COLUMN) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, `columns` per row.

    Args:
        height: of a row of panels, in inches.
        width: of the figure, in inches.
    """
    rows = -(-count // columns)
    figure = new_figure(height * rows, width)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def head_color(head: int) -> str:
    """Return the color of head `head`, counted from 0."""
    return HEADS[head % len(HEADS)]


def set_title(figure: Figure, title: str) -> None:
    """Write a title above a figure, wrapped to its width into lines of similar length."""
    count = len(textwrap.wrap(title, LINE))
    widths = range(max(1, len(title) // max(1, count)), LINE + 1)
    wrapped = (textwrap.wrap(title, width) for width in widths)
    figure.suptitle(plain("\n".join(next((lines for lines in wrapped if len(lines) <= count), [title]))))


def plain(text: str) -> str:
    """Return a text of a user, such as a name, as matplotlib shows it unchanged: a $ does not begin a formula."""
    return text.replace("$", r"\$")


def image_bytes(figure: Figure, kind: str = "png") -> bytes:
    """Return the figure as a file: a PDF, or a PNG of 256 colors, which has a third of the size."""
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):  # ticks and their labels are created only now
        figure.savefig(buffer, format=kind, metadata=METADATA[kind])
    return _in_few_colors(buffer) if kind == "png" else buffer.getvalue()


def _in_few_colors(png: io.BytesIO) -> bytes:
    few = Image.open(png).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write name.png and name.pdf with the same layout."""
    for kind in FORMATS:
        write_whole(folder / f"{name}.{kind}", image_bytes(figure, kind))
        figure.set_layout_engine("none")  # compute the slow layout only once
