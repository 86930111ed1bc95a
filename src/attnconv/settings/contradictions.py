"""Find settings on the command line that would have no effect, given the other settings.

Recipes may set values that a model or a data set does not use; only the command line is checked.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attnconv.data.root import FROM_FOLDERS
from attnconv.errors import ConfigError
from attnconv.settings.limits import is_ours

if TYPE_CHECKING:
    from attnconv.config import Config

GAUSSIAN = ("QuadraticEncoding", "GeneralizedQuadraticEncoding", "GatedAttention")
WITHOUT_HEADS = (
    "Convolution", "DepthwiseGlobal", "FullyConnected", "Involution", "LocallyConnected", "TokenMlp",
)  # fmt: skip
SIZES = ("layers", "heads", "width", "hidden", "patch", "center_std", "cnn_width")  # of a scale
DROPOUTS = ("dropout", "attention_dropout")  # of a recipe
OF_SWEEPS = ("collected", "retry_failed")
HYDRA_OF_SWEEPS = ("hydra.launcher", "hydra.sweep")  # the latter also of hydra.sweeper
OF_WANDB = ("entity", "tags", "notes", "job_type")
OF_LOGGERS = (*OF_WANDB, "project", "group", "weights", "pictures_every")
OF_PAIRS = ("task", "distance", "clutter", "train_images", "test_images", "images_seed")


def asked_for(key: str) -> bool:
    """Return whether the command line of this process sets `key`."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.initialized() and any(_key(asked) == key for asked in HydraConfig.get().overrides.task)


def require_effect(runs: Sequence[tuple["Config", Sequence[str]]]) -> None:
    """Check that each override has an effect in at least one of the runs that have it.

    Args:
        runs: configurations, each with the overrides that it was composed from.

    Raises:
        ConfigError: an override has no effect, or gives settings the name of others; the message names it and the
            reason.
    """
    idle: dict[str, str] = {}
    effective: set[str] = set()
    for config, overrides in runs:
        _refuse_names_of_others(config, overrides)
        reasons = dict(idle_settings(config))
        idle |= {asked: reasons[_key(asked)] for asked in overrides if _key(asked) in reasons}
        effective |= {asked for asked in overrides if _key(asked) not in reasons}
    for asked, reason in idle.items():
        if asked not in effective:
            raise ConfigError(f"{asked} has no effect: {reason}")


def _refuse_names_of_others(config: "Config", overrides: Sequence[str]) -> None:
    """Raise ConfigError for settings that are given the name of one of our scales or recipes: results show only it."""
    from attnconv.config import CONFIGS

    for part, name in (("scale", config.scale.name), ("recipe", config.recipe.name)):
        given = any(_key(override) == f"{part}.name" for override in overrides)
        if given and f"{part}={name}" not in overrides and (CONFIGS / part / f"{name}.yaml").exists():
            raise ConfigError(
                f"{part}.name={name} is the name of other settings: choose {part}={name}, or another name"
            )


def refuse_of_sweeps(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that only sweeps use."""
    for override in overrides:
        key = _key(override)
        if key in OF_SWEEPS or key.replace("/", ".").startswith(HYDRA_OF_SWEEPS):
            raise ConfigError(f"{override} has no effect in a single run: add -m for a sweep, or leave it out")


def idle_settings(config: "Config") -> Iterator[tuple[str, str]]:
    """Yield the settings without an effect, each with the reason."""
    yield from _idle_data(config)
    yield from _idle_recipe(config)
    yield from _idle_logger(config)
    if config.match is None:
        yield "match_model", "match is null; set match=parameters or match=flops"
    elif "hidden" not in config.model:  # with two widths, both set the proportion that match keeps
        yield "model.width", f"match={config.match} chooses the width; set match=null"


def unused_by_network(config: "Config") -> Iterator[tuple[str, float]]:
    """Yield the sizes of the scale and the dropouts of the recipe that the network does not use, each with its value.

    These are not errors, because all models share the settings. With `match`, the model that sets the budget uses the
    sizes, too.
    """
    networks = [config.model]
    if config.match is not None:
        from attnconv.models.match import model_node  # imports torch

        networks.append(model_node(config.match_model, config))
    for part, names, users in (("scale", SIZES, networks), ("recipe", DROPOUTS, networks[:1])):
        for name in names:
            value = getattr(getattr(config, part), name)
            if not any(_uses(node, name, value) for node in users):
                yield f"{part}.{name}", value
    for name in _ignored(config.model):
        if name in config.model:
            yield f"model.{name}", config.model[name]


def _uses(node: dict[str, Any], name: str, value: float) -> bool:
    """Return whether a network has `value` as its argument `name`; of others than ours, as any argument."""
    taken = set(_leaves(node))
    argument = "width" if name == "cnn_width" else name
    found = (argument, value) in taken if is_ours(node) else value in {value for _, value in taken}
    return found and name not in _ignored(node)


def _ignored(node: dict[str, Any]) -> tuple[str, ...]:
    """Return arguments that the network accepts, as all networks do, and does not use."""
    mixer = node.get("mixer")
    if isinstance(mixer, dict) and is_ours(mixer) and mixer["_target_"].rpartition(".")[2] in WITHOUT_HEADS:
        return ("heads", "attention_dropout")
    start = node.get("start", "random")
    return (*(["center_std"] if start != "random" else []), *(["spread"] if start != "shifts" else []))


def _leaves(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        elif isinstance(value, int | float | str):
            yield name, value


def _idle_data(config: "Config") -> Iterator[tuple[str, str]]:
    data = config.data
    if not data.flip:
        if config.eval_mirrored:
            yield "eval_mirrored", "data.flip=false, so the network does not see mirror images; set data.flip=true"
        if data.alternating_flip:
            yield "data.alternating_flip", "data.flip=false; set data.flip=true"
    if data.padding_mode != "constant" and data.crop_padding == 0:
        yield "data.padding_mode", "data.crop_padding=0; set data.crop_padding=4"
    if data.fraction == 1:
        yield "data.subset_seed", "data.fraction=1 takes all images; set data.fraction=0.1"
    if data.source not in FROM_FOLDERS:
        yield "data.root", f"data={data.name} reads no files; for your own images set data=arrays"
    if data.source != "pairs":
        for name in OF_PAIRS:
            yield f"data.{name}", f"only data=pairs uses it, and this is data={data.name}; set data=pairs"


def _idle_recipe(config: "Config") -> Iterator[tuple[str, str]]:
    recipe = config.recipe
    if recipe.schedule != "step":
        reason = f"recipe.schedule={recipe.schedule}; set recipe.schedule=step"
        yield "recipe.decay_factor", reason
        if recipe.milestones:
            yield "recipe.milestones", reason
    else:
        yield "recipe.lr_changes", "recipe.schedule=step changes it at recipe.milestones"
        if recipe.warmup:
            yield "recipe.warmup", "recipe.schedule=step has no warmup; set recipe.schedule=cosine"
        if not recipe.milestones:
            yield "recipe.decay_factor", "recipe.milestones=[]: the learning rate never falls"
        elif recipe.milestones[-1] > config.epochs:
            yield "recipe.milestones", f"milestones after epochs={config.epochs} are never reached"
    if recipe.batch_size == 1 and recipe.cutmix > 0:
        yield "recipe.cutmix", "recipe.batch_size=1 leaves no other image to mix with; set recipe.batch_size=128"
    if recipe.optimizer != "muon":
        yield "recipe.adamw_lr", f"recipe.optimizer={recipe.optimizer} has one learning rate; set recipe.lr"
    if recipe.optimizer == "adamw":
        yield "recipe.momentum", "recipe.optimizer=adamw has no such setting"
    if recipe.sizes and recipe.cropped_from is None and {*recipe.sizes} == {1}:
        yield "recipe.sizes", "images of size 1 are as large as those of the data; set recipe.sizes=[0.5,1]"
    # A crop of size 1 is the whole image.
    if recipe.cropped_from is not None and not any(recipe.cropped_from <= size != 1 for size in recipe.sizes):
        yield "recipe.cropped_from", f"no size of recipe.sizes={recipe.sizes} is that large and not 1"
    if recipe.centers_lr is not None and not may_have_gaussian_heads(config.model):
        yield "recipe.centers_lr", f"model={config.model['name']} has no Gaussian heads to train"


def _idle_logger(config: "Config") -> Iterator[tuple[str, str]]:
    name, reason = config.logger.name, f"logger={config.logger.name} does not use it; set logger=wandb"
    unused = {"none": OF_LOGGERS, "trackio": OF_WANDB}.get(name, ())
    yield from ((f"logger.{setting}", reason) for setting in unused)


def may_have_gaussian_heads(node: dict[str, Any]) -> bool:
    """Return whether a `model` node has centers and spreads, or a part that this package does not know."""
    target = str(node.get("_target_", "attnconv."))
    if target.endswith(".frozen_heads"):
        return False
    if not target.startswith("attnconv.") or target.rpartition(".")[2] in GAUSSIAN:
        return True
    return any(may_have_gaussian_heads(part) for part in node.values() if isinstance(part, dict))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")
