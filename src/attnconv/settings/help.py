"""The texts of `python train.py --help`; configs/config.yaml places them in Hydra's template."""

import textwrap
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from attnconv.config import Config

# The most important settings, in the order of --help. src/attnconv/config.py lists the rest.
COMMON = ("model", "scale", "recipe", "seed", "epochs", "data.fraction", "match", "name")
# Hidden from --help: model and recipe together choose the first; the second holds files for `wandb sweep`.
HIDDEN = ("recipe_for_model", "wandb")
WIDTH = 118


def register_help() -> None:
    """Register the texts with configs/config.yaml, as `${help_settings:}` and `${help_groups:}`."""
    OmegaConf.register_new_resolver("help_settings", common_settings, replace=True)
    OmegaConf.register_new_resolver("help_groups", group_options, replace=True)


def common_settings() -> str:
    """Return one line for each common setting: name, default, meaning and choices."""
    meanings = {"model": "the token mixer and its network", "scale": "size of the network and of its map",
                "recipe": "optimizer, schedule and regularization"}  # fmt: skip
    lines = []
    for key in COMMON:
        known = _knob(key)
        default = "NAME" if key in meanings else "null" if known.default is None else known.default
        choices = known.metadata.get("choices")
        meaning = meanings.get(key, known.metadata.get("meaning", "")) + (f" ({', '.join(choices)})" if choices else "")
        lines.append(f"  {f'{key}={default}':20} {meaning}")
    return "\n".join(lines)


def group_options() -> str:
    """Return the groups of configs/ and of --config-dir with their options, without the hidden groups."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra" and group not in HIDDEN]
    texts = (f"  {group}: {', '.join(loader.get_group_options(group))}" for group in sorted(groups))
    return "\n".join(textwrap.fill(text, WIDTH, subsequent_indent="    ") for text in texts)


def _knob(key: str) -> "Field[Any]":
    """Return the field of the schema that a dotted key names."""
    schema: Any = Config
    *parts, leaf = key.split(".")
    for part in parts:
        schema = {field.name: field.default_factory for field in fields(schema)}[part]
        assert is_dataclass(schema)
    return {field.name: field for field in fields(schema)}[leaf]
