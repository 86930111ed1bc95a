"""Accuracies over seeds: one dot per seed, and Student's 95% interval of the mean for three or more seeds."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnconv.report.colors import style_of
from attnconv.report.figures.data import ByImages, Group, Groups, Needs
from attnconv.report.figures.style import new_figure, set_title, styled
from attnconv.report.stats import shown_interval


@styled
def by_images(protocols: list[ByImages]) -> Figure:
    """Draw accuracy against the number of training images, one panel per protocol: lines of means, bands of 95%."""
    figure = new_figure(height=3.1)
    axes = np.atleast_1d(np.array(figure.subplots(1, len(protocols), sharey=True)))
    for axis, protocol in zip(axes, protocols, strict=True):
        draw_protocol(axis, protocol)
    axes[0].set_ylabel("test accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), columnspacing=1.2)
    return figure


def draw_protocol(axis: Axes, protocol: ByImages) -> None:
    """Draw one protocol; dots are slightly offset, so that those of the models do not overlap."""
    count = len(protocol.accuracies)
    for place, (model, by_images) in enumerate(protocol.accuracies.items()):
        color, marker = style_of(model)
        apart = 1.035 ** (place - (count - 1) / 2)
        sizes = sorted(by_images)
        values = [[100 * value for value in by_images[size].values()] for size in sizes]
        axis.plot(sizes, [np.mean(row) for row in values], color=color, label=model, linewidth=1.1)
        for size, row in zip(sizes, values, strict=True):
            axis.plot(
                [size * apart] * len(row), row, marker, color=color, markersize=2.4, linestyle="", markeredgewidth=0
            )
        bands = [shown_interval(row) for row in values]
        known = np.array([band is not None for band in bands])
        low = [band.low if band else np.nan for band in bands]
        high = [band.high if band else np.nan for band in bands]
        axis.fill_between(sizes, low, high, where=known.tolist(), color=color, alpha=0.13, linewidth=0)
    ticks = sorted({size for by_images in protocol.accuracies.values() for size in by_images})
    axis.set(xscale="log", xlabel="training images", title=protocol.title)
    axis.set_xticks(ticks, [short(tick) for tick in ticks])
    axis.minorticks_off()


def short(images: int) -> str:
    """Return 12500 as 12.5k."""
    return f"{images / 1000:g}k" if images >= 1000 else str(images)


@styled
def images_needed(found: list[Needs]) -> Figure:
    """Draw images-needed ratios against accuracy, one panel per protocol, with 95% intervals."""
    figure = new_figure(height=2.8)
    axes = np.atleast_1d(np.array(figure.subplots(1, len(found), sharey=True)))
    models = list(dict.fromkeys(need.model for needs in found for need in needs.needs))
    for axis, needs in zip(axes, found, strict=True):
        _draw_needs(axis, needs, models)
        axis.set_title(needs.title)
    axes[0].set_ylabel("images needed, relative to conv3x3")
    handles = [
        axes[0].plot([], [], style_of(model).marker, color=style_of(model).color, markersize=4)[0] for model in models
    ]
    figure.legend(handles, models, loc="outside lower center", ncols=min(5, len(models)))
    return figure


def _draw_needs(axis: Axes, needs: Needs, models: list[str]) -> None:
    levels = sorted({need.accuracy for need in needs.needs})
    axis.axhline(1, color="black", linewidth=0.8)
    for need in needs.needs:
        color, marker = style_of(need.model)
        x = levels.index(need.accuracy) + 0.14 * (models.index(need.model) - (len(models) - 1) / 2)
        if need.ends:
            axis.plot([x, x], need.ends, color=color, alpha=0.3, linewidth=4, solid_capstyle="butt")
        axis.plot(x, need.ratio, marker, color=color, markersize=4, markeredgewidth=0)
    axis.set_xticks(range(len(levels)), [f"{level:.0%}" for level in levels])
    ticks = [tick for tick in (0.5, 0.7, 1, 1.4, 2, 2.8, 4) if axis.get_ylim()[0] <= tick <= axis.get_ylim()[1]]
    axis.set(yscale="log", xlabel="for a test accuracy of", xlim=(-0.6, len(levels) - 0.4))
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", visible=False)


@styled
def compared(groups: Groups) -> Figure:
    """Draw one panel per set of groups and one row per group.

    Dots for seeds, a stroke for the mean, a bar for its 95%.
    """
    rows = max(len(panel) for panel in groups.panels.values())
    figure = new_figure(height=0.24 * rows + 0.95)
    alike = len({tuple(group.label for group in panel) for panel in groups.panels.values()}) == 1
    axes = np.atleast_1d(np.array(figure.subplots(1, len(groups.panels), sharey=alike)))
    for axis, (title, panel) in zip(axes, groups.panels.items(), strict=True):
        _draw_groups(axis, panel)
        axis.set(title=title, xlabel="test accuracy (%)")
    set_title(figure, groups.title)
    return figure


def _draw_groups(axis: Axes, groups: list[Group]) -> None:
    for row, group in enumerate(groups):
        color, marker = style_of(group.model)
        values = [100 * value for value in group.accuracies.values()]
        bar = shown_interval(values)
        if bar:
            axis.plot([bar.low, bar.high], [row, row], color=color, alpha=0.25, linewidth=6, solid_capstyle="butt")
        axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=color, linewidth=1.2)
        axis.plot(values, [row] * len(values), marker, color=color, markersize=3.2, markeredgewidth=0)
    axis.set_yticks(range(len(groups)), [group.label for group in groups])
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
