"""Loss, accuracy and time of training and evaluation, and the check that all numbers are finite."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.training.distributed import Processes

NEVER = 2**62  # a step that no run reaches
NOT_FINITE = -1
CHECK_EVERY = 50  # steps between checks for finite numbers, where a check makes the device wait


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and accuracy (0..1) over a split or an epoch.

    Args:
        mirrored: accuracy of the mean logits of each image and its mirror image; None if not computed.
        predictions: the class predicted for each image of a split, (N,) int64, in the order of the split; NOT_FINITE
            for an image whose loss is not finite.
    """

    loss: float
    accuracy: float
    mirrored: float | None = None
    predictions: Tensor | None = field(default=None, compare=False, repr=False)

    def metrics(self, split: str) -> dict[str, float]:
        """Return the scores by their names in metrics.jsonl and the dashboards."""
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
        sums = torch.zeros((), dtype=torch.float32, device=device)
        return cls(sums + loss, sums + correct, images)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the mean loss and the predictions of some images.

        Args:
            labels: (B,), or the probabilities of the classes (B, classes); a prediction then counts as much as its
                class is probable.
        """
        predicted = logits.detach().argmax(dim=1)
        correct = predicted == labels if labels.dim() == 1 else labels.gather(1, predicted[:, None])
        self.loss += loss.detach() * len(labels)
        self.correct += correct.sum()
        self.images += len(labels)

    def total(self, processes: Processes) -> "Tally":
        """Return the sum over processes. Waits for the device."""
        sums = torch.stack([self.loss, self.correct, torch.full_like(self.loss, self.images)])
        loss, correct, images = processes.sum_(sums.double() if processes.count > 1 else sums)
        return Tally(loss, correct, int(images))

    def score(self) -> Score:
        """Return the mean loss and the accuracy. Waits for the device."""
        return Score(self.loss.item() / self.images, self.correct.item() / self.images)


class NotFinite(Exception):
    """A loss or a gradient is not finite.

    Args:
        step: the first such step of the run, from 0.
        what: "loss" or "gradient".
    """

    def __init__(self, step: int, what: str):
        super().__init__(f"the {what} of step {step} is not finite")
        self.step, self.what = step, what


class FiniteGuard:
    """Detect the first loss or gradient that is not finite, without making a GPU wait at each step."""

    def __init__(self, device: torch.device):
        self._first_loss = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._first_gradient = self._first_loss.clone()
        self._every = 1 if device.type == "cpu" else CHECK_EVERY

    def record(self, step: int, loss: Tensor, model: nn.Module) -> None:
        """Record this step's loss and gradients.

        Raises:
            NotFinite: raised at most CHECK_EVERY steps after the first such step.
        """
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        for first, value in ((self._first_loss, loss.detach()), (self._first_gradient, norm)):
            bad = torch.where(value.isfinite(), NEVER, step)
            torch.minimum(first, bad, out=first)
        if step % self._every == 0:
            self.check()

    def check(self) -> None:
        """Check all recorded steps. Waits for the device.

        Raises:
            NotFinite: a recorded loss or gradient is not finite.
        """
        loss, gradient = int(self._first_loss), int(self._first_gradient)
        if min(loss, gradient) < NEVER:
            raise NotFinite(min(loss, gradient), "loss" if loss <= gradient else "gradient")


class Scorer:
    """Collect the scores of an evaluation.

    Args:
        images: number of images in the split.
        mirrored: whether mirror images are evaluated as well.
    """

    def __init__(self, images: int, device: torch.device, mirrored: bool):
        self._predictions = torch.zeros(images, dtype=torch.int64, device=device)
        self._plain, self._mirrored = Tally.on(device), Tally.on(device) if mirrored else None

    def add(self, logits: Sequence[Tensor], labels: Tensor, places: Tensor) -> None:
        """Add the images at `places` of the split, for which `tta_logits` returned `logits`."""
        finite = F.cross_entropy(logits[0], labels, reduction="none").isfinite()
        self._predictions[places] = torch.where(finite, logits[0].argmax(dim=1), NOT_FINITE)
        for tally, own in zip(filter(None, (self._plain, self._mirrored)), logits, strict=True):
            tally.add(F.cross_entropy(own, labels), own, labels)

    def score(self, processes: Processes) -> Score:
        """Return the score over the images of all processes. Waits for the device."""
        plain = self._plain.total(processes).score()
        # Each process leaves 0 at the images of the others, so the sum holds all predictions.
        plain = replace(plain, predictions=processes.sum_(self._predictions))
        return replace(plain, mirrored=self._mirrored.total(processes).score().accuracy) if self._mirrored else plain


class Stopwatch:
    """Measure wall-clock and CPU time since construction; pauses and other programs do not increase CPU time."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return wall-clock seconds."""
        return time.perf_counter() - self._clock

    def cpu_seconds(self, processes: Processes) -> float:
        """Return the CPU seconds of all threads of all processes; all processes must call this."""
        spent = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64)
        return processes.sum_(spent).item()
