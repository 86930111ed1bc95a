"""One epoch of training, one evaluation: the only places where a model meets data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.data.augmentation import EpochPlan, ImageSize
from attnconv.data.dataset import Split, TrainSplit
from attnconv.runs.checkpoint import Position
from attnconv.training.cutmix import Mix
from attnconv.training.device import autocast
from attnconv.training.distributed import Processes
from attnconv.training.metrics import FiniteGuard, Score, Scorer, Tally

DROPOUT_STREAM = 4


@dataclass(frozen=True)
class EpochSettings:
    """What is the same in every epoch of a run.

    Args:
        factor: step -> what every group's `initial_lr` is multiplied by.
        size: step -> size of the images; None: as they are.
        mix: mixes the images of a batch (attnconv.training.cutmix); None: they stay apart.
        processes: among which each batch is divided.
        on_step: called after each step with the number of steps of this epoch taken.
    """

    seed: int
    batch_size: int
    label_smoothing: float
    factor: Callable[[int], float]
    size: Callable[[int], ImageSize | None]
    mix: Mix | None
    precision: str
    processes: Processes
    guard: FiniteGuard
    on_step: Callable[[int], None]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: TrainSplit,
    plan: EpochPlan,
    settings: EpochSettings,
    position: Position,
    tally: Tally,
) -> None:
    """Train on the images of a plan, in its order, adding to `tally` each under the weights of its own step.

    Args:
        position: the epoch and the step in it to begin with; `tally` holds the images of the steps before.

    Raises:
        NotFinite: see FiniteGuard.
    """
    starts = range(0, len(plan), settings.batch_size)
    for index in range(position.steps_in_epoch, len(starts)):
        # Learning rate, image size, mixing and dropout are functions of the step alone, so that a run can resume.
        step = position.epochs_done * len(starts) + index
        batch = plan[starts[index] : starts[index] + settings.batch_size]
        images, labels = _own_images(split, batch, settings, step)
        logits, loss = _train_step(model, optimizer, images, labels, settings, step, len(batch))
        settings.guard.watch(step, loss, model)
        tally.add(loss, logits, labels)
        settings.on_step(index + 1)
    settings.guard.check()


def _own_images(split: TrainSplit, batch: EpochPlan, settings: EpochSettings, step: int) -> tuple[Tensor, Tensor]:
    """Return the augmented images and labels of a batch that are this process's share."""
    share, size = settings.processes.share(len(batch)), settings.size(step)
    if settings.mix is None:
        return split.augmented(batch[share], size)
    images, labels = settings.mix(*split.augmented(batch, size), step)  # of all processes, or partners would be missing
    return images[share].contiguous(memory_format=torch.channels_last), labels[share]


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: EpochSettings,
    step: int,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Take one step; return logits and mean loss over this process's share of a batch of `batch` images."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * settings.factor(step)
    # Dropout draws from torch's generator; setting it by the step makes the draw a function of (seed, step).
    torch.manual_seed(_dropout_seed(settings.seed, step, settings.processes.rank))
    with autocast(settings.precision, images.device):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    # DistributedDataParallel averages over processes, whose shares may differ by an image.
    (loss * (settings.processes.count * len(labels) / batch)).backward()
    optimizer.step()
    return logits, loss


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int,
    precision: str,
    processes: Processes,
    on_batch: Callable[[], None] = lambda: None,
    mirrored: bool = False,
) -> Score:
    """Score a split, without dropout.

    Args:
        on_batch: called after every batch.
        mirrored: find `Score.mirrored`, too, which doubles the time.
    """
    model.eval()
    device = split.labels.device
    scorer = Scorer(len(split), device, mirrored)
    start = 0
    for images, labels in split.batches(batch_size):
        share = processes.share(len(labels))
        places = torch.arange(start, start + len(labels), device=device)[share]
        start += len(labels)
        images, labels = images[share], labels[share]
        if len(labels):
            with autocast(precision, device):
                logits = tta_logits(model, images, mirrored)
            scorer.add(logits, labels, places)
        on_batch()
    return scorer.score(processes)


def tta_logits(model: Callable[[Tensor], Tensor], images: Tensor, mirrored: bool) -> list[Tensor]:
    """Logits in float32: of images, and if `mirrored` also their mean with those of the mirror images.

    The second is the mirror test-time augmentation of the convolutional speedruns (airbench: Jordan 2024, arXiv
    2404.00498).

    Args:
        images: (..., height, width).
    """
    logits = [model(images).float()]
    if mirrored:
        logits.append((logits[0] + model(images.flip(-1)).float()) / 2)
    return logits


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    # Process 0 draws what a single process would; the others, whose images differ, draw their own.
    counter = [DROPOUT_STREAM, seed, step] + ([rank] if rank else [])
    return int(np.random.SeedSequence(counter).generate_state(1, np.uint64)[0] >> 1)
