"""The command that repeats a run, from its configuration."""

import json
import re
import shlex
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf

from attnconv.config import CONFIGS, flatten, freeze, to_plain
from attnconv.runs.identity import free_to_change, with_defaults
from attnconv.settings.composition import composed
from attnconv.settings.explain import in_quotes, quoted

# The groups of configs/, each with a file that stands in for one that is not there, such as a user's own.
GROUPS = {"model": "conv3x3", "scale": "paper", "recipe": "paper", "data": "cifar10"}


def command_of(config: dict[str, Any]) -> str:
    """Return `python train.py ...` with all settings in which a config.yaml differs from the composed groups.

    A file that is not in configs/ is named, and its settings are left out.
    """
    chosen, own = _chosen_and_own(config)
    return " ".join(["python train.py", *chosen, *own.values()])


def own_settings(config: dict[str, Any]) -> list[str]:
    """Return the keys of the settings in which a config.yaml differs from the composed groups."""
    return list(_chosen_and_own(config)[1])


def _chosen_and_own(config: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the groups, as written on a command line, and the settings that differ from theirs, by key."""
    settings = with_defaults(flatten(config))
    names = {group: config[group]["name"] for group in GROUPS} | {"model": _model_file(config["model"]["name"])}
    own = [group for group, name in names.items() if not (CONFIGS / group / f"{name}.yaml").exists()]
    missing = [key for group in ("model", "data") for key in _without_default(group, names[group])]
    needed = {key: _written(key, settings[key]) for key in missing}
    known = [f"{group}={GROUPS[group] if group in own else name}" for group, name in names.items()]
    # Settings of other groups may follow from those of a file that is not there.
    given = [
        _for_hydra(key, value)
        for key, value in settings.items()
        if key in missing
        or (_group(key) in own and _group(key) != "model" and not _follows(key) and key != "data.source")
    ]
    today = _composed(*known, *given)
    different = {
        key: _written(key, value)
        for key, value in settings.items()
        if key in today and today[key] != value and not free_to_change(key) and not _follows(key)
        and key not in missing and _group(key) not in own
    }  # fmt: skip
    chosen = [f"{group}={name}" for group, name in names.items() if (group, name) != ("data", "cifar10")]
    return chosen, needed | different


def _model_file(name: str) -> str:
    """Return the file of configs/model for a model of this name: all timm models come from one."""
    return "timm" if name.startswith("timm_") else name


@cache
def _without_default(group: str, name: str) -> tuple[str, ...]:
    """Return the settings that a file of configs/ leaves to the command line; none for a file that is not there."""
    path = CONFIGS / group / f"{name}.yaml"
    settings = flatten(OmegaConf.to_container(OmegaConf.load(path)), f"{group}.") if path.exists() else {}
    return tuple(key for key, value in settings.items() if value == MISSING)


def _group(key: str) -> str:
    return key.partition(".")[0]


def _follows(key: str) -> bool:
    """Return whether a key follows from others: a group's name, or code."""
    return key in {f"{group}.name" for group in GROUPS} or key.rpartition(".")[2].startswith("_")


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    # Without the checks of a command line: a file may set what has no effect.
    return flatten(to_plain(freeze(composed(overrides))))


def _for_hydra(key: str, value: Any) -> str:
    """Return KEY=VALUE for Hydra."""
    return f"{key}={in_quotes(value) if isinstance(value, str) else json.dumps(value)}"


def _written(key: str, value: Any) -> str:
    """Return KEY=VALUE for a shell; text that Hydra would read as something else is quoted for it, too."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    if isinstance(value, str) and not _is_read_as(f"{key}={text}", value):
        return quoted(f"{key}={text}")
    safe = re.fullmatch(r"[\w./~+-]+", text)
    return f"{key}={text if safe else shlex.quote(text)}"


def _is_read_as(override: str, value: str) -> bool:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return not parsed.is_sweep_override() and parsed.value() == value
