"""Learning-rate schedules as pure functions of the step, so that resuming needs no scheduler state."""

import math
from collections.abc import Callable

from attnconv.config import RecipeConfig


def lr_factor(recipe: RecipeConfig, epochs: int, images: int) -> Callable[[int], float]:
    """What every parameter group's peak learning rate is multiplied by at a step (0-based).

    Args:
        recipe: schedule, warmup, lr_changes, milestones, decay_factor, batch_size.
        epochs: length of training.
        images: training images in an epoch.
    """
    steps_per_epoch = math.ceil(images / recipe.batch_size)

    if recipe.schedule == "step":

        def factor(step: int) -> float:
            epoch = step // steps_per_epoch
            # Reference: the scheduler advances before the epoch, so a milestone acts one epoch early (79, not 80).
            drops = sum(epoch + 1 >= milestone for milestone in recipe.milestones)
            return recipe.decay_factor**-drops

        return factor

    if recipe.lr_changes == "epoch":
        # Reference: images // batch + 1 steps an epoch are assumed where there are images / batch, so that the last
        # epochs end a little above 0.
        total = epochs * (images // recipe.batch_size + 1)
    else:
        total = epochs * steps_per_epoch
    warmup = int(recipe.warmup * total)
    decay = {"cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)), "linear": lambda t: 1 - t}[recipe.schedule]

    def factor_of(step: int) -> float:
        if step < warmup:
            return step / warmup
        return decay((step - warmup) / max(1, total - warmup))

    if recipe.lr_changes == "step":
        # A step at learning rate 0 would be wasted: count from the end of the step.
        return lambda step: factor_of(step + 1) if step + 1 < warmup else factor_of(step)
    # Reference: the scheduler is stepped once per epoch with the step count, so epoch 0 trains at learning rate 0.
    return lambda step: factor_of(step // steps_per_epoch * steps_per_epoch)
