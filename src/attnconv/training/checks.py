"""Check before a byte is written that a run can train, and note what its user may not expect."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.heads import attention_mixers
from attnconv.config import Config
from attnconv.data.augmentation import normalize, scale
from attnconv.data.dataset import DataSet
from attnconv.errors import TRAINING_BYTES, ConfigError, counted, fits, require_memory
from attnconv.files import in_one_line
from attnconv.models.build import errors_of_network
from attnconv.models.cost import (
    ForwardPass,
    activation_bytes,
    build_filled,
    build_unfilled,
    forward_once,
    forward_untrained,
    parameters,
    require_logits,
)
from attnconv.settings.contradictions import DROPOUTS, SIZES, asked_for, unused_by_network
from attnconv.settings.limits import from_elsewhere, is_ours
from attnconv.training.device import autocast
from attnconv.training.distributed import Processes
from attnconv.training.loop import batch_sizes
from attnconv.training.optimizers import hidden_matrices, lr_factor
from attnconv.training.rehearsal import MANY, rehearse


def check_network(
    config: Config, node: dict[str, Any], data: DataSet, processes: Processes, device: torch.device
) -> tuple[ForwardPass, set[str]]:
    """Check that a network fits into memory, maps images to logits, and can take training steps.

    Args:
        node: describes the network: `config.model` with its matched width.

    Returns:
        A counted forward pass of one training image, and notes for the user.

    Raises:
        ConfigError, OutOfMemory: a check fails; the message names the setting.
    """
    on_cpu, elsewhere = device.type == "cpu", from_elsewhere(node)
    _check_memory(config, node, data)
    found = _check_forward(config, node, data, device)
    images = math.ceil(min(config.recipe.batch_size, data.epoch_images) / processes.count)
    # The usual batch needs no closer look: each number that is kept costs some FLOPs.
    surely_fits = found.flops_full is not None and fits(4 * found.flops_full * images)
    if on_cpu and not elsewhere and not surely_fits:  # a GPU reports that its memory is full; Linux kills
        _check_activations(config, node, data, images)
    if config.recipe.sizes:
        _check_sizes(config, node, data)
    # The tests of this package train its own networks, so only a last batch of one image may be too small for them.
    sizes = batch_sizes(data.epoch_images, config.recipe.batch_size)
    counts = {min(sizes[0], MANY)} if elsewhere else set()
    if sizes[-1] == 1 and processes.count == 1:  # with several processes, batch norm uses the images of all
        counts.add(1)
    notes: set[str] = set()
    if counts:
        notes = _check_steps(config, node, data, sorted(counts), on_cpu=on_cpu, alone=processes.count == 1)
    if elsewhere:
        _check_batches(config, node, data, processes)
    return found, notes


def check_drawing(model: nn.Module) -> None:
    """Check before a run with attention that its heads can be drawn after it.

    Raises:
        ConfigError: matplotlib cannot be imported.
    """
    if not attention_mixers(model):
        return
    try:
        import matplotlib.figure  # noqa: F401
    except (ImportError, ValueError) as error:  # ValueError: the variable MPLBACKEND names no backend
        raise ConfigError(f"matplotlib, which draws the heads, cannot be imported: {in_one_line(error)}") from error


def _check_memory(config: Config, node: dict[str, Any], data: DataSet) -> None:
    """Raise OutOfMemory for a network that is too large to train in this machine's memory, before it is built.

    A network whose constructor reads the values of tensors has to be built first.
    """
    model = build_unfilled(node, data.image_shape, data.classes)
    count, buffers = parameters(model), sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
    of_scale = ("layers", "heads", "width", "hidden") if "hidden" in node else ("cnn_width",)
    lower = ", ".join(f"scale.{name} (now {getattr(config.scale, name)})" for name in of_scale)
    if not is_ours(node) or "width" not in node:
        lower = "the size of the network"
    needed = TRAINING_BYTES * count + buffers
    require_memory(needed, f"model={config.model['name']} has {count:,} parameters, which", lower)


def _check_forward(config: Config, node: dict[str, Any], data: DataSet, device: torch.device) -> ForwardPass:
    """Return a forward pass, or raise ConfigError for a network that does not map images to one logit per class."""
    name = f"model={config.model['name']}"
    found = forward_once(node, data.image_shape, data.classes, _first_images(data, 1))
    if found.missing:
        if device.type == "cpu":
            raise ConfigError(f"{name} does not run on a CPU: {found.missing}")
        return found  # training on the GPU shows whether it runs
    with errors_of_network(f"{name}:"):
        require_logits(found.outputs, 1, data.classes)
    return found


def _check_activations(config: Config, node: dict[str, Any], data: DataSet, images: int) -> None:
    """Raise OutOfMemory for a batch whose activations are too large to keep in this machine's memory."""
    channels, *sides = data.image_shape
    largest = [round(max(config.recipe.sizes, default=1) * side) for side in sides]
    needed = 0
    for build in (build_unfilled, build_filled):  # a real network may keep less than its definition needs
        with torch.random.fork_rng(devices=[]), autocast(config.precision, torch.device("cpu")):
            model = build(node, data.image_shape, data.classes)
            needed = images * activation_bytes(model, (channels, *largest))
        if fits(needed):
            return
    require_memory(
        needed,
        f"the activations of a batch of {images:,} images",
        f"recipe.batch_size (now {config.recipe.batch_size})",
    )


def _check_sizes(config: Config, node: dict[str, Any], data: DataSet) -> None:
    """Raise ConfigError for an image size that training images cannot have or the network cannot take."""
    height = data.image_shape[1]
    for size in dict.fromkeys(config.recipe.sizes):
        side = round(size * height)
        if side < 1:
            raise ConfigError(f"recipe.sizes={config.recipe.sizes}: images cannot be {side} pixels high")
        if config.recipe.cropped_from is not None and side > height:
            raise ConfigError(
                f"recipe.sizes={config.recipe.sizes}: a crop of height {side} does not fit into height {height}; "
                "recipe.cropped_from=null scales images instead"
            )
        with errors_of_network(f"recipe.sizes={config.recipe.sizes}: at {size:g}"):
            image = scale(_first_images(data, 1), side)
            forward_untrained(node, data.image_shape, data.classes, image)


def _check_steps(
    config: Config, node: dict[str, Any], data: DataSet, counts: list[int], *, on_cpu: bool, alone: bool
) -> set[str]:
    """Return notes on training steps with each of these numbers of images; raise ConfigError if one is impossible."""
    height, bf16 = data.image_shape[1], on_cpu and config.precision == "bf16"
    notes: set[str] = set()
    for count in counts:
        images = _first_images(data, count)
        for side in {round(share * height) for share in config.recipe.sizes} or {height}:
            try:
                with errors_of_network(f"model={config.model['name']} cannot be trained:"):
                    notes |= set(rehearse(
                        node, data.image_shape, data.classes, scale(images, side),
                        bf16=bf16, on_cpu=on_cpu, alone=alone,
                    ))  # fmt: skip
            except ConfigError as error:
                if count > 1 or "more than 1 value per channel" not in str(error):
                    raise
                _refuse_last_batch(config, data.epoch_images, error)
    return notes


def _check_batches(config: Config, node: dict[str, Any], data: DataSet, processes: Processes) -> None:
    """Raise ConfigError for a network from elsewhere that cannot take one of the run's batches, such as the last one.

    The tests of this package train its own networks, which take any.
    """
    evaluated = ("eval_batch_size", config.eval_batch_size, False)
    splits = [(("recipe.batch_size", config.recipe.batch_size, True), data.epoch_images)]
    splits += [(evaluated, len(split)) for split in (data.test, data.validation) if split is not None]
    shape, classes = data.image_shape, data.classes
    for (setting, size, training), images in splits:
        for whole in batch_sizes(images, size):
            count = len(range(whole)[processes.share(whole)])
            if count <= training:  # `_check_steps` looks at batches of one training image
                continue
            where = f"model={config.model['name']} cannot take {counted(count, 'image')} at once"
            with errors_of_network(f"{where} ({setting}={size}, {images:,} images):"):
                found = forward_untrained(node, shape, classes, _first_images(data, count), training)
                if not found.missing:
                    require_logits(found.outputs, count, classes)


def _refuse_last_batch(config: Config, images: int, error: Exception) -> None:
    """Raise ConfigError for batch norm that cannot take the last batch, of one image."""
    size = config.recipe.batch_size
    others = (*range(min(size, images) - 1, 1, -1), *range(size + 1, images + 1))
    better = next((other for other in others if images % other != 1), None)
    way_out = f"recipe.batch_size={better}" if better else "more images"
    raise ConfigError(
        f"the last batch has one image ({images} images, recipe.batch_size={size}), and batch norm in "
        f"model={config.model['name']} needs more; {way_out} avoids that"
    ) from error


def _first_images(data: DataSet, count: int) -> Tensor:
    """Return training images as a network sees them, without augmentation; repeat them if there are fewer.

    A network may reject images that are not real.
    """
    images = data.train.images[torch.arange(count, device=data.train.images.device) % len(data.train)]
    return normalize(images, data.train.mean, data.train.std).cpu()


def notes_on(config: Config, images: int, model: nn.Module) -> tuple[str, ...]:
    """Return the notes on a run, to print once everything is checked.

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
    of_networks = {"scale": SIZES, "recipe": DROPOUTS, "model": config.model}
    asked = {key for part, names in of_networks.items() for name in names if asked_for(key := f"{part}.{name}")}
    for key, value in unused_by_network(config) if asked else ():
        if key in asked:
            yield f"{key}={value} has no effect on model={config.model['name']}"


def _unused_by_muon(config: Config, model: nn.Module) -> Iterator[str]:
    """Yield a note for each setting of Muon on the command line if the network has no matrix that Muon trains."""
    asked = [key for key in ("lr", "momentum") if asked_for(f"recipe.{key}")]
    if config.recipe.optimizer != "muon" or not asked or hidden_matrices(model):
        return
    for key in asked:
        yield (
            f"recipe.{key}={getattr(config.recipe, key):g} has no effect: Muon trains matrices between the first "
            f"and the last layer, model={config.model['name']} has none, and AdamW trains the rest"
        )
