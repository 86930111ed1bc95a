"""The part of result.json that does not depend on the outcome: settings, costs, hardware, versions, data."""

import math
from typing import Any

from attnconv.models.targets import import_target
from attnconv.runs.provenance import code_of_user, commit, describe_cpu, describe_device, versions
from attnconv.runs.records import FORMAT
from attnconv.settings.limits import from_elsewhere
from attnconv.training.setup import Setup


def describe(setup: Setup) -> dict[str, Any]:
    """Return the part of result.json that does not depend on the outcome."""
    config, (head, dirty) = setup.config, commit()
    code = _code(setup)
    if None in code.values() and not dirty:
        dirty = None
    return {
        "format": FORMAT,
        "name": config.name,
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "data": config.data.name,
        "seed": config.seed,
        "fraction": config.data.fraction,
        "equal": config.data.equal,
        "subset_seed": config.data.subset_seed,
        "holdout": config.data.holdout,
        "epochs": config.epochs,
        "train_images": len(setup.data.train),
        "steps": config.epochs * math.ceil(setup.data.epoch_images / config.recipe.batch_size),
        **setup.costs,
        "precision": setup.precision,
        "device": describe_device(setup.device),
        "cpu": describe_cpu(),
        "processes": setup.processes.count,
        "commit": head,
        "dirty": dirty,
        "versions": versions(),
        **({"code": code} if code else {}),
        "data_origin": setup.data.origin,
        "data_hash": setup.data.source_sha256,
        "subset_hash": setup.data.subset_sha256,
        **_matched(setup),
    }


# What may change between two starts of a run.
OF_A_START = ("device", "cpu", "processes", "commit", "dirty", "versions", "code")


def start_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a description that may change when the run resumes."""
    return {key: description[key] for key in OF_A_START if key in description}


def over_starts(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return whether any start of a run had uncommitted changes, and all starts (`starts`) if they differ.

    `dirty` is None if that is not known of some start. A network of the user, which no commit describes, counts as
    changed if its code differs between two starts.
    """
    dirty = {start["dirty"] for start in starts} | {True for _ in changed_code(starts)}
    found = {"dirty": True if True in dirty else None if None in dirty else False}
    return found | ({"starts": starts} if any(start != starts[0] for start in starts) else {})


def changed_code(starts: list[dict[str, Any]]) -> list[str]:
    """Return the modules of the user's network whose code differs between two starts of a run."""
    codes = [start.get("code") or {} for start in starts]
    names = {name for code in codes for name in code}
    return sorted(name for name in names if len({code[name] for code in codes if name in code}) > 1)


def _code(setup: Setup) -> dict[str, str | None]:
    """Return the code of a network of the user; empty for other networks."""
    if not from_elsewhere(setup.config.model):
        return {}
    target = import_target(setup.config.model["_target_"])
    return code_of_user([target, *(type(module) for module in setup.model.modules())])


def _matched(setup: Setup) -> dict[str, Any]:
    """Return the result of `match`; empty without it."""
    match = setup.match
    if match is None:
        return {}
    widths = {key: match.node[key] for key in ("width", "hidden") if key in match.node}
    budget = {"budget": match.budget, "model": setup.config.match_model, "target": match.target}
    return {"match": {**budget, "achieved": match.achieved, "difference": match.difference, **widths}}
