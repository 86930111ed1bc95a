"""What the user of a run may not expect; printed once everything is checked."""

import math
from collections.abc import Iterator

from torch import nn

from attnconv.config import Config
from attnconv.errors import ConfigError
from attnconv.settings.contradictions import asked_for, unused_by_network
from attnconv.training.optimizers import hidden_matrices
from attnconv.training.schedules import lr_factor


def notes_on(config: Config, images: int, model: nn.Module) -> tuple[str, ...]:
    """Return the notes on a run.

    Args:
        images: training images in an epoch.
        model: its network.

    Raises:
        ConfigError: the batch size was set on the command line, and a batch cannot be filled.
    """
    return (
        *_batch_size(config, images),
        *_still_rates(config, images),
        *_unused_settings(config),
        *_unused_by_muon(config, model),
    )


def _batch_size(config: Config, images: int) -> Iterator[str]:
    """Yield a note if a batch cannot be filled; raise ConfigError if the batch size was set on the command line."""
    size = config.recipe.batch_size
    if size <= images:
        return
    few = f"recipe.batch_size={size} is more than the {images} training images of an epoch"
    if config.data.fraction == 1 and asked_for("recipe.batch_size"):
        raise ConfigError(f"{few}; set recipe.batch_size={images} or less")
    yield f"{few}; each step uses all of them"


def _still_rates(config: Config, images: int) -> Iterator[str]:
    """Yield a note for a learning rate that is 0 throughout, or whose milestones are never reached."""
    recipe, epochs = config.recipe, config.epochs
    factor, steps = lr_factor(recipe, epochs, images), math.ceil(images / recipe.batch_size)
    if recipe.lr_changes == "epoch" and not any(factor(epoch * steps) for epoch in range(epochs)):
        yield f"with epochs={epochs}, the learning rate is 0 at all steps: nothing is trained"
    if recipe.schedule == "step" and recipe.milestones and recipe.milestones[0] > epochs:
        rate = f"{recipe.lr * factor(0):g}"
        yield f"recipe.milestones={recipe.milestones} are after epochs={epochs}: the learning rate stays at {rate}"


def _unused_settings(config: Config) -> Iterator[str]:
    """Yield a note for each setting of the command line that other networks use, and this one does not."""
    for key, value in unused_by_network(config):
        if asked_for(key):
            yield f"{key}={value} has no effect on model={config.model['name']}"


def _unused_by_muon(config: Config, model: nn.Module) -> Iterator[str]:
    """Yield a note for each setting of Muon on the command line if the network has no matrix that Muon trains."""
    if config.recipe.optimizer != "muon" or hidden_matrices(model):
        return
    for key in ("lr", "momentum"):
        if asked_for(f"recipe.{key}"):
            yield (
                f"recipe.{key}={getattr(config.recipe, key):g} has no effect: Muon trains matrices between the first "
                f"and the last layer, model={config.model['name']} has none, and AdamW trains the rest"
            )
