"""One color and one marker per model, in every figure and on every page.

The first eight are those of Okabe and Ito (2008), which color-blind readers can tell apart; where more models meet in
one figure, markers tell them apart as well. Heads have a cycle of their own, for they have no names.
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
    "conv3x3": Look(BLACK, "s"),
    "resnet10": Look(GRAY, "D"),
    "resnet18": Look(GRAY, "d"),
    "sa_quadratic": Look(BLUE, "o"),
    "sa_learned": Look(GREEN, "^"),
    "sa_learned_content": Look(VERMILION, "v"),
    "sa_distance": Look(PURPLE, "P"),
    "sa_sinusoidal": Look(ORANGE, "X"),
    "sa_quadratic_generalized": Look(SKY, "h"),
    "sa_quadratic_shifts": Look(SKY, "s"),
    "sa_quadratic_copied": Look(SKY, "D"),
    "sa_quadratic_random": Look(SKY, "X"),
    "sa_quadratic_content": Look(BLUE, "v"),
    "sa_sinusoidal_content": Look(ORANGE, "v"),
    "sa_content": Look(VERMILION, "X"),
    "sa_learned_key": Look(GREEN, "v"),
    "sa_gated": Look(PURPLE, "v"),
    "conv5x5": Look(BLACK, "p"),
    "conv7x7": Look(BLACK, "h"),
    "local_attention": Look(WINE, "o"),
    "bigbird": Look(WINE, "^"),
    "bigbird_window": Look(WINE, "s"),
    "random_attention": Look(WINE, "X"),
    "global_attention": Look(VERMILION, "P"),
    "depthwise_global": Look(OLIVE, "s"),
    "mlp_mixer": Look(OLIVE, "^"),
    "locally_connected": Look(BROWN, "s"),
    "fully_connected": Look(BROWN, "^"),
    "involution": Look(BROWN, "o"),
    "vit": Look(YELLOW, "o"),
    "vgg11_bn": Look(GRAY, "^"),
    "se_resnet18": Look(GRAY, "v"),
    "nonlocal_resnet18": Look(GRAY, "P"),
}
OTHER = Look(BROWN, "*")  # a model of somebody else's

HEADS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, WINE, OLIVE, GRAY)  # nine; more heads go round again


def look(model: str) -> Look:
    """How to draw a model of that name."""
    return LOOKS.get(model, OTHER)


def head_color(head: int) -> str:
    """The color of head `head`, from 0."""
    return HEADS[head % len(HEADS)]
