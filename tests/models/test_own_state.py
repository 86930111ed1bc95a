"""A network of the user whose state_dict() is not all of its state is refused, because a run could not be resumed."""

import numpy as np
import pytest
import torch
from test_own_networks import Plain
from torch import nn

pytestmark = pytest.mark.slow


class NotPersistent(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += x.mean().detach()
        return super().forward(x) * (1 + self.seen)


class PlainAttribute(Plain):
    shift = 0.0

    def forward(self, x):
        if self.training:
            self.shift = self.shift + x.mean().detach()
        return super().forward(x) + self.shift * torch.arange(4)


class Counter(Plain):
    steps = 0

    def forward(self, x):
        self.steps += self.training
        return super().forward(x) * 0.9**self.steps


class UnseededProjection(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.mixed = torch.from_numpy(np.random.default_rng().standard_normal((4, 4))).float()

    def forward(self, x):
        return super().forward(x) @ self.mixed


class MadeInForward(Plain):
    def forward(self, x):
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(8, 4)
        return self.extra(self.features(x))


class GrowingBuffer(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("bank", torch.zeros(0, 8))

    def forward(self, x):
        if self.training:
            self.bank = torch.cat([self.bank, self.features(x).detach()])
        return super().forward(x)


class ReplacedParameter(Plain):
    def forward(self, x):
        self.last.bias = nn.Parameter(self.last.bias.detach().clone())
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (NotPersistent, "it keeps state elsewhere"),
        (PlainAttribute, "it keeps state elsewhere"),
        (Counter, "it keeps state elsewhere"),
        (UnseededProjection, "or draws from a generator that cannot be seeded"),
        (MadeInForward, "its forward pass makes or replaces parameters or buffers"),
        (GrowingBuffer, "its forward pass makes or replaces parameters or buffers"),
        (ReplacedParameter, "its forward pass makes or replaces parameters or buffers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_state_outside_of_the_state_dict_is_refused(refused, own_model, network, complaint):
    error = refused(*own_model(network))
    assert error.startswith("error: model=mine cannot be trained: ")
    assert complaint in error


class FixedDraws(Plain):
    """Draws a projection, which is not saved, from the generators that the seed of the run sets."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.mixed = torch.randn(4, 4) + float(np.random.rand())  # noqa: NPY002

    def forward(self, x):
        return super().forward(x) @ self.mixed


class FailsOnSmallBatches(Plain):
    """Remembers the last batch, and fails at one of another size."""

    rows = 0

    def forward(self, x):
        if self.training and self.rows > len(x) > 2:
            raise ValueError("fewer images than before")
        self.rows = len(x)
        return super().forward(x)


def test_fixed_random_numbers_of_the_seed_are_accepted(train, own_model):
    assert train(*own_model(FixedDraws))[0] == 0


def test_an_error_of_the_network_in_training_is_one_line(train, own_model):
    code, _, err = train(*own_model(FailsOnSmallBatches))
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: model=mine failed in training: fewer images than before (test_own_state.py, line ")
