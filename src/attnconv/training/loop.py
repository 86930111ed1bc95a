"""One epoch of training, one evaluation: the only places where a model meets data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.data.augmentation import EpochPlan, ImageSize
from attnconv.data.dataset import Split, TrainSplit
from attnconv.training.cutmix import Mix
from attnconv.training.device import autocast
from attnconv.training.distributed import Processes

DROPOUT_STREAM = 4
NEVER = 2**62  # a step that no run reaches
CHECK_EVERY = 50  # steps between looks at whether all is finite, where a look makes the device wait


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and accuracy (0..1) over a split or an epoch.

    Args:
        mirrored: accuracy where each image is judged together with its mirror image; None: not looked at.
        predictions: of a split, the class of each image by its own logits, (N,) int64, in the order of the split.
    """

    loss: float
    accuracy: float
    mirrored: float | None = None
    predictions: Tensor | None = field(default=None, compare=False, repr=False)

    def metrics(self, split: str) -> dict[str, float]:
        """By the names under which metrics.jsonl and the dashboards know them."""
        both = {} if self.mirrored is None else {f"{split}/acc_mirrored": self.mirrored}
        return {f"{split}/loss": self.loss, f"{split}/acc": self.accuracy, **both}


@dataclass
class Tally:
    """Sums of loss and correct predictions, kept on the device so that no step waits for them."""

    loss: Tensor
    correct: Tensor
    images: int = 0

    @classmethod
    def on(cls, device: torch.device, loss: float = 0.0, correct: float = 0.0, images: int = 0) -> "Tally":
        return cls(torch.tensor(loss, device=device), torch.tensor(correct, device=device), images)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the mean loss over some images, and what was predicted of them.

        Args:
            labels: (B,), or the probabilities of the classes (B, classes), where a prediction is as correct as its
                class is probable.
        """
        predicted = logits.detach().argmax(dim=1)
        correct = predicted == labels if labels.dim() == 1 else labels.gather(1, predicted[:, None])
        self.loss += loss.detach() * len(labels)
        self.correct += correct.sum()
        self.images += len(labels)

    def total(self, processes: Processes) -> "Tally":
        """The sum over processes. Waits for the device."""
        sums = torch.stack([self.loss, self.correct, torch.tensor(float(self.images), device=self.loss.device)])
        loss, correct, images = processes.sum_(sums.double() if processes.count > 1 else sums)
        return Tally(loss, correct, int(images))

    def score(self) -> Score:
        """Waits for the device."""
        return Score(self.loss.item() / self.images, self.correct.item() / self.images)


class NotFinite(Exception):
    """A loss or a gradient that is no finite number.

    Args:
        step: the first such step of the run, from 0.
        what: "loss" or "gradient".
    """

    def __init__(self, step: int, what: str):
        super().__init__(f"the {what} of step {step} is not finite")
        self.step, self.what = step, what


class FiniteGuard:
    """Notices the first loss or gradient that is not finite, without making a GPU wait at every step."""

    def __init__(self, device: torch.device):
        self._first_loss = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._first_gradient = self._first_loss.clone()
        self._every = 1 if device.type == "cpu" else CHECK_EVERY

    def watch(self, step: int, loss: Tensor, model: nn.Module) -> None:
        """Note this step's loss and gradients.

        Raises:
            NotFinite: at the latest CHECK_EVERY steps after the first of them.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        for first, value in ((self._first_loss, loss.detach()), (self._first_gradient, norm)):
            bad = torch.where(value.isfinite(), NEVER, step)
            torch.minimum(first, bad, out=first)
        if step % self._every == 0:
            self.check()

    def check(self) -> None:
        """Raises:
        NotFinite: one was noticed. Waits for the device.
        """
        loss, gradient = int(self._first_loss), int(self._first_gradient)
        if min(loss, gradient) < NEVER:
            raise NotFinite(min(loss, gradient), "loss" if loss <= gradient else "gradient")


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: TrainSplit,
    plan: EpochPlan,
    *,
    steps_before: int,
    steps_done: int,
    tally: Tally,
    guard: FiniteGuard,
    seed: int,
    batch_size: int,
    label_smoothing: float,
    factor: Callable[[int], float],
    size: Callable[[int], ImageSize | None],
    mix: Mix | None,
    precision: str,
    processes: Processes,
    on_step: Callable[[int], None],
) -> None:
    """Train on the images of a plan, in its order, adding to `tally` each under the weights of its own step.

    Args:
        steps_before: steps taken before this epoch; the learning rate and dropout are functions of the step.
        steps_done: steps of this epoch that an earlier sitting took, whose images `tally` holds already.
        factor: step -> what every group's `initial_lr` is multiplied by.
        size: step -> size of the images; None: as they are.
        mix: mixes the images of a batch (attnconv.training.cutmix); None: they stay apart.
        processes: among which each batch is divided.
        on_step: called after each step with the number of steps of this epoch taken.

    Raises:
        NotFinite: see FiniteGuard.
    """
    device = split.labels.device
    starts = range(0, len(plan), batch_size)
    for index in range(steps_done, len(starts)):
        model.train()
        step, start = steps_before + index, starts[index]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(step)
        batch = plan[start : start + batch_size]
        share = processes.share(len(batch))
        if mix is None:
            images, labels = split.augmented(batch[share], size(step))
        else:  # of all processes, or partners would be missing
            images, labels = mix(*split.augmented(batch, size(step)), step)
            images, labels = images[share].contiguous(memory_format=torch.channels_last), labels[share]
        # Dropout draws from torch's generator; setting it by the step makes the draw a function of (seed, step).
        torch.manual_seed(_dropout_seed(seed, step, processes.rank))
        with autocast(precision, device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel averages over processes, whose shares may differ by an image.
        (loss * (processes.count * len(labels) / len(batch))).backward()
        optimizer.step()
        guard.watch(step, loss, model)
        tally.add(loss, logits, labels)
        on_step(index + 1)
    guard.check()


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


class Scorer:
    """What an evaluation adds up.

    Args:
        images: in the split.
        mirrored: whether mirror images are looked at, too.
    """

    def __init__(self, images: int, device: torch.device, mirrored: bool):
        self._predictions = torch.zeros(images, dtype=torch.int64, device=device)
        self._plain, self._mirrored = Tally.on(device), Tally.on(device) if mirrored else None

    def add(self, logits: Sequence[Tensor], labels: Tensor, places: Tensor) -> None:
        """Add the images at `places` of the split, for which `tta_logits` returned `logits`."""
        self._predictions[places] = logits[0].argmax(dim=1)
        for tally, own in zip(filter(None, (self._plain, self._mirrored)), logits, strict=True):
            tally.add(F.cross_entropy(own, labels), own, labels)

    def score(self, processes: Processes) -> Score:
        """The score over all processes' images. Waits for the device."""
        plain = self._plain.total(processes).score()
        # Each process leaves 0 in the places of the others, so that their sum is the predictions of all.
        plain = replace(plain, predictions=processes.sum_(self._predictions))
        return replace(plain, mirrored=self._mirrored.total(processes).score().accuracy) if self._mirrored else plain


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    # Process 0 draws what a single process would; the others, whose images differ, draw their own.
    counter = [DROPOUT_STREAM, seed, step] + ([rank] if rank else [])
    return int(np.random.SeedSequence(counter).generate_state(1, np.uint64)[0] >> 1)
