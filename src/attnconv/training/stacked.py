"""Several networks of one shape as one: parameters with a leading axis of runs, one kernel where each had its own.

Each network stays what it was: its parameters, buffers and gradients become views into the stack, so that its
optimiser, its checkpoints and its evaluation need not know.

Axes: S runs, B batch, C classes.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from attnconv.data.augmentation import EpochPlan, ImageSize
from attnconv.data.dataset import Split, TrainSplit
from attnconv.errors import Diverged
from attnconv.training.distributed import Processes
from attnconv.training.loop import FiniteGuard, NotFinite, Score, Scorer, Tally, tta_logits
from attnconv.training.optimizers import step_together
from attnconv.training.precision import autocast

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # of the largest output


class CannotStack(Exception):
    """A network that torch.func cannot run several times at once; the message says why."""


class Lost(Exception):
    """One of several runs cannot go on.

    Args:
        index: which.
        cause: what befell it.
    """

    def __init__(self, index: int, cause: Exception):
        super().__init__(str(cause))
        self.index, self.cause = index, cause


class Stack:
    """Networks whose parameters and buffers have the same names and shapes, on one device.

    Args:
        models: their parameters and buffers become views into the stack's tensors.
        compiled: whether to run the stack through torch.compile.
    """

    def __init__(self, models: Sequence[nn.Module], compiled: bool = False):
        self.models = list(models)
        self._parameters = {
            name: _share([model.get_parameter(name) for model in models]).requires_grad_(parameter.requires_grad)
            for name, parameter in models[0].named_parameters()
        }
        self._buffers = {
            name: _share([model.get_buffer(name) for model in models]) for name, _ in models[0].named_buffers()
        }
        together = vmap(self._one)
        self._forward: Callable[..., Tensor] = torch.compile(together) if compiled else together

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (S, B, classes) of images (S, B, channels, height, width), each network's of its own."""
        return self._forward(self._parameters, self._buffers, images)

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def share_gradients(self) -> None:
        """After a backward pass: give every network the gradients of its parameters."""
        for name, parameter in self._parameters.items():
            for index, model in enumerate(self.models):
                own = model.get_parameter(name)
                own.grad = None if parameter.grad is None else parameter.grad[index]

    def train(self, mode: bool = True) -> None:
        """Set every network to training or to evaluation."""
        for model in self.models:
            model.train(mode)

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(self.models[0], (parameters, buffers), (images,))


def _share(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors along a new first axis; each becomes a view of it."""
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, own in zip(tensors, stacked, strict=True):
        tensor.data = own
    return stacked


def check_stackable(model: nn.Module, images: Tensor, precision: str) -> None:
    """Run two networks like `model` at once, in training mode, and compare each with itself alone.

    Args:
        model: is left as it is.
        images: (2, C, height, width), of which each network is given two other ones.
        precision: in which they run, "fp32" or "bf16".

    Raises:
        CannotStack: it cannot be done, or gives something else than the network alone.
    """
    twins = [copy.deepcopy(model).train() for _ in range(2)]
    with torch.no_grad():
        for parameter in twins[1].parameters():  # so that neither can pass for the other
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    given = torch.stack([images, images.flip(-1)])
    with torch.no_grad(), autocast(precision, images.device):
        expected = [copy.deepcopy(twin)(own).float() for twin, own in zip(twins, given, strict=True)]
    try:
        with autocast(precision, images.device):
            together = Stack(twins)(given).float()
        together.sum().backward()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise CannotStack(str(error).splitlines()[0]) from error
    for own, alone in zip(together, expected, strict=True):
        difference = ((own - alone).abs().max() / alone.abs().max()).item()
        if not difference <= TOLERANCE[precision]:
            raise CannotStack(f"its outputs differ by {difference:.1e} from those of the network alone")


@dataclass
class Lane:
    """What one of the runs brings to an epoch that they train together."""

    optimizer: torch.optim.Optimizer
    split: TrainSplit
    plan: EpochPlan
    tally: Tally
    guard: FiniteGuard


def train_epoch_together(
    stack: Stack,
    lanes: Sequence[Lane],
    *,
    steps_before: int,
    steps_done: int,
    batch_size: int,
    label_smoothing: float,
    factor: Callable[[int], float],
    size: Callable[[int], ImageSize | None],
    precision: str,
    on_step: Callable[[int], None],
) -> None:
    """`attnconv.training.loop.train_epoch` of several runs, step by step together; its arguments mean the same.

    Raises:
        Lost: the loss or a gradient of one of them is not finite; the others are where their last checkpoint is.
    """
    device = lanes[0].split.labels.device
    starts = range(0, len(lanes[0].plan), batch_size)
    for index in range(steps_done, len(starts)):
        stack.train()
        step, start = steps_before + index, starts[index]
        for lane in lanes:
            for group in lane.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor(step)
        batches = [lane.split.augmented(lane.plan[start : start + batch_size], size(step)) for lane in lanes]
        images = torch.stack([images for images, _ in batches])
        labels = torch.stack([labels for _, labels in batches])
        with autocast(precision, device):
            logits = stack(images)
        each = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing, reduction="none"
        )
        losses = each.view(labels.shape).mean(dim=1)
        stack.forget_gradients()
        losses.sum().backward()  # each network's loss depends on its own parameters alone
        stack.share_gradients()
        step_together([lane.optimizer for lane in lanes])
        for number, lane in enumerate(lanes):
            with losing(number):
                lane.guard.watch(step, losses[number], stack.models[number])
            lane.tally.add(losses[number], logits[number], labels[number])
        on_step(index + 1)
    for number, lane in enumerate(lanes):
        with losing(number):
            lane.guard.check()


@contextmanager
def losing(index: int) -> Iterator[None]:
    """Say which run it is that cannot go on, because its loss or a gradient is not finite."""
    try:
        yield
    except (Diverged, NotFinite) as error:
        raise Lost(index, error) from error


@torch.inference_mode()
def evaluate_together(
    stack: Stack,
    splits: Sequence[Split],
    batch_size: int,
    precision: str,
    on_batch: Callable[[], None],
    mirrored: bool = False,
) -> list[Score]:
    """`attnconv.training.loop.evaluate` of several runs, each on its own split; all are equally long."""
    stack.train(False)
    device = splits[0].labels.device
    scorers = [Scorer(device, mirrored) for _ in splits]
    for batches in zip(*(split.batches(batch_size) for split in splits), strict=True):
        with autocast(precision, device):
            logits = tta_logits(stack, torch.stack([images for images, _ in batches]), mirrored)
        for run, (scorer, (_, labels)) in enumerate(zip(scorers, batches, strict=True)):
            scorer.add([of_all[run] for of_all in logits], labels)
        on_batch()
    return [scorer.score(Processes()) for scorer in scorers]
