"""Figures of the theorem: the attention layers compute everything they show. Each is one column wide.

Axes: C inputs, O outputs, T taps of a kernel, H W rows and columns, in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from attnconv.analysis.conv_to_attention import ConvolutionAsAttention, leak
from attnconv.analysis.shortfall import missed_by_heads, missed_by_rank, with_image_keys
from attnconv.report.colors import BLUE, ORANGE, VERMILION
from attnconv.report.figures.data import Array, Kernel, Photo
from attnconv.report.figures.style import head_color, new_figure, styled

WIDTH = 3.3  # inches: one column of a two-column paper
MAP = 5  # pixels per side of the map of one query, without its padding
SIDE = 9  # pixels per side of the map of one head
CORNER = 4  # pixels per side of the border's corner
ALPHAS = (0.5, 2, 8, 46)  # 1/pixels^2; with 46 the paper calls a head hard
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
SIGNED = "RdBu_r"


@styled
def nine_heads(kernel: Kernel) -> Figure:
    """Draw a K x K kernel as heads: where each attends from one query, its value matrix, and the sum."""
    convolution = _convolution(kernel.weight)
    attention = ConvolutionAsAttention(convolution)
    rows, columns = attention.kernel_size
    pixels = torch.randn(1, attention.in_channels, MAP, MAP, generator=torch.Generator().manual_seed(0)).double()
    query = MAP * MAP // 2
    maps = _probs(attention, MAP + rows - 1, MAP + columns - 1)[:, query]
    values = attention.value[0].detach().unflatten(0, (attention.heads, -1)).numpy()
    heights = [0.83 * rows, 1.2]
    figure = new_figure(height=sum(heights), width=WIDTH)
    top, bottom = np.array(figure.subfigures(2, 1, height_ratios=heights))
    axes = top.subplots(rows, 2 * columns, width_ratios=[1.6, 1] * columns)
    for head, (probs, value) in enumerate(zip(maps, values, strict=True)):
        row, column = divmod(head, columns)
        _draw_map(axes[row, 2 * column], probs, head)
        axes[row, 2 * column].set_title(f"head {head + 1}", fontsize=7, color=head_color(head), pad=2)
        _draw_matrix(axes[row, 2 * column + 1], value, np.abs(values).max())
        axes[row, 2 * column + 1].set_title(f"$W_{{{head + 1}}}$", fontsize=7, pad=2)
    left, right = bottom.subplots(1, 2, width_ratios=[1, 2.1])
    _draw_all(left, maps)
    _draw_sum(right, _added(attention, pixels, maps, values), convolution(pixels)[0].flatten(1)[:, query])
    return figure


def _added(attention: ConvolutionAsAttention, pixels: Tensor, maps: Array, values: Array) -> Array:
    """Return the contribution of each head to the query's output, (O, T)."""
    rows, columns = (size // 2 for size in attention.kernel_size)
    padded = nn.functional.pad(pixels[0], (columns, columns, rows, rows)).numpy()
    return np.einsum("thw,chw,tco->ot", maps, padded, values, optimize=True)


def _draw_all(axis: Axes, maps: Array) -> None:
    """Draw all maps in one, each head at its largest probability."""
    _bare(axis, maps.shape[1:])
    for head, probs in enumerate(maps):
        row, column = np.unravel_index(probs.argmax(), probs.shape)
        corner = float(column) - 0.5, float(row) - 0.5
        axis.add_patch(Rectangle(corner, 1, 1, facecolor=head_color(head), linewidth=0))
        axis.text(
            float(column), float(row), str(head + 1), ha="center", va="center", fontsize=6, color="white", weight="bold"
        )
    _frame_query(axis, (maps.shape[1] // 2, maps.shape[2] // 2))
    axis.set_title("all heads", fontsize=7, pad=3)


def _draw_sum(axis: Axes, added: Array, convolved: Tensor) -> None:
    """Draw the contribution of each head to the output, the sum, and the output of the convolution."""
    heads = added.shape[1]
    gap = np.full((len(added), 1), np.nan)
    total, target = added.sum(1, keepdims=True), convolved.detach().numpy()[:, None]
    _draw_matrix(axis, np.hstack([added, gap, total, gap, target]), max(np.abs(added).max(), np.abs(total).max()))
    axis.spines[:].set_visible(False)
    axis.grid(False, which="minor")
    for column in (heads, heads + 2):
        axis.text(column, len(added) / 2 - 0.5, "=", ha="center", va="center")
    labels = [*(str(head + 1) for head in range(heads)), "sum", "conv."]
    axis.set_xticks([*range(heads), heads + 1, heads + 3], labels, fontsize=6)
    axis.tick_params(length=0, pad=1)
    axis.set_ylabel("out", fontsize=6, labelpad=1)
    axis.set_title("output of the query, by head", fontsize=7, pad=3)


@styled
def through_both(photo: Photo) -> Figure:
    """Draw a photo, the outputs of a convolution and of the equivalent attention, and the difference, in float32."""
    convolution = _emboss()
    with torch.no_grad():
        convolved, attended = (
            layer(_maps(photo))[0, 0] for layer in (convolution, ConvolutionAsAttention(convolution))
        )
    difference = (convolved - attended).abs().numpy()
    figure = new_figure(height=3.75, width=WIDTH)
    axes = figure.subplots(2, 2).ravel()
    axes[0].imshow(photo.pixels)
    limit = float(convolved.abs().quantile(0.995))
    for axis, out in zip(axes[1:3], (convolved, attended), strict=True):
        axis.imshow(out.numpy(), cmap="gray", vmin=-limit, vmax=limit)
    axes[3].imshow(difference, cmap="Greys")
    titles = ("photo", "3x3 convolution", "attention, nine heads", f"difference, up to {_number(difference.max())}")
    for axis, title in zip(axes, titles, strict=True):
        _bare(axis)
        axis.set_title(title)
    return figure


@styled
def sharpness(alphas: Sequence[float] = ALPHAS) -> Figure:
    """Draw the attention of one head, down and right of its query, from soft to hard, darkest at the largest."""
    figure = new_figure(height=1.35, width=WIDTH)
    axes = figure.subplots(1, len(alphas))
    for axis, alpha in zip(axes, alphas, strict=True):
        attention = ConvolutionAsAttention(nn.Conv2d(1, 1, 3, padding=1), alpha)
        probs = _probs(attention, SIDE, SIDE)[-1, (SIDE - 2) ** 2 // 2]
        axis.imshow(probs, cmap="Blues", vmin=0)
        _bare(axis, probs.shape)
        _frame_query(axis, (SIDE // 2, SIDE // 2))
        axis.set_title(f"$\\alpha$ = {alpha:g}")
        missed = 100 * leak(alpha)
        axis.set_xlabel(f"elsewhere\n{f'{missed:.1f}' if missed > 0.01 else _number(missed)}%", fontsize=7)
    return figure


@styled
def border(photo: Photo) -> Figure:
    """Draw where nine heads attend from a corner, and how far their output on a photo is from a convolution's.

    On the left, heads look at the image's own pixels, as in the paper; on the right, at the padded image.
    """
    figure = new_figure(height=3.9, width=WIDTH)
    above, below = figure.subplots(2, 2)
    differences = _border_differences(photo)
    for axis, looked_at, keys in zip(
        above, _corners(), ("the image\n(the paper)", "the padded\nimage (here)"), strict=True
    ):
        _draw_corner(axis, looked_at)
        axis.set_title(f"keys: {keys}")
    for axis, difference in zip(below, differences, strict=True):
        axis.imshow(difference, cmap="Greys", vmin=0, vmax=differences[0].max())
        _bare(axis)
        axis.set_xlabel(f"up to {_number(difference.max())}", fontsize=7)
    above[0].set_ylabel("heads that look at each\npixel from the corner", fontsize=7)
    below[0].set_ylabel("difference from\nthe convolution", fontsize=7)
    return figure


@torch.no_grad()
def _border_differences(photo: Photo) -> list[Array]:
    """Return the differences of attention from a convolution, (H, W).

    With the image's keys, and with the padded image's.
    """
    convolution, x = _emboss(), _maps(photo)
    image_keys = with_image_keys(convolution, *x.shape[2:])(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    found = (image_keys, ConvolutionAsAttention(convolution)(x))
    return [(convolution(x) - out)[0].abs().amax(0).numpy() for out in found]


def _corners() -> list[Array]:
    """Return how many heads look from an image's corner at nearby pixels; the first row and column are padding."""
    single = nn.Conv2d(1, 1, 3, padding=1)
    image_keys = with_image_keys(single, CORNER, CORNER).attention_probs(CORNER, CORNER)[0, :, 0].detach()
    inside = nn.functional.pad(image_keys.sum(0).unflatten(0, (CORNER, CORNER)), (1, 0, 1, 0))
    return [inside.numpy(), _probs(ConvolutionAsAttention(single), CORNER + 2, CORNER + 2)[:, 0].sum(0)[:-1, :-1]]


def _draw_corner(axis: Axes, looked_at: Array) -> None:
    axis.imshow(np.ma.masked_less(looked_at, 1e-6), cmap="Blues", vmin=0, vmax=6)
    _bare(axis, looked_at.shape)
    for row, column in np.ndindex(*looked_at.shape):
        corner = column - 0.5, row - 0.5
        if not (row and column):
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", linewidth=0, color="#b0b0b0"))
        if looked_at[row, column] > 1e-6:
            axis.text(column, row, f"{looked_at[row, column]:.3g}", ha="center", va="center")
    _frame_query(axis, (1, 1))
    axis.set_xlabel("hatched: padding", fontsize=7)


@styled
def too_little(kernel: Kernel) -> Figure:
    """Draw what is missing of a kernel with fewer heads than taps, and with fewer dimensions per head than outputs."""
    weight = torch.tensor(kernel.weight)
    one_tap, any_maps = missed_by_heads(weight)
    by_rank = missed_by_rank(weight)
    figure = new_figure(height=1.9, width=WIDTH)
    heads, dimensions = figure.subplots(1, 2, sharey=True)
    _draw_missed(heads, one_tap, VERMILION, "o-", "one tap per head")
    _draw_missed(heads, any_maps, BLUE, "s--", "any maps (bound)")
    _draw_missed(dimensions, by_rank, ORANGE, "o-", "")
    heads.legend(loc="upper right", fontsize=6)
    heads.set(xlabel="heads", ylabel="kernel missed (%)", xticks=range(1, len(one_tap) + 1, 2))
    heads.set_title("fewer heads than taps")
    almost, share = len(one_tap) - 1, 100 * one_tap[-2]
    heads.annotate(f"{almost} heads:\n{share:.0f}%", (almost, share), xytext=(-1, 24), textcoords="offset points",
                   fontsize=6.5, ha="center", arrowprops={"arrowstyle": "-", "linewidth": 0.5})  # fmt: skip
    dimensions.set(xlabel="dimensions $D_h$", xticks=range(0, len(by_rank) + 1, 4))
    dimensions.set_title(f"$D_h$ below $D_{{out}}$ = {weight.shape[0]}")
    return figure


def _draw_missed(axis: Axes, shares: Sequence[float], color: str, style: str, label: str) -> None:
    percent = [100 * share for share in shares]
    axis.plot(range(1, len(shares) + 1), percent, style, color=color, label=label, markersize=3)
    axis.set(ylim=(-2, 118), yticks=range(0, 101, 20))


def _convolution(weight: Array) -> nn.Conv2d:
    """Return the zero-padded convolution of a kernel (O, C, K, K), without bias, in float64."""
    outputs, inputs, rows, columns = weight.shape
    made = nn.Conv2d(inputs, outputs, (rows, columns), padding=(rows // 2, columns // 2), bias=False).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor(weight))
    return made


def _emboss() -> nn.Conv2d:
    """Return a filter that turns the mean of three colors into a relief, three times."""
    return _convolution(np.tile(np.array(EMBOSS) / 3, (3, 3, 1, 1))).float()


def _maps(photo: Photo) -> Tensor:
    """Return the photo as (1, 3, H, W) from 0 to 1."""
    return torch.tensor(photo.pixels).permute(2, 0, 1)[None].float() / 255


def _probs(attention: ConvolutionAsAttention, height: int, width: int) -> Array:
    """Return probabilities (T, Q, height, width) over the pixels of a padded map."""
    return attention.attention_probs(height, width)[0].detach().unflatten(-1, (height, width)).numpy()


def _draw_map(axis: Axes, probs: Array, head: int) -> None:
    axis.imshow(probs, cmap=LinearSegmentedColormap.from_list("head", ["white", head_color(head)]), vmin=0, vmax=1)
    _bare(axis, probs.shape)
    _frame_query(axis, (probs.shape[0] // 2, probs.shape[1] // 2))


def _draw_matrix(axis: Axes, matrix: Array, largest: float) -> None:
    axis.imshow(matrix, cmap=SIGNED, vmin=-largest, vmax=largest)
    _bare(axis, matrix.shape)


def _bare(axis: Axes, shape: tuple[int, ...] | None = None) -> None:
    """Leave only the frame of an image, and with a shape also a grid between its cells."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set(visible=True, linewidth=0.4)
    if shape is not None:
        axis.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5), aspect="equal")
        axis.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
        axis.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
        axis.grid(True, which="minor", color="#dddddd", linewidth=0.3)
        axis.tick_params(which="minor", length=0)


def _frame_query(axis: Axes, query: tuple[int, int]) -> None:
    axis.add_patch(
        Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2, zorder=4)
    )


def _number(value: float) -> str:
    """Return a number with two digits, small ones as a power of ten."""
    if value >= 1e-3:
        return f"{value:.2g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"${digits}\\times 10^{{{int(exponent)}}}$"
