"""Check before a byte is written that a run can train: memory, sizes of images and batches, and the network itself.

A network from elsewhere rehearses a few training steps, because only its code knows what it needs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.analysis.heads import NotShown, attention_mixers, mixer_inputs, probs_of
from attnconv.config import Config
from attnconv.data.augmentation import normalize, scale
from attnconv.data.dataset import DataSet
from attnconv.errors import ConfigError, UserError, counted
from attnconv.files import in_one_line
from attnconv.models.build import build_seeded_model, errors_of_network, seed_generators
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
from attnconv.runs.checkpoint import check_state
from attnconv.settings.limits import from_elsewhere, is_ours
from attnconv.training.device import autocast
from attnconv.training.distributed import Processes
from attnconv.training.memory import TRAINING_BYTES, fits, require_memory
from attnconv.training.precompile import batch_sizes

FEW, MANY = 2, 32  # images of a rehearsal; MANY only if FEW fail, as they do if a network splits its batch into groups


def check_network(
    config: Config, node: dict[str, Any], data: DataSet, processes: Processes, device: torch.device
) -> ForwardPass:
    """Check that a network fits into memory, maps images to logits, and can take training steps.

    Args:
        node: describes the network: `config.model` with its matched width.

    Returns:
        A counted forward pass of one training image.

    Raises:
        ConfigError, OutOfMemory: a check fails; the message names the setting.
    """
    on_cpu = device.type == "cpu"
    _check_memory(config, node, data)
    found = _check_forward(config, node, data, device)
    if on_cpu and not from_elsewhere(node):  # a GPU reports that its memory is full; Linux kills
        _check_activations(config, node, data, processes, found.flops_full)
    _check_sizes(config, node, data)
    _check_steps(config, node, data, processes, bf16=on_cpu and config.precision == "bf16")
    return found


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
        _require_logits(found.outputs, 1, data.classes)
    return found


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
    require_memory(needed, f"the activations of a batch of {images:,} images", f"recipe.batch_size (now {images})")


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
                    _rehearse(node, data.image_shape, data.classes, scale(images, side), bf16)
            except ConfigError as error:
                if count > 1 or "more than 1 value per channel" not in str(error):
                    raise
                _refuse_last_batch(config, data.epoch_images, error)


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
    """Return training images as a network sees them, without augmentation: real ones, because one may reject others."""
    return normalize(data.train.images[:count], data.train.mean, data.train.std).cpu()


def _rehearse(
    node: dict[str, Any], image_shape: tuple[int, int, int], classes: int, images: Tensor, bf16: bool
) -> None:
    """Take training steps, but for the optimizer's, with a new network on the CPU.

    A network with an operator that the CPU lacks passes: training on the GPU shows whether it runs.

    Args:
        images: (B, C, H, W) on the CPU, laid out as in training.
        bf16: use autocast.

    Raises:
        ConfigError: see `build_model`.
        Exception: whatever the network raises; ValueError if it does not give logits, or cannot learn.
    """

    def build() -> nn.Module:
        return build_seeded_model(node, image_shape, classes, seed=0)

    with torch.random.fork_rng(devices=[]):
        try:
            _steps(build, images[:FEW], classes, bf16)
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, NotImplementedError) and "backend" in str(error):
                return
            if len(images) <= FEW:
                raise
            _steps(build, images, classes, bf16)


def _steps(build: Callable[[], nn.Module], images: Tensor, classes: int, bf16: bool) -> None:
    model = build()
    check_state(model)
    place(model, images.device)
    shapes, parameters_before = _shapes(model), list(map(id, model.parameters()))
    model.train()
    for _ in range(2):  # the second step fails if a network keeps what it computed in the first
        logits = _logits(model, images, bf16)
        _require_logits(logits, len(images), classes)
        if not logits.requires_grad:
            raise ValueError("it has no parameters, only frozen ones, or a forward pass without gradients")
        loss = F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64))
        if not loss.isfinite():
            raise ValueError("it gives nan or inf before any training")
        loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ValueError(f"the gradient of {name} is sparse, which the optimizers cannot use")
    if _shapes(model) != shapes or list(map(id, model.parameters())) != parameters_before:
        raise ValueError("its forward pass makes or replaces parameters or buffers; make them in __init__")
    _require_complete_state(model, build(), images, bf16)
    _require_probabilities(model, images)


def _require_probabilities(model: nn.Module, images: Tensor) -> None:
    """Raise ConfigError for an attention mixer whose probabilities could not be drawn after training."""
    try:
        inputs = mixer_inputs(model, images.clone())
    except NotShown:  # a run has no maps then
        return
    for mixer, x in zip(attention_mixers(model), inputs, strict=True):
        with errors_of_network(f"attention_probs of {type(mixer).__name__}:"):
            probs_of(mixer, x.shape[1], x.shape[2], x)


def _logits(model: nn.Module, images: Tensor, bf16: bool) -> Any:
    with autocast("bf16" if bf16 else "fp32", images.device):
        return model(images.clone())


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in model.state_dict().items()}


@torch.no_grad()
def _require_complete_state(model: nn.Module, fresh: nn.Module, images: Tensor, bf16: bool) -> None:
    """Raise ValueError if a new network with the state of a trained one gives other logits.

    Checkpoints and weights hold the state only.
    """
    place(fresh, images.device)
    fresh.load_state_dict(model.state_dict())
    both = []
    for network in (model, fresh):
        network.eval()
        seed_generators(0)
        both.append(_logits(network, images, bf16))
    trained, loaded = (logits.float() for logits in both)
    rounding = 16 * torch.finfo(both[0].dtype).eps * trained.abs().max().item()
    if not torch.allclose(trained, loaded, rtol=0, atol=rounding, equal_nan=True):
        raise ValueError(
            "after training steps, a new network with its state_dict() gives other logits: it keeps state elsewhere, "
            "which checkpoints do not hold, or draws from a generator that cannot be seeded"
        )


def _require_logits(logits: Any, images: int, classes: int) -> None:
    """Raise ValueError for what is not one floating-point logit per image and class."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"it gives a {type(logits).__name__}, not logits")
    if logits.shape != (images, classes):
        what, wanted = counted(images, "image"), (images, classes)
        raise ValueError(f"it gives {tuple(logits.shape)} for {what}, not {wanted}: one logit per class")
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise ValueError(f"it gives numbers of type {kind}, not logits, which are floating-point numbers")
