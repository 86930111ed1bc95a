"""A rehearsal of a few training steps, because only the code of a network from elsewhere knows what it needs."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.analysis.heads import NotShown, attention_mixers, mixer_inputs, probs_of
from attnconv.errors import UserError, first_few
from attnconv.models.build import build_seeded_model, errors_of_network
from attnconv.models.cost import require_logits
from attnconv.models.layout import FaultyCall, FaultyCalls, place
from attnconv.models.process_state import kept_settings, seed_generators, settings
from attnconv.runs.checkpoint import check_state
from attnconv.training.device import autocast
from attnconv.training.optimizers import thawed

FEW, MANY = 2, 32  # images of a rehearsal; MANY only if FEW fail, as they do if a network splits its batch into groups
SEED = 2**40  # no network sets it itself


def rehearse(
    node: dict[str, Any],
    image_shape: tuple[int, int, int],
    classes: int,
    images: Tensor,
    *,
    bf16: bool,
    on_cpu: bool,
    alone: bool,
) -> tuple[str, ...]:
    """Take training steps, but for the optimizer's, with a new network on the CPU.

    A network with an operator that the CPU lacks passes: training on the GPU shows whether it runs.

    Args:
        images: (B, C, H, W) on the CPU, laid out as in training.
        bf16: use autocast.
        on_cpu: whether the run trains on the CPU, too.
        alone: whether one process trains it.

    Returns:
        Notes on what its user may not expect.

    Raises:
        ConfigError: see `build_model`.
        Exception: whatever the network raises; ValueError if it does not give logits, or cannot learn.
    """

    def build(seed: int) -> nn.Module:
        return build_seeded_model(node, image_shape, classes, seed)

    with torch.random.fork_rng(devices=[]):
        for some in (images[:FEW], images):
            try:
                return tuple(_steps(build, some, classes, bf16, alone))
            except UserError:
                raise
            except FaultyCall:
                if on_cpu:
                    raise
                break
            except Exception as error:
                if isinstance(error, NotImplementedError) and "backend" in str(error):
                    break
                if len(some) == len(images):
                    raise
    return ()


def _steps(build: Callable[[int], nn.Module], images: Tensor, classes: int, bf16: bool, alone: bool) -> list[str]:
    model, fresh, notes = _built(build)
    place(model, images.device)
    shapes, parameters_before = _shapes(model), list(map(id, model.parameters()))
    trained, buffers = _trained(model), {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    drawn = []
    for step in range(2):  # the second step fails if a network keeps what it computed in the first
        seed_generators(SEED + step)
        logits = _logits(model, images, bf16)
        drawn.append(_generators())
        require_logits(logits, len(images), classes)
        if not logits.requires_grad:
            raise ValueError("it has no parameters, only frozen ones, or a forward pass without gradients")
        loss = F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64))
        if not loss.isfinite():
            raise ValueError("it gives nan or inf before any training")
        loss.backward()
    for name in drawn[0]:
        if drawn[0][name] == drawn[1][name]:
            raise ValueError(f"its forward pass calls {name}, so that all steps draw the same numbers")
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        if parameter.grad.layout != torch.strided:
            raise ValueError(f"the gradient of {name} is sparse, which the optimizers cannot use")
        if not parameter.grad.isfinite().all():
            raise ValueError(f"the gradient of {name} is nan or inf before any training")
    if _shapes(model) != shapes or list(map(id, model.parameters())) != parameters_before:
        raise ValueError("its forward pass makes or replaces parameters or buffers; make them in __init__")
    late = [name for name in _trained(model) if name not in trained]
    if late:
        raise ValueError(thawed(late[0]))
    if not alone:
        _require_shared_steps(model, trained, buffers)
    _require_registered(model)
    notes += _idle_parameters(trained)
    _require_own_tensors(model, fresh, buffers)
    notes += _require_steady_evaluation(model, images, bf16)
    _require_probabilities(model, images)
    model.train()
    _logits(model, images, bf16)
    with torch.no_grad():
        for parameter in trained.values():  # as a step does, which a stale copy of the weights would miss
            parameter.mul_(0.99)
    _require_complete_state(model, fresh, images, bf16)
    return notes


def _idle_parameters(trained: dict[str, nn.Parameter]) -> list[str]:
    """Return a note if some parameters get no gradient."""
    idle = {name: parameter.numel() for name, parameter in trained.items() if parameter.grad is None}
    if not idle:
        return []
    total = sum(parameter.numel() for parameter in trained.values())
    return [f"{sum(idle.values()):,} of {total:,} parameters got no gradient in two trial steps: {first_few(idle)}"]


def _require_shared_steps(model: nn.Module, trained: dict[str, nn.Parameter], buffers: dict[str, Tensor]) -> None:
    """Raise ValueError for a network whose processes would wait for each other, or end with different networks.

    Args:
        trained: parameters after two backward passes.
        buffers: before the steps.
    """
    idle = [name for name, parameter in trained.items() if parameter.grad is None]
    if idle:
        raise ValueError(f"{idle[0]} gets no gradient, so several processes would wait forever: start one process")
    of_norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    shared = {id(buffer) for part in of_norms for buffer in part.buffers(recurse=False)}
    own = {name: buffer for name, buffer in model.named_buffers() if id(buffer) not in shared and name in buffers}
    changed = [name for name, buffer in own.items() if not _equal(buffer, buffers[name])]
    if changed:
        raise ValueError(f"training changes {changed[0]}, and each process would have its own copy: start one process")


def _built(build: Callable[[int], nn.Module]) -> tuple[nn.Module, nn.Module, list[str]]:
    """Return two networks with the same seed, and a note if another seed gives the same initial weights.

    Raises:
        ValueError: the initial weights do not depend on the seed alone.
    """
    fresh = build(SEED)
    model = build(SEED)
    after = _generators()
    check_state(model)
    initial = fresh.state_dict()
    for name, value in model.state_dict().items():
        if name not in initial or (isinstance(value, Tensor) and not _equal(value, initial[name])):
            raise ValueError(
                f"{name} starts with other values each time, whatever the seed; draw it from the global generator of "
                "PyTorch, NumPy or Python"
            )
    other = dict(build(SEED + 1).named_parameters())
    if not all(name in other and _equal(parameter, other[name]) for name, parameter in model.named_parameters()):
        return model, fresh, []
    seeded = [name for name, state in _generators().items() if state == after[name]]
    if seeded:
        raise ValueError(f"its constructor calls {seeded[0]}, so seed= does not change its weights")
    return model, fresh, ["seed= does not change the initial weights of the network"]


def _require_registered(model: nn.Module) -> None:
    """Raise ValueError for parameters that got a gradient although no optimizer and no checkpoint would hold them."""
    registered = set(map(id, model.parameters()))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            for parameter in _parameters_in(value):
                if parameter.grad is not None and id(parameter) not in registered:
                    where = f"{path}.{name}".removeprefix(".")
                    raise ValueError(
                        f"the layers in {where} are not registered, and would not be trained: use an nn.ModuleList"
                    )


def _parameters_in(value: Any) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parameters_in(part)


def _generators() -> dict[str, Any]:
    """Return the states of all global generators, by the function that seeds them."""
    kind, words, *rest = np.random.get_state()  # noqa: NPY002
    of_numpy = (kind, np.asarray(words).tobytes(), *rest)
    of_torch = torch.get_rng_state().numpy().tobytes()
    return {"torch.manual_seed": of_torch, "np.random.seed": of_numpy, "random.seed": random.getstate()}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _require_own_tensors(model: nn.Module, fresh: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Raise ValueError if two networks share what training changes: the second would start where the first ended.

    Args:
        buffers: of `model` before its steps.
    """
    shared = {_storage(tensor) for tensor in (*fresh.parameters(), *fresh.buffers())} - {0}
    names = [name for name, parameter in _trained(model).items() if _storage(parameter) in shared]
    for name, buffer in model.named_buffers():
        if name in buffers and _storage(buffer) in shared and not _equal(buffer, buffers[name]):
            names.append(name)
    if names:
        raise ValueError(f"all networks that it builds share {names[0]}, which training changes; make it in __init__")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal; NaN equals NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _require_probabilities(model: nn.Module, images: Tensor) -> None:
    """Raise ConfigError for an attention mixer whose probabilities could not be drawn after training."""
    model.eval()
    try:
        inputs = mixer_inputs(model, images.clone())
    except NotShown:  # a run has no maps then
        return
    for mixer, x in zip(attention_mixers(model), inputs, strict=True):
        with errors_of_network(f"attention_probs of {type(mixer).__name__}:"):
            probs_of(mixer, x.shape[1], x.shape[2], x)


def _logits(model: nn.Module, images: Tensor, bf16: bool) -> Any:
    before = settings()
    with kept_settings(), FaultyCalls(), autocast("bf16" if bf16 else "fp32", images.device):
        logits = model(images.clone())
        changed = [name for name, value in settings().items() if value != before[name]]
    if changed:
        raise ValueError(f"its forward pass calls {changed[0]}, which changes the rest of the program")
    return logits


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in model.state_dict().items()}


@torch.no_grad()
def _require_steady_evaluation(model: nn.Module, images: Tensor, bf16: bool) -> list[str]:
    """Raise ValueError if an evaluation gives NaN or changes state, or if an image depends on others of its batch.

    Return a note if it draws random numbers: then an image may depend on its place in the batch.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = _evaluated(model, images, bf16)
    if logits.isnan().any():
        raise ValueError("it gives nan in evaluation")
    state = model.state_dict()
    changed = [name for name, tensor in before.items() if name not in state or not _equal(state[name], tensor)]
    if changed:
        raise ValueError(
            f"an evaluation changes {changed[0]}, so a resumed run would differ; change it only if self.training"
        )
    draws = not _equal(_evaluated(model, images, bf16, seed=1), logits)
    among = _differences(logits)
    for index in (0, len(images) - 1):  # earlier images may change later ones, or the other way around
        repeated = images.clone()
        repeated[:] = images[index]
        # Batches of the same shape have the same rounding. Random numbers depend on the place in the batch.
        alone = _differences(_evaluated(model, repeated, bf16))[[index] if draws else slice(None)]
        if not torch.allclose(alone, among[index], rtol=0, atol=0.01 * _largest(among), equal_nan=True):
            raise ValueError(
                "in evaluation, the probabilities of an image depend on the other images of its batch, so that the "
                "accuracy depends on eval_batch_size"
            )
    if not draws:
        return []
    return [
        "the network draws random numbers in evaluation, too, so that its accuracy depends on eval_batch_size (dropout "
        "that should end with training needs training=self.training)"
    ]


def _differences(logits: Tensor) -> Tensor:
    """Return the differences between logits, on which alone probabilities depend."""
    return logits - logits.amax(dim=1, keepdim=True)


@torch.no_grad()
def _require_complete_state(model: nn.Module, fresh: nn.Module, images: Tensor, bf16: bool) -> None:
    """Raise ValueError if a new network with the state of a trained one gives other logits.

    Checkpoints and weights hold the state only.
    """
    place(fresh, images.device)
    fresh.load_state_dict(model.state_dict())
    for training in (False, True):
        trained, loaded = (_evaluated(network, images, bf16, training=training) for network in (model, fresh))
        rounding = 16 * torch.finfo(trained.dtype).eps * _largest(trained)
        if not torch.allclose(trained.float(), loaded.float(), rtol=0, atol=rounding, equal_nan=True):
            where = " in training" if training else ""
            raise ValueError(
                f"after training steps, a new network with its state_dict() gives other logits{where}: it keeps state "
                "elsewhere, which checkpoints do not hold, or draws from a generator that cannot be seeded"
            )


def _evaluated(model: nn.Module, images: Tensor, bf16: bool, seed: int = 0, training: bool = False) -> Tensor:
    """Return the logits of an evaluation with seeded generators, or of a training step."""
    model.train(training)
    seed_generators(seed)
    logits: Tensor = _logits(model, images, bf16)
    return logits


def _largest(logits: Tensor) -> float:
    """Return the largest finite logit."""
    return logits.float().nan_to_num(0, 0, 0).abs().max().item()
