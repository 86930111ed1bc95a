"""A network of the user that cannot train is refused in one line before a run folder exists."""

import contextlib
import functools
import sys

import pytest
import torch
import torch.nn.functional as F
from plain_network import Plain
from torch import nn

from attnconv.training.rehearsal import rehearse

pytestmark = pytest.mark.slow


class MissingAttribute(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.nothing  # noqa: B018


class WithoutSuper(nn.Module):
    def __init__(self, image_shape, classes):
        self.last = nn.Linear(3, classes)


class OtherArguments(Plain):
    def __init__(self, in_channels, classes):
        super().__init__((in_channels,), classes)


def no_module(image_shape, classes):
    return None


@functools.cache
def always_the_same(image_shape, classes):
    return Plain(image_shape, classes)


class UndefinedName(Plain):
    def forward(self, x):
        return undefined(x)  # noqa: F821


class TwoInTraining(Plain):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class MeanOverBatch(Plain):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


class Labels(Plain):
    def forward(self, x):
        return super().forward(x).long()


class Frozen(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.requires_grad_(False)


class Infinite(Plain):
    def forward(self, x):
        return super().forward(x) / 0.0


class ByItsWeight(Plain):
    """Calls a layer by its weight and stride."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.first = nn.Conv2d(image_shape[0], 8, 1, stride=2)

    def features(self, x):
        return F.conv2d(x, self.first.weight, self.first.bias, self.first.stride).mean((2, 3))


class Viewed(Plain):
    def forward(self, x):
        return self.last(self.second(self.first(x)).view(len(x), -1)[:, :8])


class KeepsGraph(Plain):
    state = 0

    def forward(self, x):
        out = super().forward(x) + self.state
        self.state = out.mean()
        return out


class InPlaceOnWeight(Plain):
    def forward(self, x):
        self.last.weight.mul_(0.5)
        return super().forward(x)


class SparseGradient(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.colors = nn.Embedding(4, classes, sparse=True)

    def forward(self, x):
        return super().forward(x) + self.colors((x[:, 0] > 0).long()).mean((1, 2))


class ExtraState(Plain):
    def get_extra_state(self):
        return {}


class Expanded(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("places", torch.arange(3).expand(2, 3))


class Exits(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        sys.exit()


class ExitsLater(Plain):
    def forward(self, x):
        sys.exit(0)


class Pairs(Plain):
    """Two images together, in training and in evaluation."""

    def features(self, x):
        return super().features(x).unflatten(0, (-1, 2)).flatten(0, 1) if len(x) > 1 else super().features(x)


class PairsInTraining(Plain):
    def forward(self, x):
        logits = super().forward(x)
        return logits.unflatten(0, (-1, 2)).flatten(0, 1) if self.training else logits


class ReadsValues(Pairs):
    def forward(self, x):
        return super().forward(x) * float(x.isfinite().all())


class Idle(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.idle = nn.Linear(2, 2)


class RunningMean(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.norm = nn.InstanceNorm2d(8, track_running_stats=True)


class SparseBuffer(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("edges", torch.eye(3).to_sparse())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (MissingAttribute, "has no attribute 'nothing' (test_refused_networks.py, line "),
        (WithoutSuper, "cannot assign module before Module.__init__() call (test_refused_networks.py, line "),
        (
            OtherArguments,
            "must take image_shape, which is (channels, height, width), and classes; it lacks image_shape",
        ),
        (no_module, "no_module builds a NoneType, not a torch.nn.Module"),
        (always_the_same, "first.weight is on the meta device, without values; a constructor must build a new network"),
        (
            UndefinedName,
            "cannot take images of 8x8 pixels: name 'undefined' is not defined (test_refused_networks.py, ",
        ),
        (TwoInTraining, "cannot be trained: it gives a tuple, not logits"),
        (MeanOverBatch, "cannot be trained: it gives (1, 4) for 16 images, not (16, 4): one logit per class"),
        (Labels, "it gives numbers of type int64, not logits"),
        (Frozen, "cannot be trained: it has no parameters, only frozen ones, or a forward pass without gradients"),
        (Infinite, "cannot be trained: it gives nan or inf before any training"),
        (ByItsWeight, "call a layer, or select the pixels first: x[..., ::2, ::2] (test_refused_networks.py, line "),
        (Viewed, "Use .reshape(...) instead. (test_refused_networks.py, line "),
        (KeepsGraph, "cannot be trained: Trying to backward through the graph a second time"),
        (
            InPlaceOnWeight,
            "cannot be trained: a leaf Variable that requires grad is being used in an in-place operation",
        ),
        (SparseGradient, "the gradient of colors.weight is sparse"),
        (ExtraState, "_extra_state of its state_dict() is a dict, and only tensors can be saved"),
        (Expanded, "places is expanded, so its values could not be loaded again: add .clone()"),
        (SparseBuffer, "edges is sparse_coo, which weights.safetensors cannot hold"),
        (Exits, "model=mine: it exits the program (test_refused_networks.py, line "),
        (ExitsLater, "cannot take images of 8x8 pixels: it exits the program (test_refused_networks.py, line "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_networks_that_cannot_train_are_refused(refused, own_model, network, complaint):
    assert complaint in refused(*own_model(network))


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (Idle, "idle.weight gets no gradient, so several processes would wait forever: start one process"),
        (RunningMean, "training changes norm.running_mean, and each process would have its own copy: start one"),
        (Plain, None),
    ],
)
def test_networks_that_several_processes_cannot_train_are_refused(network, complaint):
    node = {"name": "mine", "_target_": f"{network.__module__}.{network.__name__}"}
    images = torch.randn(2, 3, 8, 8)
    rehearse(node, (3, 8, 8), 4, images, bf16=False, on_cpu=True, alone=True)
    expected = pytest.raises(ValueError, match=complaint) if complaint else contextlib.nullcontext()
    with expected:
        rehearse(node, (3, 8, 8), 4, images, bf16=False, on_cpu=True, alone=False)


@pytest.mark.parametrize(
    ("network", "setting", "complaint"),
    [
        (Pairs, "recipe.batch_size=9", "cannot take 9 images at once (recipe.batch_size=9, 40 images): "),
        (Pairs, "eval_batch_size=15", "cannot take 15 images at once (eval_batch_size=15, 20 images): "),
        (PairsInTraining, "recipe.batch_size=37", "cannot take 37 images at once (recipe.batch_size=37, 40 images): "),
        (ReadsValues, "eval_batch_size=17", "cannot take 17 images at once (eval_batch_size=17, 20 images): "),
    ],
)
def test_networks_that_cannot_take_a_batch_of_the_run_are_refused(refused, own_model, network, setting, complaint):
    assert complaint in refused(*own_model(network), setting)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import sys\nsys.exit()", "broken.net cannot be imported: it exits the program (broken.py, line 2)"),
        ("def net(:", "broken.net cannot be imported: invalid syntax (broken.py, line 1)"),
        ("import torch\n\nLIMIT = 1 / 0", "broken.net cannot be imported: division by zero (broken.py, line 3)"),
        (None, "cannot be imported: No module named 'broken'; add the folder of its file to PYTHONPATH"),
    ],
)
def test_modules_that_cannot_be_imported_are_refused(refused, tmp_path, monkeypatch, text, complaint):
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text("name: mine\n_target_: broken.net\n")
    (tmp_path / "own/__pycache__").mkdir()
    if text is not None:
        (tmp_path / "own/broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    assert complaint in refused("--config-dir", tmp_path / "own", "model=mine")
