"""Names and labels of runs in dashboards. All labels are part of the configuration, and flat."""

from typing import Any

from attnconv.config import Config, flatten, to_plain
from attnconv.runs.folder import run_name


def labels(config: Config) -> dict[str, Any]:
    """Return the labels to group and filter runs by: W&B cannot group by parts of a setting."""
    return {
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "fraction": config.data.fraction,
        "seed": config.seed,
        "name": config.name,
    }


def flat_config(config: Config) -> dict[str, Any]:
    """Return all settings under their dotted keys, and the labels."""
    return flatten(to_plain(config)) | labels(config)


def group(config: Config) -> str:
    """Return the name of the group of runs that differ only in the seed."""
    return run_name(config).rpartition("/")[0]


def display_name(config: Config) -> str:
    """Return the name of a run in dashboards."""
    return displayed(run_name(config))


def displayed(run: str) -> str:
    """Return the parts of a run's name, seed and model first, because dashboards truncate the end of names."""
    study, model, kind, fraction, seed = run.split("/")
    return f"{seed} {model} {fraction} {kind} {study}"
