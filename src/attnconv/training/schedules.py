"""Learning-rate schedules as pure functions of the step: resuming needs no scheduler state."""

import math
from collections.abc import Callable

from attnconv.config import RecipeConfig
from attnconv.data.augmentation import ImageSize

DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def lr_factor(recipe: RecipeConfig, epochs: int, images: int) -> Callable[[int], float]:
    """Return the factor on the peak learning rate of all parameter groups as a function of the step (0-based).

    Args:
        recipe: schedule, warmup, lr_changes, milestones, decay_factor, batch_size, lr_scale.
        epochs: length of training.
        images: training images in an epoch.
    """
    factor = _schedule(recipe, epochs, images)
    return lambda step: recipe.lr_scale * factor(step)


def _schedule(recipe: RecipeConfig, epochs: int, images: int) -> Callable[[int], float]:
    """Return the factor of the schedule alone as a function of the step (0-based)."""
    steps_per_epoch = math.ceil(images / recipe.batch_size)

    if recipe.schedule == "step":

        def drops(step: int) -> int:
            # Reference: the scheduler advances before the epoch, so a milestone takes effect one epoch early (79, not
            # 80).
            return sum(step // steps_per_epoch + 1 >= milestone for milestone in recipe.milestones)

        return lambda step: recipe.decay_factor ** -drops(step)

    if recipe.lr_changes == "epoch":
        # Reference: the length of training is counted as images // batch + 1 steps per epoch, one more than the real
        # number, so that the last epoch ends a little above 0. The scheduler is stepped once per epoch with the number
        # of steps taken so far, so epoch 0 trains at learning rate 0.
        total = epochs * (images // recipe.batch_size + 1)
        factor = _warmup_then_decay(recipe, total, first=0)
        return lambda step: factor(step // steps_per_epoch * steps_per_epoch)

    # A step at learning rate 0 would be wasted, so the first step is one step up the ramp.
    return _warmup_then_decay(recipe, epochs * steps_per_epoch, first=1)


def image_size(recipe: RecipeConfig, height: int, epochs: int, images: int) -> Callable[[int], ImageSize | None]:
    """Return the size of the training images as a function of the step (0-based); None keeps them as they are.

    Args:
        recipe: sizes, cropped_from, batch_size.
        height: of the original images.
        epochs, images: length of training, and images in an epoch.
    """
    crops = math.inf if recipe.cropped_from is None else recipe.cropped_from
    sizes = [ImageSize(round(size * height), cropped=size >= crops) for size in recipe.sizes]
    total = epochs * math.ceil(images / recipe.batch_size)
    return lambda step: sizes[step * len(sizes) // total] if sizes else None


def _warmup_then_decay(recipe: RecipeConfig, total: int, first: int) -> Callable[[int], float]:
    """Return a ramp whose step 0 is `first` steps above 0, followed by the recipe's decay to 0 at `total`."""
    warmup = int(recipe.warmup * total)
    decay = DECAYS[recipe.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + first) / warmup
        return decay((step - warmup) / max(1, total - warmup))

    return factor
