"""README's figure: accuracy by number of images, what heads look like, and the theorem."""

import numpy as np
from matplotlib.figure import Figure

from attnconv.report.figures.accuracies import draw_protocol
from attnconv.report.figures.data import Overview
from attnconv.report.figures.gaussians import draw_layer, frame
from attnconv.report.figures.illustrations import draw_theorem
from attnconv.report.figures.style import new_figure, styled


@styled
def overview(found: Overview) -> Figure:
    """Draw the three parts, legible at a width of 800 pixels."""
    figure = new_figure(height=4.1, width=6)
    top, bottom = np.array(figure.subfigures(2, 1, height_ratios=[1, 1.9]))
    draw_theorem(top.subplots())
    top.suptitle("Nine attention heads, one per shift, are a 3x3 convolution", fontsize=8.5, weight="bold")
    left, right = np.array(bottom.subfigures(1, 2, width_ratios=[1.1, 1]))
    axis = left.subplots()
    draw_protocol(axis, found.protocol)
    axis.set_ylabel("test accuracy (%)")
    axis.legend(loc="lower right", fontsize=6.5)
    left.suptitle("How much data each needs", fontsize=8.5, weight="bold")
    panel = right.subplots()
    wider = len(draw_layer(panel, found.heads, found.layer - 1, frame(found.heads))["50%"])
    about = [found.heads.title.partition(", test accuracy")[0]]
    about += ["solid ring: 50% of a head's attention; dotted: 90%"]
    about += [f"wider than the map, not drawn: {wider} of {found.heads.centers.shape[1]}"] * bool(wider)
    panel.set_title("\n".join(about), fontsize=6.5)
    panel.set(xlabel="column shift (positions)", ylabel="row shift (positions)")
    right.suptitle(f"Where the heads of layer {found.layer} look", fontsize=8.5, weight="bold")
    return figure
