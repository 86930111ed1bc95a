"""Settings that somebody asked for and that would do nothing, given the others.

Only what a command line sets is asked for. A recipe may bring what one model or data set has no use for.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attnconv.errors import ConfigError

if TYPE_CHECKING:
    from attnconv.config import Config

GAUSSIAN = ("QuadraticEncoding", "GeneralizedQuadraticEncoding", "GatedAttention")
OF_SWEEPS = ("collected", "retry_failed")
OF_PAIRS = ("task", "distance", "clutter", "train_images", "test_images", "images_seed")


def asked_for(key: str) -> bool:
    """Whether the command line of this process sets `key`."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and any(_key(asked) == key for asked in HydraConfig.get().overrides.task)


def require_effect(runs: Sequence[tuple["Config", Sequence[str]]]) -> None:
    """Check that every override does something in at least one of the runs that have it.

    Args:
        runs: configurations, each with the overrides that it was composed from.

    Raises:
        ConfigError: naming the override, and what keeps it from having an effect.
    """
    idle: dict[str, str] = {}
    effective: set[str] = set()
    for config, overrides in runs:
        reasons = dict(idle_settings(config))
        idle |= {asked: reasons[_key(asked)] for asked in overrides if _key(asked) in reasons}
        effective |= {asked for asked in overrides if _key(asked) not in reasons}
    for asked, reason in idle.items():
        if asked not in effective:
            raise ConfigError(f"{asked} does nothing: {reason}")


def refuse_of_sweeps(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that only a sweep heeds."""
    for override in overrides:
        if _key(override) in OF_SWEEPS:
            raise ConfigError(f"{override} does nothing in a single run: it is of sweeps; add -m, or leave it out")


def idle_settings(config: "Config") -> Iterator[tuple[str, str]]:
    """The settings without an effect, and why."""
    yield from _idle_data(config)
    yield from _idle_recipe(config)
    if config.match is None:
        yield "match_model", "match is null; say match=parameters or match=flops"


def _idle_data(config: "Config") -> Iterator[tuple[str, str]]:
    data = config.data
    if not data.flip:
        if config.eval_mirrored:
            yield "eval_mirrored", "data.flip=false, so that mirror images are another task; say data.flip=true"
        if data.alternating_flip:
            yield "data.alternating_flip", "data.flip=false; say data.flip=true"
    if data.padding_mode != "constant" and data.crop_padding == 0:
        yield "data.padding_mode", "data.crop_padding=0; say data.crop_padding=4"
    if data.source != "pairs":
        for name in OF_PAIRS:
            yield f"data.{name}", f"it is of pairs, and this is data={data.name}; say data=pairs"


def _idle_recipe(config: "Config") -> Iterator[tuple[str, str]]:
    recipe = config.recipe
    if recipe.schedule != "step":
        reason = f"recipe.schedule={recipe.schedule}; say recipe.schedule=step"
        yield "recipe.decay_factor", reason
        if recipe.milestones:
            yield "recipe.milestones", reason
    else:
        yield "recipe.lr_changes", "recipe.schedule=step changes it at recipe.milestones"
        if recipe.warmup:
            yield "recipe.warmup", "recipe.schedule=step has none; say recipe.schedule=cosine"
        if not recipe.milestones:
            yield "recipe.decay_factor", "recipe.milestones=[]: the learning rate never falls"
        elif recipe.milestones[-1] > config.epochs:
            yield "recipe.milestones", f"not all of it: training ends at epochs={config.epochs}"
    if recipe.optimizer != "muon":
        yield "recipe.adamw_lr", f"recipe.optimizer={recipe.optimizer} has one learning rate; say recipe.lr="
    if recipe.optimizer == "adamw":
        yield "recipe.momentum", "recipe.optimizer=adamw has its own"
    if recipe.cropped_from is not None and recipe.cropped_from > max(recipe.sizes, default=0):
        yield "recipe.cropped_from", f"no size of recipe.sizes={recipe.sizes} is that large"
    if recipe.centers_lr is not None and not _may_have_gaussian_heads(config.model):
        yield "recipe.centers_lr", f"model={config.model['name']} has no Gaussian heads to train"


def _may_have_gaussian_heads(node: dict[str, Any]) -> bool:
    """Whether a `model` node has a part with centers and spreads, or one that this package does not know."""
    target = str(node.get("_target_", "attnconv."))
    if target.endswith(".frozen_heads"):
        return False
    if not target.startswith("attnconv.") or target.rpartition(".")[2] in GAUSSIAN:
        return True
    return any(_may_have_gaussian_heads(part) for part in node.values() if isinstance(part, dict))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")
