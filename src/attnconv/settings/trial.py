"""Turn the arguments of a W&B sweep's trial into arguments that Hydra reads.

`wandb agent` writes None for null and quotes nothing. A preempted trial returns with its whole configuration as
arguments, labels included (attnconv.runs.adapter). Arguments that equal the composed value are dropped, so that
settings without an effect do not count as set by the user.
"""

import os
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from attnconv.config import CONFIGS
from attnconv.settings.composition import composed
from attnconv.settings.explain import in_quotes

LABELS = ("fraction",)  # labels that are neither a setting nor a choice of files


def trial_arguments(overrides: list[str]) -> list[str]:
    """Return overrides that compose the run that the agent asks for, with its own run folder.

    Args:
        overrides: those of the command, and those that the agent inserts for ${args_no_hyphens}.
    """
    pairs = [override.partition("=")[::2] for override in overrides]
    files = {key for key, _ in pairs if (CONFIGS / key).is_dir()}
    # A label such as recipe=modern repeats a choice of the command, which comes first.
    choices = {key: f"{key}={value}" for key, value in reversed(pairs) if _is_choice(key, value)}
    settings = {key: value for key, value in pairs if key not in files and key not in LABELS}
    kept = {key: _readable(key, value) for key, value in settings.items() if key.startswith("hydra.")}
    for _ in range(2):  # a kept setting may change the default of another one
        found = composed([*choices.values(), *kept.values()])
        missing = [key for key, value in settings.items() if key not in kept and not _says(found, key, value)]
        kept |= {key: _readable(key, settings[key]) for key in missing}
    if "name" not in settings and found.name == "default":
        kept["name"] = f"name=trial_{os.environ.get('WANDB_RUN_ID', os.environ['WANDB_SWEEP_ID'])}"
    return [*choices.values(), *kept.values()]


def _is_choice(key: str, value: str) -> bool:
    """Return whether `key=value` names a config file; the label of a timm model, for example, does not."""
    return (CONFIGS / key / f"{value}.yaml").is_file()


def _says(config: DictConfig, key: str, value: str) -> bool:
    """Return whether a composed configuration already has the value."""
    try:
        found = OmegaConf.select(config, key)
    except InterpolationToMissingValueError:  # it refers to another setting that has no value yet
        return False
    return bool((OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == _parsed(key, value))


def _readable(key: str, value: str) -> str:
    """Return an override that Hydra reads as one value: null for None, quoted where needed."""
    value = "null" if value == "None" else value
    try:
        if not OverridesParser.create().parse_override(f"{key}={value}").is_sweep_override():
            return f"{key}={value}"
    except HydraException:
        pass
    return f"{key}={in_quotes(value)}"


def _parsed(key: str, value: str) -> Any:
    return OverridesParser.create().parse_override(_readable(key, value)).value()
