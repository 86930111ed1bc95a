"""One epoch of training and one evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.data.augmentation import EpochPlan, ImageSize
from attnconv.data.dataset import Split, TrainSplit
from attnconv.models.process_state import evaluation_draws, seed_of, seeded_generators
from attnconv.runs.checkpoint import Progress
from attnconv.training.device import autocast
from attnconv.training.distributed import Processes
from attnconv.training.metrics import FiniteGuard, Score, Scorer, Tally
from attnconv.training.optimizers import require_all_trained

DROPOUT_STREAM = 4
CUTMIX_STREAM = 7

# (images (B, C, H, W), labels (B,), step) -> images, and probabilities of the classes (B, classes)
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EpochSettings:
    """The settings that all epochs of a run share.

    Args:
        lr_factor: maps a step to the factor on the `initial_lr` of each group.
        image_size: maps a step to the size of the images; None keeps them as they are.
        cutmix: mixes the images of a batch, as `cutmix` does; None for no mixing.
        processes: the processes that share each batch.
        on_step: called after each step with the number of steps taken in this epoch.
    """

    seed: int
    batch_size: int
    label_smoothing: float
    lr_factor: Callable[[int], float]
    image_size: Callable[[int], ImageSize | None]
    cutmix: Mix | None
    precision: str
    processes: Processes
    finite_guard: FiniteGuard
    on_step: Callable[[int], None]


def batch_sizes(images: int, size: int) -> list[int]:
    """Return the batch sizes for `images` images: full batches, and a smaller last one."""
    return [found for found in dict.fromkeys((min(size, images), images % size)) if found]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: TrainSplit,
    plan: EpochPlan,
    settings: EpochSettings,
    progress: Progress,
    tally: Tally,
) -> None:
    """Train on the images of a plan, in order, and add the scores of each step to `tally`.

    Args:
        progress: the epoch, and the step to start from; `tally` already holds the images of earlier steps.

    Raises:
        NotFinite: see FiniteGuard.
        ConfigError: see `require_all_trained`.
    """
    starts = range(0, len(plan), settings.batch_size)
    for index in range(progress.steps_in_epoch, len(starts)):
        # Learning rate, image size, mixing and dropout depend only on the step, so that a run can resume.
        step = progress.epochs_done * len(starts) + index
        batch = plan[starts[index] : starts[index] + settings.batch_size]
        images, labels = _own_images(split, batch, settings, step)
        logits, loss = _train_step(model, optimizer, images, labels, settings, step, len(batch))
        settings.finite_guard.record(step, loss, model)
        tally.add(loss, logits, labels)
        settings.on_step(index + 1)
    require_all_trained(model, optimizer)
    settings.finite_guard.check()


def _own_images(split: TrainSplit, batch: EpochPlan, settings: EpochSettings, step: int) -> tuple[Tensor, Tensor]:
    """Return this process's share of the augmented images and labels of a batch."""
    share, size = settings.processes.share(len(batch)), settings.image_size(step)
    if settings.cutmix is None:
        return split.augmented(batch[share], size)
    # of all processes, so that all partners are present
    images, labels = settings.cutmix(*split.augmented(batch, size), step)
    return images[share].contiguous(memory_format=torch.channels_last), labels[share]


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    settings: EpochSettings,
    step: int,
    batch_images: int,
) -> tuple[Tensor, Tensor]:
    """Take one step and return the logits and the mean loss of this process's share of a batch."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * settings.lr_factor(step)
    # Dropout draws from PyTorch's global generator. Seeding it at each step makes the mask a function of (seed, step,
    # rank).
    with seeded_generators(seed_of(DROPOUT_STREAM, settings.seed, step, settings.processes.rank)):
        with autocast(settings.precision, images.device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel averages over processes, whose shares may differ by one image.
        (loss * (settings.processes.count * len(labels) / batch_images)).backward()
    optimizer.step()
    return logits, loss


def cutmix(alpha: float, classes: int, seed: int) -> Mix:
    """Return CutMix (Yun et al. 2019): a box of each image comes from another image of its batch.

    The label is mixed in proportion. The box depends only on (seed, step), and partners come from the whole batch, so a
    run that resumes or is spread over several processes sees the same images.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the share that an image keeps; above 0.
    """
    from torchvision.transforms.v2 import CutMix  # takes a second to import, and few runs need it

    transform = CutMix(alpha=alpha, num_classes=classes)

    def mix(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        # The transform draws from PyTorch's global generator.
        torch.manual_seed(seed_of(CUTMIX_STREAM, seed, step, rank=0))
        mixed, targets = transform(images, labels)
        return mixed, targets

    return mix


@torch.no_grad()  # not inference_mode, in which a network cannot compute gradients of its own
def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int,
    precision: str,
    processes: Processes,
    on_batch: Callable[[], None] = lambda: None,
    mirrored: bool = False,
    seed: int = 0,
) -> Score:
    """Evaluate a split, without dropout.

    Args:
        on_batch: called after each batch.
        mirrored: also compute `Score.mirrored`, which doubles the time.
        seed: of the random numbers that a network may draw in evaluation.
    """
    model.eval()
    device = split.labels.device
    scorer = Scorer(len(split), device, mirrored)
    start = 0
    for images, labels in split.batches(batch_size):
        share = processes.share(len(labels))
        places = torch.arange(start, start + len(labels), device=device)[share]
        size = len(labels)
        images, labels = images[share], labels[share]
        if len(labels):
            with evaluation_draws(device, seed, start, processes.rank), autocast(precision, device):
                logits = tta_logits(model, images, mirrored)
            scorer.add(logits, labels, places)
        start += size
        on_batch()
    return scorer.score(processes)


def tta_logits(model: Callable[[Tensor], Tensor], images: Tensor, mirrored: bool) -> list[Tensor]:
    """Return the logits of images in float32, and if `mirrored` also their mean with those of the mirror images.

    The mean is the mirror test-time augmentation of the convolutional speedruns (airbench: Jordan 2024, arXiv
    2404.00498).

    Args:
        images: (..., height, width).
    """
    mirror_images = images.flip(-1) if mirrored else None  # first, because a network may change its input in place
    logits = [model(images).float()]
    if mirror_images is not None:
        logits.append((logits[0] + model(mirror_images).float()) / 2)
    return logits
