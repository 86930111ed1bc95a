"""Attention mixers of a user: maps that could not be drawn are refused before training, or left out with a note."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from attnconv.mixers.base import AttentionMixer
from attnconv.mixers.encodings import LearnedEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.report.figures.of_run import figures_of_run

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


class LaterScores(Uniform):
    """Its probabilities become negative in the third step, after the rehearsal."""

    def __init__(self, width, heads, grid, attention_dropout):
        super().__init__(width, heads, grid, attention_dropout)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += self.training
        return super().forward(x)

    def attention_probs(self, height, width, x=None):
        return super().attention_probs(height, width) * (1 - 2 * (self.steps > 2).float())


class LaterError(LaterScores):
    def attention_probs(self, height, width, x=None):
        probs = super().attention_probs(height, width)
        assert self.steps < 3
        return probs


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


class Positional(nn.Module):
    """Two layers of position-only attention; the tests change their encodings and the size of the second map."""

    encodings, step = (LearnedEncoding, QuadraticEncoding), 1

    def __init__(self, image_shape, classes):
        super().__init__()
        channels, height, width = image_shape
        sizes = ((height, width), (height // self.step, width // self.step))
        pairs = zip(sizes, self.encodings, strict=True)
        self.layers = nn.ModuleList(PositionalAttention(channels, 2, size, encoding) for size, encoding in pairs)
        self.last = nn.Linear(channels, classes)

    def forward(self, x):
        first, second = self.layers
        return self.last(second(first(x.permute(0, 2, 3, 1))[:, :: self.step, :: self.step]).mean((1, 2)))


class Pyramid(Positional):
    step = 2


class GaussianPyramid(Pyramid):
    encodings = (QuadraticEncoding, QuadraticEncoding)


class OfContent(PositionalAttention):
    """Adds content to position-only attention."""

    def __init__(self, width, heads, grid, attention_dropout):
        super().__init__(width, heads, grid, QuadraticEncoding)

    def attention_probs(self, height, width, x=None):
        scores = x.mean(-1).flatten(1)[:, None, None]
        return (super().attention_probs(height, width).log() + scores).softmax(-1)


class WithPart(Uniform):
    """Has a part, built by a function or already built."""

    def __init__(self, width, heads, grid, attention_dropout, parts):
        super().__init__(width, heads, grid, attention_dropout)
        self.value = parts[0] if isinstance(parts[0], nn.Module) else parts[0]()
        self.own = nn.Linear(width, width)


@pytest.fixture
def own_mixer(own_configs):
    """Return a function: class of a mixer, its arguments -> arguments of train.py for the paper's network around it."""

    def choose(mixer, more=""):
        text = f"name: mine\nmixer: {{_target_: torch.nn.Identity, _partial_: true, {more}}}\n"
        folder = own_configs / hashlib.sha256(text.encode()).hexdigest()[:8]
        if not folder.exists():
            (folder / "model").mkdir(parents=True)
            (folder / "model/mine.yaml").write_text(f"defaults: [/backbone@_here_, _self_]\n{text}")
        return "--config-dir", folder, "model=mine", f"model.mixer._target_={__name__}.{mixer.__name__}"

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


def test_a_part_that_all_layers_would_share_is_refused(refused, own_mixer):
    linear = "_target_: torch.nn.Linear, in_features: 8, out_features: 8"
    assert refused(*own_mixer(WithPart, f"parts: [{{{linear}}}]")) == (
        "error: model.mixer.parts.0: all layers would share one torch.nn.Linear; add _partial_: true to it, and "
        f"{__name__}.WithPart gets a function that builds one"
    )


@pytest.mark.parametrize(
    "part", ["_target_: torch.nn.Linear, in_features: 8, out_features: 8, _partial_: true", "_target_: torch.nn.GELU"]
)
def test_a_part_that_each_layer_builds_or_without_weights_is_accepted(train, own_mixer, part):
    code, _, err = train(*own_mixer(WithPart, f"parts: [{{{part}}}]"))
    assert code == 0, err


@pytest.mark.parametrize(
    ("mixer", "maps"),
    [(Uniform, True), (Twice, False), (InHalves, False), (OfContent, True), (LaterScores, False), (LaterError, False)],
)
def test_mixers_without_maps_train_with_a_note(train, own_mixer, tmp_path, mixer, maps):
    code, _, err = train(*own_mixer(mixer))
    assert code == 0, err
    (folder,) = (path.parent for path in tmp_path.rglob("weights.safetensors"))
    assert (folder / "attention_maps.npy").exists() == maps
    assert ("note: no attention maps: " in err) != maps


@pytest.mark.draws
@pytest.mark.parametrize(
    ("network", "shape", "note"),
    [
        (Positional, (2, 2, 8, 8), ""),
        (Pyramid, None, "the layers see maps of several sizes, 8x8 and 4x4"),
        (GaussianPyramid, None, "the layers see maps of several sizes, 8x8 and 4x4"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_maps_have_the_size_that_the_layers_see(train, own_model, tmp_path, network, shape, note):
    code, _, err = train(*own_model(network))
    assert code == 0, err
    assert err.count("note: no attention maps: ") == bool(note)
    assert note in err
    (folder,) = (path.parent for path in tmp_path.rglob("weights.safetensors"))
    maps = folder / "attention_maps.npy"
    assert (np.load(maps).shape if maps.exists() else None) == shape
    assert (folder / "heads.png").exists() == maps.exists()
    assert (folder / "heads.jsonl").exists() == (network is GaussianPyramid), "its layers have no names"
    if network is GaussianPyramid:
        figures_of_run(folder, trusted=[__name__])
        assert {path.stem for path in (folder / "figures").iterdir()} == {"accuracy"}
