"""Turn the arguments of a W&B sweep's trial into arguments that Hydra reads.

`wandb agent` writes None for null and quotes nothing. A preempted trial returns with its whole configuration as
arguments, labels included (attnconv.runs.adapter). Arguments that equal the composed value are dropped, so that
settings without an effect do not count as set by the user.
"""

import os
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from attnconv.config import CONFIGS
from attnconv.settings.composition import composed
from attnconv.settings.explain import in_quotes

LABELS = {"fraction": "data.fraction"}  # labels that are neither a setting nor a choice of files, and what they repeat


def trial_arguments(overrides: list[str], config_dir: str | None = None) -> list[str]:
    """Return overrides that compose the run that the agent asks for, with its own run folder.

    Args:
        overrides: those of the command, and those that the agent inserts for ${args_no_hyphens}.
        config_dir: a folder of the user's own files, as for --config-dir.
    """
    pairs = [override.partition("=")[::2] for override in overrides]
    files = {key for key, _ in pairs if (CONFIGS / key).is_dir()}
    settings = {key: value for key, value in pairs if key not in files}
    for label, repeated in LABELS.items():  # alone, it is a mistake that Hydra refuses
        if label in settings and settings[label] == settings.get(repeated):
            del settings[label]
    # The label of a restarted trial, such as model=NAME next to model.name=NAME, need not name a file. Hydra refuses
    # any other choice that does not.
    labels = {f"{key}={value}" for key, value in pairs if key in files and value == settings.get(f"{key}.name")}
    folders = [CONFIGS, *([Path(config_dir)] if config_dir else [])]
    known, wrong = [], []
    for key, value in pairs:
        if any((folder / key / f"{value}.yaml").is_file() for folder in folders):
            known.append((key, f"{key}={value}"))
        elif key in files and f"{key}={value}" not in labels:
            wrong.append((key, f"{key}={value}"))
    # A label such as recipe=modern repeats a choice of the command, which comes first; a wrong choice must not hide.
    choices = dict([*reversed(known), *wrong])
    kept = {key: _readable(key, value) for key, value in settings.items() if key.startswith("hydra.")}
    own = [f"hydra.searchpath=[{in_quotes(os.path.abspath(config_dir))}]"] if config_dir else []
    for _ in range(2):  # a kept setting may change the default of another one
        found = composed([*choices.values(), *kept.values(), *own])
        missing = [key for key, value in settings.items() if key not in kept and not _says(found, key, value)]
        kept |= {key: _readable(key, settings[key]) for key in missing}
    if "name" not in settings and found.name == "default":
        kept["name"] = f"name=trial_{os.environ.get('WANDB_RUN_ID', os.environ['WANDB_SWEEP_ID'])}"
    return [*choices.values(), *kept.values()]


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
