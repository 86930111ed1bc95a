"""All models of timm, by name, for the data set's images."""

from typing import Any

import torch
from torch import nn

from attnconv.errors import ConfigError, nearest, reason_of


def check_timm_name(name: str) -> None:
    """Raise ConfigError for a name that is not a timm model; the message suggests the nearest."""
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}{nearest(name, timm.list_models(), 'timm.list_models()')}")
    architecture, _, tag = name.partition(".")
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise ConfigError(f"timm has no model {name!r}; set model.timm_name={' or '.join([architecture, *known[:2]])}")


def timm_model(image_shape: tuple[int, int, int], classes: int, timm_name: str) -> nn.Module:
    """Return timm's model of that name, untrained: images (B, C, height, width) -> logits (B, classes).

    Models that are built for one image size are built for this size.

    Raises:
        ConfigError: timm has no such model; the message suggests the nearest.
        ValueError: the model cannot take images of this size.
    """
    import timm

    check_timm_name(timm_name)
    channels, height, width = image_shape
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    try:
        try:
            model = timm.create_model(timm_name, **arguments, img_size=(height, width))
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            model = timm.create_model(timm_name, **arguments)
        with torch.no_grad():
            shape = model.eval()(torch.zeros(1, *image_shape)).shape
    # A model may refuse a size in any of its layers, with any error.
    except Exception as error:
        reason = reason_of(error)
        raise ValueError(f"timm's {timm_name} cannot take images of {height}x{width} pixels ({reason})") from error
    if shape != (1, classes):
        raise ValueError(f"timm's {timm_name} gives {tuple(shape)} for one image, not logits of {classes} classes")
    return model.train()
