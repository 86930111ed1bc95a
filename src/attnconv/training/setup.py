"""The setup of a run: build and check everything before a byte is written."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.config import Config, flatten
from attnconv.data.augmentation import ImageSize, normalize, scale
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.data.preprocessing import Preprocessing
from attnconv.errors import ConfigError, OutOfMemory
from attnconv.models.build import build_seeded_model, check_node, errors_of_network
from attnconv.models.cost import (
    ForwardPass,
    activation_bytes,
    build_unfilled,
    build_untrained,
    forward_once,
    forward_untrained,
    parameters,
)
from attnconv.models.layout import place
from attnconv.models.match import Match, resolve_node
from attnconv.runs.folder import RunFolder
from attnconv.runs.heads import heads_in
from attnconv.runs.identity import start_weights
from attnconv.settings.contradictions import asked_for, unused_by_network
from attnconv.settings.limits import is_ours
from attnconv.training.device import autocast, choose_device, choose_precision, keep_freed_memory, take_threads
from attnconv.training.distributed import Processes, check_batches, distribute, join_processes
from attnconv.training.memory import TRAINING_BYTES, fits, is_out_of_memory, require_memory
from attnconv.training.optimizers import build_optimizer
from attnconv.training.precompile import batch_sizes, precompile, training_shapes
from attnconv.training.rehearsal import MANY, check_logits, from_elsewhere, rehearse
from attnconv.training.whitening import whiten_stem


@dataclass
class Setup:
    """The parts of a run, built and checked; nothing has been written yet."""

    config: Config
    folder: RunFolder
    device: torch.device
    processes: Processes
    precision: str
    data: DataSet
    model: nn.Module
    forward: nn.Module  # the same network, compiled or distributed if requested
    optimizer: torch.optim.Optimizer
    match: Match | None  # how the model's width was scaled, if it was
    costs: dict[str, int | None]  # parameters, and FLOPs per image counted in both ways (attnconv.models.cost)
    notes: tuple[str, ...] = ()  # what the user may not expect; printed once everything is checked

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While entered, hold the run folder for this process, or for the first of several.

        Raises:
            UserError: see RunFolder.open.
        """
        try:
            if self.processes.writes:
                self.folder.open()
                for note in self.notes:
                    print(f"note: {note}", file=sys.stderr)
            self.processes.wait()
            yield
        finally:
            self.folder.close()
        self.processes.leave()

    @property
    def mirrored(self) -> bool:
        """Return whether evaluations also use mirror images, which requires flips in training."""
        return self.config.eval_mirrored and self.config.data.flip

    def precompile(self, size: Callable[[int], ImageSize | None]) -> None:
        """Compile and tune for all shapes of training and evaluation (attnconv.training.precompile).

        Args:
            size: maps a step to the size of the images; None keeps them as they are.
        """
        config, data = self.config, self.data
        splits = [split for split in (data.validation, data.test) if split is not None]
        precompile(
            self.model,
            self.forward,
            self.optimizer,
            data.train,
            shapes=training_shapes(data.epoch_images, config.recipe.batch_size, config.epochs, size),
            evaluated=[count for split in splits for count in batch_sizes(len(split), config.eval_batch_size)],
            mirrored=self.mirrored,
            precision=self.precision,
            processes=self.processes,
        )


def prepare(config: Config) -> Setup:
    """Build and check all parts of a run before anything is written.

    Raises:
        UserError: the run folder, device, data or model does not fit the configuration or the memory.
    """
    try:
        return _prepare(config)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory("out of memory before training; lower the scale, or data.fraction") from error
        raise


def _prepare(config: Config) -> Setup:
    folder = RunFolder(config)
    take_threads()
    keep_freed_memory()
    processes, device = join_processes(choose_device(config.device))
    precision = folder.precision = choose_precision(config.precision, device)
    if processes.writes:
        folder.check()
    config = replace(config, precision=precision)
    check_node(config.model)
    data = load_dataset(config.data, device)
    folder.data_hash, start = data.source_sha256, start_weights(flatten(config.model, "model."))
    folder.heads = {} if start is None else heads_in(start)
    folder.preprocessing = Preprocessing.of(config.data, data).encode()
    if processes.writes:
        folder.check()  # again, now that the data and the heads are known
    check_batches(processes, data.epoch_images, config.recipe.batch_size)
    node, match = resolve_node(config, data.image_shape, data.classes)
    _check_memory(config, node, data)
    counted = _check_logits(config, node, data, device)
    if device.type == "cpu" and not from_elsewhere(node):  # a GPU reports that its memory is full; Linux kills
        _check_activations(config, node, data, processes, counted.flops_full)
    _check_sizes(config, node, data)
    _check_steps(config, node, data, processes, bf16=precision == "bf16" and device.type == "cpu")
    # Built on the CPU, so that equal seeds give equal weights on all devices.
    model = build_seeded_model(node, data.image_shape, data.classes, config.seed)
    if config.recipe.whitening:
        with errors_of_network(f"model={config.model['name']}:"):
            whiten_stem(model, data.train)
    notes = (*_check_batch_size(config, data.epoch_images), *_unused_settings(config))
    place(model, device)
    optimizer = build_optimizer(model, config.recipe, precision)
    forward: Any = distribute(model, processes, device)
    if config.compile:
        forward = torch.compile(forward)
    flops = {"flops_paper": counted.flops_paper, "flops_full": counted.flops_full}
    costs = {"parameters": parameters(model), **flops}
    return Setup(config, folder, device, processes, precision, data, model, forward, optimizer, match, costs, notes)


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


def _check_batch_size(config: Config, images: int) -> tuple[str, ...]:
    """Return a note if a batch cannot be filled; raise ConfigError if the batch size was set on the command line."""
    size = config.recipe.batch_size
    if size <= images:
        return ()
    few = f"recipe.batch_size={size} is more than the {images} training images of an epoch"
    if config.data.fraction == 1 and asked_for("recipe.batch_size"):
        raise ConfigError(f"{few}; set recipe.batch_size={images} or less")
    return (f"{few}; each step uses all of them",)


def _unused_settings(config: Config) -> Iterator[str]:
    """Yield a note for each setting of the command line that other networks use, and this one does not."""
    for key, value in unused_by_network(config):
        if asked_for(key):
            yield f"{key}={value} has no effect on model={config.model['name']}"


def _check_memory(config: Config, node: dict[str, Any], data: DataSet) -> None:
    """Raise OutOfMemory for a network that is too large to train in this machine's memory, before it is built.

    A network whose constructor reads the values of tensors has to be built first.
    """
    model = build_unfilled(node, data.image_shape, data.classes)
    count, buffers = parameters(model), sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
    of_scale = ("layers", "heads", "width", "hidden") if "hidden" in node else ("cnn_width",)
    lower = ", ".join(f"scale.{name}={getattr(config.scale, name)}" for name in of_scale)
    if not is_ours(node) or "width" not in node:
        lower = "the size of the network"
    needed = TRAINING_BYTES * count + buffers
    require_memory(needed, f"model={config.model['name']} has {count:,} parameters, which", lower)


def _check_logits(config: Config, node: dict[str, Any], data: DataSet, device: torch.device) -> ForwardPass:
    """Return a forward pass, or raise ConfigError for a network that does not map images to one logit per class."""
    name = f"model={config.model['name']}"
    counted = forward_once(node, data.image_shape, data.classes, _first_images(data, 1))
    if counted.missing:
        if device.type == "cpu":
            raise ConfigError(f"{name} does not run on a CPU: {counted.missing}")
        return counted  # training on the GPU shows whether it runs
    with errors_of_network(f"{name}:"):
        check_logits(counted.outputs, 1, data.classes)
    return counted


def _check_activations(
    config: Config, node: dict[str, Any], data: DataSet, processes: Processes, flops: int | None
) -> None:
    """Raise OutOfMemory for a batch whose activations are too large to keep in this machine's memory."""
    images = math.ceil(min(config.recipe.batch_size, data.epoch_images) / processes.count)
    channels, *sides = data.image_shape
    largest = [round(max(config.recipe.sizes, default=1) * side) for side in sides]
    # The usual batch needs no closer look: each number that is kept costs some FLOPs.
    if flops is not None and fits(4 * flops * images):
        return
    needed = 0
    for build in (build_unfilled, build_untrained):  # a real network may keep less than its definition needs
        with torch.random.fork_rng(devices=[]), autocast(config.precision, torch.device("cpu")):
            model = build(node, data.image_shape, data.classes)
            needed = images * activation_bytes(model, (channels, *largest))
        if fits(needed):
            return
    require_memory(needed, f"the activations of a batch of {images:,} images", f"recipe.batch_size={images}")


def _check_steps(config: Config, node: dict[str, Any], data: DataSet, processes: Processes, bf16: bool) -> None:
    """Raise ConfigError for a network that cannot take training steps, or not with the last batch.

    The tests of this package train its own networks, so only a last batch of one image may be too small for them.
    """
    sizes = batch_sizes(data.epoch_images, config.recipe.batch_size)
    counts = {min(sizes[0], MANY)} if from_elsewhere(node) else set()
    if sizes[-1] == 1 and processes.count == 1:  # with several processes, batch norm uses the images of all
        counts.add(1)
    height = data.image_shape[1]
    for count in sorted(counts):
        images = _first_images(data, count)
        for side in {round(share * height) for share in config.recipe.sizes} or {height}:
            try:
                with errors_of_network(f"model={config.model['name']} cannot be trained:"):
                    rehearse(node, data.image_shape, data.classes, scale(images, side), bf16)
            except ConfigError as error:
                if count > 1 or "more than 1 value per channel" not in str(error):
                    raise
                _refuse_last_batch(config, data.epoch_images, error)


def _first_images(data: DataSet, count: int) -> Tensor:
    """Return training images as a network sees them, without augmentation: real ones, because one may reject others."""
    return normalize(data.train.images[:count], data.train.mean, data.train.std).cpu()


def _refuse_last_batch(config: Config, images: int, error: Exception) -> None:
    """Raise ConfigError for batch norm that cannot take the last batch, of one image."""
    size = config.recipe.batch_size
    others = (*range(min(size, images) - 1, 1, -1), *range(size + 1, images + 1))
    better = next((other for other in others if images % other != 1), None)
    way_out = f"recipe.batch_size={better}" if better else "more images"
    raise ConfigError(
        f"model={config.model['name']} has batch norm, which cannot take the last batch of one image "
        f"({images} images in batches of recipe.batch_size={size}); {way_out} leaves none"
    ) from error
