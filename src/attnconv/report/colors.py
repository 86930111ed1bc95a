"""One color and one marker per model, in every figure and on every page.

Most are those of Okabe and Ito (2008), which color-blind readers can tell apart; where more models meet in one figure,
markers tell them apart as well. Heads have a cycle of their own, for they have no names.
"""

from typing import NamedTuple


class Look(NamedTuple):
    """How a model is drawn: a color as #rrggbb and a marker of matplotlib."""

    color: str
    marker: str


BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"
GRAY, BROWN, OLIVE, WINE = "#7f7f7f", "#8c564b", "#8a8a00", "#882255"

LOOKS = {
    "conv3x3": Look(BLUE, "s"),
    "conv5x5": Look(BLUE, "p"),
    "conv7x7": Look(BLUE, "h"),
    "resnet10": Look(GRAY, "D"),
    "resnet18": Look(GRAY, "d"),
    "se_resnet18": Look(GRAY, "v"),
    "nonlocal_resnet18": Look(GRAY, "P"),
    "vgg11_bn": Look(GRAY, "^"),
    "sa_quadratic": Look(VERMILION, "o"),
    "sa_quadratic_generalized": Look(BROWN, "h"),
    "sa_quadratic_shifts": Look(BROWN, "s"),
    "sa_quadratic_copied": Look(BROWN, "D"),
    "sa_quadratic_random": Look(BROWN, "X"),
    "sa_quadratic_pruned": Look(ORANGE, "h"),
    "sa_quadratic_content": Look(VERMILION, "v"),
    "sa_learned": Look(GREEN, "^"),
    "sa_learned_key": Look(GREEN, "v"),
    "sa_learned_content": Look(PURPLE, "v"),
    "sa_content": Look(PURPLE, "X"),
    "sa_distance": Look(SKY, "P"),
    "sa_sinusoidal": Look(ORANGE, "X"),
    "sa_sinusoidal_content": Look(ORANGE, "v"),
    "sa_gated": Look(SKY, "v"),
    "local_attention": Look(WINE, "o"),
    "bigbird": Look(WINE, "^"),
    "bigbird_window": Look(WINE, "s"),
    "random_attention": Look(WINE, "X"),
    "global_attention": Look(PURPLE, "P"),
    "depthwise_global": Look(OLIVE, "s"),
    "mlp_mixer": Look(OLIVE, "^"),
    "locally_connected": Look(BLACK, "s"),
    "fully_connected": Look(BLACK, "^"),
    "involution": Look(BLACK, "o"),
    "vit": Look(YELLOW, "o"),
}
OTHER = Look(BROWN, "*")  # a model of somebody else's

HEADS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, WINE, OLIVE, GRAY)  # nine; more heads go round again


def look(model: str) -> Look:
    """How to draw a model of that name."""
    return LOOKS.get(model, OTHER)


def head_color(head: int) -> str:
    """The color of head `head`, from 0."""
    return HEADS[head % len(HEADS)]
