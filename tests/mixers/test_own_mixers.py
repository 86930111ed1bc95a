"""Attention mixers of a user: maps that could not be drawn are refused before training, or left out with a note."""

import pytest
import torch
from torch import nn

from attnconv.mixers.base import AttentionMixer

pytestmark = pytest.mark.slow


class Uniform(AttentionMixer):
    """Averages all pixels; the tests change its probabilities or its calls."""

    def __init__(self, width, heads, grid, attention_dropout):
        super().__init__()
        self.value = nn.Linear(width, width)

    def forward(self, x):
        return self.value(x.mean((1, 2), keepdim=True).expand_as(x))

    def attention_probs(self, height, width, x=None):
        pixels = height * width
        return torch.full((1, 2, pixels, pixels), 1 / pixels)


class Forgotten(Uniform):
    attention_probs = AttentionMixer.attention_probs


class WithoutX(Uniform):
    def attention_probs(self, height, width):
        return super().attention_probs(height, width)


class WithoutBatch(Uniform):
    def attention_probs(self, height, width, x=None):
        return super().attention_probs(height, width)[0]


class WithClassToken(Uniform):
    def attention_probs(self, height, width, x=None):
        return nn.functional.pad(super().attention_probs(height, width), (1, 0, 1, 0))


class Scores(Uniform):
    def attention_probs(self, height, width, x=None):
        return 5 - 9 * super().attention_probs(height, width)


class NotFinite(Uniform):
    def attention_probs(self, height, width, x=None):
        return super().attention_probs(height, width) * torch.nan


class Twice(nn.Module):
    """Is no attention itself, and calls one two times."""

    def __init__(self, width, heads, grid, attention_dropout):
        super().__init__()
        self.inner = Uniform(width, heads, grid, attention_dropout)

    def forward(self, x):
        return self.inner(x) + self.inner(x=x.flip(1))


class InHalves(Twice):
    """Attends within the upper and the lower half of a map."""

    def forward(self, x):
        return self.inner(x.unflatten(1, (2, -1)).flatten(0, 1)).unflatten(0, (-1, 2)).flatten(1, 2)


@pytest.fixture
def own_mixer(tmp_path):
    """Return a function: class of a mixer -> arguments of train.py that select the paper's network around it."""

    def choose(mixer):
        (tmp_path / "own/model").mkdir(parents=True)
        text = f"name: mine\nmixer: {{_target_: {__name__}.{mixer.__name__}, _partial_: true}}\n"
        (tmp_path / "own/model/mine.yaml").write_text(f"defaults: [/backbone@_here_, _self_]\n{text}")
        return "--config-dir", tmp_path / "own", "model=mine"

    return choose


@pytest.mark.parametrize(
    ("mixer", "complaint"),
    [
        (Forgotten, "attention_probs of Forgotten: NotImplementedError"),
        (WithoutX, "attention_probs of WithoutX: WithoutX.attention_probs() takes 3 positional arguments"),
        (WithoutBatch, "attention_probs of WithoutBatch gives (2, 4, 4) for a map of 2x2, not (1 or 2, heads, 4, 4)"),
        (WithClassToken, "attention_probs of WithClassToken gives (1, 2, 5, 5) for a map of 2x2"),
        (Scores, "attention_probs of Scores does not give probabilities: the lowest is 2.75, and a row adds up to 11"),
        (NotFinite, "attention_probs of NotFinite gives numbers that are not finite"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_probabilities_that_could_not_be_drawn_are_refused_before_training(refused, own_mixer, mixer, complaint):
    assert complaint in refused(*own_mixer(mixer))


@pytest.mark.parametrize(("mixer", "maps"), [(Uniform, True), (Twice, False), (InHalves, False)])
def test_mixers_without_one_map_train_with_a_note(train, own_mixer, tmp_path, mixer, maps):
    code, _, err = train(*own_mixer(mixer))
    assert code == 0, err
    (folder,) = (path.parent for path in tmp_path.rglob("weights.safetensors"))
    assert (folder / "attention_maps.npy").exists() == maps
    assert ("note: no attention maps: " in err) != maps
