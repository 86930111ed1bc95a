"""The color and the marker of each model, in all figures and on all pages.

Most colors are those of Okabe and Ito (2008), which color-blind readers can distinguish. If more models share a figure,
their markers differ as well. Heads have no names and use a separate cycle of colors.
"""

from typing import NamedTuple


class Style(NamedTuple):
    """The style of a model: a color as #rrggbb and a matplotlib marker."""

    color: str
    marker: str


BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"
GRAY, BROWN, OLIVE, WINE = "#7f7f7f", "#8c564b", "#8a8a00", "#882255"

STYLES = {
    "conv3x3": Style(BLUE, "s"),
    "conv5x5": Style(BLUE, "p"),
    "conv7x7": Style(BLUE, "h"),
    "resnet10": Style(GRAY, "D"),
    "resnet18": Style(GRAY, "d"),
    "se_resnet18": Style(GRAY, "v"),
    "nonlocal_resnet18": Style(GRAY, "P"),
    "vgg11_bn": Style(GRAY, "^"),
    "sa_quadratic": Style(VERMILION, "o"),
    "sa_quadratic_generalized": Style(BROWN, "h"),
    "sa_quadratic_shifts": Style(OLIVE, "P"),
    "sa_quadratic_copied": Style(BROWN, "D"),
    "sa_quadratic_random": Style(BROWN, "X"),
    "sa_quadratic_pruned": Style(ORANGE, "h"),
    "sa_quadratic_content": Style(VERMILION, "v"),
    "sa_learned": Style(GREEN, "^"),
    "sa_learned_key": Style(GREEN, "v"),
    "sa_learned_content": Style(PURPLE, "v"),
    "sa_content": Style(PURPLE, "X"),
    "sa_distance": Style(SKY, "P"),
    "sa_sinusoidal": Style(ORANGE, "X"),
    "sa_sinusoidal_content": Style(ORANGE, "v"),
    "sa_gated": Style(SKY, "v"),
    "local_attention": Style(WINE, "o"),
    "bigbird": Style(WINE, "^"),
    "bigbird_window": Style(WINE, "s"),
    "random_attention": Style(WINE, "X"),
    "global_attention": Style(PURPLE, "P"),
    "depthwise_global": Style(OLIVE, "s"),
    "mlp_mixer": Style(OLIVE, "^"),
    "locally_connected": Style(BLACK, "s"),
    "fully_connected": Style(BLACK, "^"),
    "involution": Style(BLACK, "o"),
    "vit": Style(YELLOW, "o"),
}
OTHER = Style(BROWN, "*")  # an external model

HEADS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, WINE, OLIVE, GRAY)  # nine; more heads repeat the cycle


def style_of(model: str) -> Style:
    """Return the style of a model."""
    return STYLES.get(model, OTHER)
