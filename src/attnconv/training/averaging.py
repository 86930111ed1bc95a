"""A running mean of the weights over the steps of training, to be evaluated and kept in place of the last ones.

The mean's memory grows with training until it is 1 / (1 - decay) steps long, so that the random weights at the start
are forgotten.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a network's parameters and buffers, one update a step.

    Args:
        model: the network that is trained; the mean begins with its weights.
        decay: of the mean, per step, in (0, 1), once training is long enough.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._model = model
        self._mean = ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=3 / 4)
        self._own: dict[str, Tensor] | None = None  # while the network has the mean's

    def update(self, step: int) -> None:
        """Take the weights after `step` steps of training (from 1) into the mean."""
        self._mean.update(self._model, step=step)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return self._mean.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's mean."""
        self._mean.module.load_state_dict(state)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While entered, the network has the mean's weights."""
        self._own = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._copy(self.state_dict())
        try:
            yield
        finally:
            self._copy(self._own)
            self._own = None

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """While entered, the network has its own weights, even inside of `applied`."""
        if self._own is None:
            yield
            return
        self._copy(self._own)
        try:
            yield
        finally:
            self._copy(self.state_dict())

    @torch.no_grad()
    def _copy(self, tensors: dict[str, Tensor]) -> None:
        # In place, so that a compiled or distributed network sees them too.
        for name, tensor in self._model.state_dict().items():
            tensor.copy_(tensors[name])
