"""A network of the user whose state_dict() is not all of its state is refused, because a run could not be resumed."""

import itertools
import os
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_network import Plain
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


class CachedInEvaluation(Plain):
    """Keeps the weights of its first evaluation."""

    kept = None

    def forward(self, x):
        if self.training:
            return super().forward(x)
        self.kept = self.last.weight.clone() if self.kept is None else self.kept
        return self.features(x) @ self.kept.T


class ChangedInEvaluation(Plain):
    def train(self, mode=True):
        return super().train()


class StatisticsOfTheBatch(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


class NaNInEvaluation(Plain):
    def forward(self, x):
        return super().forward(x) * (1 if self.training else torch.nan)


class SeedsItself(Plain):
    def __init__(self, image_shape, classes):
        torch.manual_seed(0)
        super().__init__(image_shape, classes)


class SeedsNumPy(Plain):
    """Has no weights but these, and draws them from a generator that it seeds itself."""

    def __init__(self, image_shape, classes):
        nn.Module.__init__(self)
        np.random.seed(0)  # noqa: NPY002
        weight = np.random.randn(classes, image_shape[0])  # noqa: NPY002
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight.T


class SeedsPython(SeedsNumPy):
    def __init__(self, image_shape, classes):
        nn.Module.__init__(self)
        random.seed(0)
        self.weight = nn.Parameter(torch.full((classes, image_shape[0]), random.random()))


BIAS, MEAN = nn.Parameter(torch.zeros(4)), torch.zeros(4)


class ParameterOfTheModule(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.last.bias = BIAS


class BufferOfTheModule(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("mean", MEAN)

    def forward(self, x):
        out = super().forward(x)
        if self.training and not self.mean.is_meta:
            self.mean.lerp_(out.detach().mean(0), 0.5)
        return out - self.mean


class Thawed(Plain):
    """Freezes its last layer until its second step."""

    steps = 2

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.last.requires_grad_(False)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.done += self.training
        if self.training:
            self.last.requires_grad_(bool(self.done >= self.steps))
        return super().forward(x)


class ThawedLater(Thawed):
    """Freezes its last layer in the rehearsal, too."""

    steps = 3


class TrainingCounter(Plain):
    """Anneals its dropout by a count of steps that no checkpoint holds; evaluations do not use it."""

    steps = 0

    def forward(self, x):
        self.steps += self.training
        return self.last(F.dropout(self.features(x), 0.5**self.steps, self.training))


class OwnGenerator(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, x):
        factors = torch.rand(4, generator=self.noise) if self.training else 1
        return super().forward(x) * factors


class StatisticOfTheModule(Plain):
    def forward(self, x):
        if self.training:
            SEEN.append(x.mean().item())
        return super().forward(x) + self.training * sum(SEEN) * torch.arange(4)


SEEN = []


class UnseededWeights(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.last.weight.data = torch.from_numpy(np.random.default_rng().standard_normal((4, 8))).float()


class CountedWeights(Plain):
    built = itertools.count(1)

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.last.weight.data *= next(self.built)


class ReadsAlongTheBatch(Plain):
    """An LSTM whose first axis is the batch, so that an image changes the results of later ones."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.read = nn.LSTM(8, 8)

    def forward(self, x):
        return self.last(self.read(self.features(x))[0] + self.features(x))


class FirstImageForAll(Plain):
    def forward(self, x):
        return (super().forward(x) + x[:, 0, 0, :4])[:1].expand(len(x), -1)


class ListOfLayers(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.hidden = {"deep": [nn.Linear(8, 8), nn.Linear(8, 8)]}

    def forward(self, x):
        x = self.features(x)
        for layer in self.hidden["deep"]:
            x = layer(x)
        return self.last(x)


class SeedsInForward(Plain):
    def forward(self, x):
        torch.manual_seed(0)
        return self.last(F.dropout(self.features(x), training=self.training))


class ChangesFolder(Plain):
    def forward(self, x):
        os.chdir("/")
        return super().forward(x)


class ChangesType(Plain):
    def forward(self, x):
        torch.set_default_dtype(torch.float64)
        return super().forward(x)


class InfiniteGradient(Plain):
    def forward(self, x):
        return super().forward(x) + (self.last.bias - self.last.bias.detach()).sqrt()


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (TrainingCounter, "gives other logits in training: it keeps state elsewhere"),
        (OwnGenerator, "gives other logits in training: it keeps state elsewhere"),
        (StatisticOfTheModule, "gives other logits in training: it keeps state elsewhere"),
        (UnseededWeights, "last.weight starts with other values each time, whatever the seed"),
        (CountedWeights, "last.weight starts with other values each time, whatever the seed"),
        (ReadsAlongTheBatch, "the probabilities of an image depend on the other images of its batch"),
        (FirstImageForAll, "the probabilities of an image depend on the other images of its batch"),
        (ListOfLayers, "the layers in hidden are not registered, and would not be trained"),
        (SeedsInForward, "its forward pass calls torch.manual_seed, so that all steps draw the same numbers"),
        (ChangesFolder, "its forward pass calls os.chdir, which changes the rest of the program"),
        (ChangesType, "its forward pass calls torch.set_default_dtype, which changes the rest of the program"),
        (InfiniteGradient, "the gradient of last.bias is nan or inf before any training"),
        (NotPersistent, "it keeps state elsewhere"),
        (PlainAttribute, "it keeps state elsewhere"),
        (Counter, "it keeps state elsewhere"),
        (UnseededProjection, "or draws from a generator that cannot be seeded"),
        (MadeInForward, "its forward pass makes or replaces parameters or buffers"),
        (GrowingBuffer, "its forward pass makes or replaces parameters or buffers"),
        (ReplacedParameter, "its forward pass makes or replaces parameters or buffers"),
        (CachedInEvaluation, "it keeps state elsewhere"),
        (ChangedInEvaluation, "an evaluation changes norm.running_mean, so a resumed run would differ"),
        (StatisticsOfTheBatch, "the probabilities of an image depend on the other images of its batch"),
        (NaNInEvaluation, "it gives nan in evaluation"),
        (SeedsItself, "its constructor calls torch.manual_seed, so seed= does not change its weights"),
        (SeedsNumPy, "its constructor calls np.random.seed, so seed= does not change its weights"),
        (SeedsPython, "its constructor calls random.seed, so seed= does not change its weights"),
        (ParameterOfTheModule, "all networks that it builds share last.bias, which training changes"),
        (BufferOfTheModule, "all networks that it builds share mean, which training changes"),
        (Thawed, "last.weight is frozen at first, so the optimizer lacks it, and requires a gradient later"),
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


class CachedUntilTraining(Plain):
    """Keeps the weights of an evaluation until the next training, and shares a constant with other networks."""

    kept = None

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("constant", CONSTANT)
        self.register_buffer("cache", None, persistent=False)

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self, x):
        if self.training:
            self.cache = torch.zeros(1)
            return super().forward(x)
        self.kept = self.last.weight.clone() if self.kept is None else self.kept
        return F.linear(self.features(x), self.kept, self.last.bias)


CONSTANT = torch.full((3,), torch.nan)


@pytest.mark.parametrize("network", [FixedDraws, CachedUntilTraining], ids=lambda network: network.__name__)
def test_sound_networks_with_state_elsewhere_are_accepted(train, own_model, network):
    code, _, err = train(*own_model(network))
    assert code == 0, err


class IdleLayer(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.extra = nn.Linear(100, 10)


class DropoutInEvaluation(Plain):
    def forward(self, x):
        return self.last(F.dropout(self.features(x)))


class FixedWeights(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        draw = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=draw)


@pytest.mark.parametrize(
    ("network", "note"),
    [
        (IdleLayer, "1,010 of 1,870 parameters got no gradient in two trial steps: extra.weight, extra.bias"),
        (DropoutInEvaluation, "the network draws random numbers in evaluation, too"),
        (FixedWeights, "seed= does not change the initial weights of the network"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_may_surprise_the_user_is_a_note(train, own_model, network, note):
    code, _, err = train(*own_model(network))
    assert code == 0, err
    notes = [line for line in err.splitlines() if line.startswith("note: ") and "scale." not in line]
    assert [line.startswith(f"note: {note}") for line in notes] == [True], err


def test_a_layer_that_thaws_in_training_is_reported(train, own_model):
    code, _, err = train(*own_model(ThawedLater))
    assert code == 2
    assert "error: the network cannot be trained: last.bias is frozen at first" in err.splitlines()[-1]


def test_an_error_of_the_network_in_training_is_one_line(train, own_model):
    code, _, err = train(*own_model(FailsOnSmallBatches))
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith("error: model=mine failed in training: fewer images than before (test_own_state.py, line ")
