"""One epoch of training, one evaluation: the only places where a model meets data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.data.augmentation import EpochPlan
from attnconv.data.dataset import Split, TrainSplit
from attnconv.training.precision import autocast

DROPOUT_STREAM = 4


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy and accuracy (0..1) over a split or an epoch."""

    loss: float
    accuracy: float


@dataclass
class Tally:
    """Sums of loss and correct predictions, kept on the device so that no step waits for them."""

    loss: Tensor
    correct: Tensor
    images: int = 0

    @classmethod
    def on(cls, device: torch.device) -> "Tally":
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss.detach() * len(labels)
        self.correct += (logits.detach().argmax(dim=1) == labels).sum()
        self.images += len(labels)

    def score(self) -> Score:
        """Waits for the device."""
        return Score(self.loss.item() / self.images, self.correct.item() / self.images)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: TrainSplit,
    plan: EpochPlan,
    *,
    first_step: int,
    seed: int,
    batch_size: int,
    label_smoothing: float,
    factor: Callable[[int], float],
    precision: str,
    on_step: Callable[[Tally], None],
) -> Score:
    """Train on every image once, in the plan's order.

    Args:
        first_step: steps taken before this epoch; the learning rate and dropout are functions of the step.
        factor: step -> what every group's `initial_lr` is multiplied by.
        on_step: called after each step with the epoch's tally so far.

    Returns:
        The epoch's score on the augmented images, each under the weights of its own step.
    """
    model.train()
    device = split.labels.device
    tally = Tally.on(device)
    for index, start in enumerate(range(0, len(split), batch_size)):
        step = first_step + index
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor(step)
        # Dropout draws from torch's generator; setting it by the step makes the draw a function of (seed, step).
        torch.manual_seed(_dropout_seed(seed, step))
        images, labels = split.augmented(plan, start, start + batch_size)
        with autocast(precision, device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        tally.add(loss, logits, labels)
        on_step(tally)
    return tally.score()


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, batch_size: int, precision: str) -> Score:
    """Score a split, without augmentation or dropout."""
    model.eval()
    device = split.labels.device
    tally = Tally.on(device)
    for images, labels in split.batches(batch_size):
        with autocast(precision, device):
            logits = model(images).float()
        tally.add(F.cross_entropy(logits, labels), logits, labels)
    return tally.score()


def _dropout_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([DROPOUT_STREAM, seed, step]).generate_state(1, np.uint64)[0] >> 1)
