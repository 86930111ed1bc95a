"""Attention maps of heads: the paper's Figures 5 to 10.

Axes: L layers, N heads, H W rows and columns; the query is at (H // 2, W // 2) unless said otherwise.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnconv.report.figures.data import Array, ImageMaps, Maps
from attnconv.report.figures.style import COLUMN, new_figure, set_title, styled

ZOOM = 7  # positions per side around the query, as in Figure 5
HARDLY_LARGER = 9  # positions per side of a map that is shown as a whole
QUERY = "#ff2a2a"  # the frame around the query pixel
FRAME = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)])  # corners around a pixel, in half pixels
MOST_PANELS = 144  # heads in a figure with a panel for each: matplotlib needs about 0.1 s for a panel
PER_ROW = 16  # heads in a row of a figure without panels, and of a figure of images
MOST_INCHES = 40  # height of a figure without panels


@styled
def whole(maps: Maps) -> Figure:
    """Draw one row of maps per layer and one column per head: all positions."""
    probs = in_order(maps.probs)
    return _grid(maps.title, probs, _center(probs), _peaks(probs))


@styled
def zoomed(maps: Maps) -> Figure:
    """Draw the same for the positions around the query, or all positions of a map that is hardly larger.

    The largest probability, which sorts the heads, is that of the whole map: a head may look elsewhere.
    """
    probs = in_order(maps.probs)
    row, column = _center(probs)
    half = ZOOM // 2
    if max(probs.shape[2:]) <= HARDLY_LARGER:
        return _grid(maps.title, probs, (row, column), _peaks(probs))
    top, left = max(row - half, 0), max(column - half, 0)
    near = probs[:, :, top : row + half + 1, left : column + half + 1]
    rows, columns = near.shape[2:]
    title = f"{maps.title}: the {rows}x{columns} positions around the query"
    return _grid(title, near, (row - top, column - left), _peaks(probs))


def in_order(probs: Array) -> Array:
    """Sort the heads of each layer by their largest probability, largest first: their numbers have no meaning."""
    order = np.argsort(-_peaks(probs), axis=1, kind="stable")
    return np.take_along_axis(probs, order[:, :, None, None], axis=1)


def _peaks(probs: Array) -> Array:
    """Return the largest probability of each head (L, N), or -1 for a head without a map."""
    peaks: Array = np.nan_to_num(probs.astype(np.float64), nan=-1).max(axis=(2, 3))
    return peaks


@styled
def of_images(found: ImageMaps, layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> Figure:
    """Draw each image with its query, and where each head of each layer attends from there."""
    images = len(found.images)
    shown = [layer for layer in layers if layer < found.probs.shape[1]]
    heads = min(found.probs.shape[2], PER_ROW)
    title = found.title
    if heads < found.probs.shape[2]:
        title += f": the first {heads} of {found.probs.shape[2]:,} heads"
    figure = new_figure(height=images * (len(shown) * 0.36 + 0.2) + 0.3)
    parts = np.atleast_1d(np.array(figure.subfigures(images, 1)))
    for part, image, query, probs in zip(parts, found.images, found.queries, found.probs, strict=True):
        left, right = part.subfigures(1, 2, width_ratios=[1, 2.6])
        axis = left.subplots()
        axis.imshow(image, interpolation="nearest")
        scale = image.shape[0] / probs.shape[2]
        _frame_query(axis, (query + 0.5) * scale - 0.5, scale)
        _bare(axis)
        axes = right.subplots(len(shown), heads, squeeze=False)
        for row, layer in enumerate(shown):
            for head in range(heads):
                _draw_map(axes[row, head], probs[layer, head], query, probs[layer, head].max())
            axes[row, 0].set_ylabel(f"layer {layer + 1}", fontsize=5.5, rotation=0, labelpad=11, va="center")
    set_title(figure, title)
    return figure


def _grid(title: str, probs: Array, query: tuple[int, int], peaks: Array) -> Figure:
    """Draw maps; each head is darkest at its peak (L, N), which is printed below it."""
    layers, heads, rows, columns = probs.shape
    if layers * heads > MOST_PANELS:
        return _mosaic(title, probs, query, peaks)
    side = (COLUMN - 0.45) / heads
    figure = new_figure(height=layers * (side * rows / columns + 0.13) + 0.42)
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            peak = peaks[layer, head]
            _draw_map(axes[layer, head], probs[layer, head], np.array(query), peak)
            text = f"{peak:.{2 if peak >= 0.095 else 3}f}".lstrip("0")
            axes[layer, head].set_xlabel(text, fontsize=5.5, labelpad=1)
        axes[layer, 0].set_ylabel(f"layer {layer + 1}", fontsize=7)
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    set_title(figure, title)
    return figure


def _mosaic(title: str, probs: Array, query: tuple[int, int], peaks: Array) -> Figure:
    """Draw the heads as tiles of one image, each darkest at its peak (L, N), layer below layer."""
    layers, heads, rows, columns = probs.shape
    high, wide = rows + 1, columns + 1  # of a tile with its margin; a layer has one more below it
    width = COLUMN - 0.6
    fit = max(1, int(MOST_INCHES / width * PER_ROW * wide / high))  # rows of tiles
    lines = min(-(-heads // PER_ROW), fit)  # of a layer
    shown, most = min(layers, fit // lines), min(heads, lines * PER_ROW)
    if (shown, most) != (layers, heads):
        title += f": the first {most:,} of {heads:,} heads in the first {shown:,} of {layers:,} layers"
    image = np.full((shown * (lines * high + 1), PER_ROW * wide), np.nan)
    corners = []
    for layer, head in np.ndindex(shown, most):
        tile = probs[layer, head].astype(np.float64)
        if not np.isnan(tile).any():
            top, left = layer * (lines * high + 1) + head // PER_ROW * high, head % PER_ROW * wide
            image[top : top + rows, left : left + columns] = tile / max(float(peaks[layer, head]), 1e-300)
            corners.append((top, left))
    figure = new_figure(height=width * image.shape[0] / image.shape[1] + 0.42)
    axis = figure.subplots()
    axis.imshow(image, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    frames = np.array(corners)[:, None] + query + np.array([*FRAME / 2, (np.nan, np.nan)])
    axis.plot(frames[..., 1].ravel(), frames[..., 0].ravel(), color=QUERY, linewidth=0.5)
    axis.set(xticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    middles = (np.arange(shown) + 0.5) * (lines * high + 1) - 1
    axis.set_yticks(middles, [f"layer {layer + 1}" for layer in range(shown)], fontsize=7)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    set_title(figure, title)
    return figure


def _draw_map(axis: Axes, probs: Array, query: Array, peak: float) -> None:
    """Draw one head, darkest at this probability."""
    _bare(axis)
    if np.isnan(probs).any():
        axis.set_axis_off()
        return
    values = probs.astype(np.float64)
    axis.imshow(values, cmap="Blues", vmin=0, vmax=peak, interpolation="nearest")
    _frame_query(axis, query, 1)


def _frame_query(axis: Axes, query: Array, scale: float) -> None:
    row, column = query
    corners = FRAME * scale / 2
    axis.plot(column + corners[:, 0], row + corners[:, 1], color=QUERY, linewidth=0.7)


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=True, linewidth=0.3)


def _center(probs: Array) -> tuple[int, int]:
    return probs.shape[2] // 2, probs.shape[3] // 2
