"""The color and the marker of each model, in all figures and on all pages.

Most colors are those of Okabe and Ito (2008), which color-blind readers can distinguish. If more models share a figure,
their markers differ as well. Heads have no names and use a separate cycle of colors.
"""

from typing import NamedTuple


class Look(NamedTuple):
    """The style of a model: a color as #rrggbb and a matplotlib marker."""

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
    "sa_quadratic_shifts": Look(OLIVE, "P"),
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
OTHER = Look(BROWN, "*")  # an external model

HEADS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, WINE, OLIVE, GRAY)  # nine; more heads repeat the cycle


def look(model: str) -> Look:
    """Return the style of a model."""
    return LOOKS.get(model, OTHER)


def head_color(head: int) -> str:
    """Return the color of head `head`, counted from 0."""
    return HEADS[head % len(HEADS)]
