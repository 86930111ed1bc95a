"""What dashboards call a run, and by what they sort it: every label is part of the configuration, and flat."""

from typing import Any

from attnconv.config import Config, flatten, to_plain
from attnconv.runs.folder import run_name


def labels(config: Config) -> dict[str, Any]:
    """Return what runs are grouped and filtered by, under one name each: W&B cannot group by parts of a setting."""
    return {
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "fraction": config.data.fraction,
        "seed": config.seed,
        "name": config.name,
    }


def flat_config(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted key, and the labels."""
    return flatten(to_plain(config)) | labels(config)


def group(config: Config) -> str:
    """Return the name that runs share which differ in nothing but the seed."""
    return run_name(config).rpartition("/")[0]


def display_name(config: Config) -> str:
    """Return what dashboards call a run."""
    return displayed(run_name(config))


def displayed(run: str) -> str:
    """Return the parts of a run's name, seed and model first: dashboards cut names off at their end."""
    study, model, kind, fraction, seed = run.split("/")
    return f"{seed} {model} {fraction} {kind} {study}"
