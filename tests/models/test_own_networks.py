"""A network of the user trains and loads as it was, or is refused in one line before a run folder exists."""

import functools
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attnconv

pytestmark = pytest.mark.slow


class Plain(nn.Module):
    """A small CNN; the tests change one thing about it."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.first = nn.Conv2d(image_shape[0], 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, classes)

    def features(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3))

    def forward(self, x):
        return self.last(self.features(x))


class Tied(Plain):
    """Two layers share a weight, and one layer has two names: three entries of the state are two tensors."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.a, self.b, self.again = nn.Linear(8, 8), nn.Linear(8, 8), self.last
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.again(self.b(self.a(self.features(x))))


class Normed(Plain):
    """Weights that are computed from other parameters."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.second = nn.utils.parametrizations.weight_norm(self.second)


class Masked(Plain):
    """A buffer with infinities, as causal attention has, and one with the name of a counter of PyTorch."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("n_averaged", torch.ones(1))


class Pretrained(Plain):
    """Starts with the weights of another network, without a warning that they were not copied."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        with torch.device("cpu"):
            other = Plain(image_shape, classes)
        self.load_state_dict(other.state_dict())


class Lazy(nn.Sequential):
    def __init__(self, image_shape, classes):
        super().__init__(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


class InPlace(Plain):
    """Changes its input in place, which must not change the mirror image."""

    def forward(self, x):
        return super().forward(x.mul_(-2))


class Named(Plain):
    """Has attributes with the names of methods and attributes of the package's networks."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.grid, self.layers, self.heads = nn.Parameter(torch.zeros(2)), 3, "many"
        self.attention_probs = nn.Softmax(dim=-1)


class ReturnsNothing(Plain):
    """Its `train` forgets to return the network."""

    def train(self, mode=True):
        super().train(mode)


class InGroups(Plain):
    """Splits a batch into four groups while it trains."""

    def forward(self, x):
        return super().forward(x.unflatten(0, (4, -1)).flatten(0, 1) if self.training else x)


class OwnGradient(Plain):
    """Computes a gradient of its own in its forward pass."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(super().forward(x).sum(), x, create_graph=True)
        return super().forward(x) + gradient.mean((1, 2, 3))[:, None]


class Rejecting(Plain):
    """Refuses blank images."""

    def forward(self, x):
        if not x.std() > 0:
            raise ValueError("blank")
        return super().forward(x)


class OverTime(Plain):
    """Takes the channels for time steps, so that weights have five dimensions."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.second = nn.Conv3d(1, 1, 3, padding=1)

    def features(self, x):
        return self.second(self.first(x)[:, None]).mean((1, 3, 4))


class SetsSettings(Plain):
    """Changes settings of the whole process."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        torch.set_default_dtype(torch.bfloat16)
        torch.set_grad_enabled(False)
        os.chdir("/")


class Strided(Plain):
    """Has a layer that must not be trained as it is, and runs before it is placed."""

    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.first = nn.Conv2d(image_shape[0], 8, 1, stride=2)
        self(torch.zeros(2, *image_shape))


class OwnArguments(Plain):
    """Takes arguments with the names of settings, but other values."""

    yaml = "base: resnet50\nblocks: basic\nalpha: -1\ndropout: 2"

    def __init__(self, image_shape, classes, base, blocks, alpha, dropout):
        super().__init__(image_shape, classes)
        assert (base, blocks, alpha, dropout) == ("resnet50", "basic", -1, 2)


@pytest.mark.parametrize(
    "network",
    [
        Tied,
        Normed,
        Masked,
        Pretrained,
        Lazy,
        InPlace,
        Named,
        ReturnsNothing,
        InGroups,
        OwnGradient,
        Rejecting,
        OverTime,
        SetsSettings,
        Strided,
        OwnArguments,
    ],
    ids=lambda network: network.__name__,
)
def test_odd_networks_train_and_predict_the_same_when_loaded(train, own_model, tmp_path, network, recwarn):
    code, _, err = train(
        *own_model(network, getattr(network, "yaml", "")), "recipe=modern", "data.flip=true", "eval_mirrored=true"
    )
    assert code == 0, err
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert not [str(warning.message) for warning in recwarn if "non-meta parameter" in str(warning.message)]
    (folder,) = (path.parent for path in tmp_path.rglob("predictions.npy"))
    loaded = attnconv.load(folder, trusted=[__name__])
    images = np.load(tmp_path / "arrays/test_images.npy")
    assert loaded.predict(images).tolist() == [str(label) for label in np.load(folder / "predictions.npy")]
    both = loaded.predict_proba(images), loaded.predict_proba(images[:, :, ::-1])
    logits = sum(np.log(part) - np.log(part).mean(axis=1, keepdims=True) for part in both)
    labels = np.load(tmp_path / "arrays/test_labels.npy")
    recorded = json.loads((folder / "result.json").read_text())["test_acc_mirrored"]
    assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(recorded, abs=1e-6)


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


class SparseBuffer(Plain):
    def __init__(self, image_shape, classes):
        super().__init__(image_shape, classes)
        self.register_buffer("edges", torch.eye(3).to_sparse())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (MissingAttribute, "has no attribute 'nothing' (test_own_networks.py, line "),
        (WithoutSuper, "cannot assign module before Module.__init__() call (test_own_networks.py, line "),
        (
            OtherArguments,
            "must take image_shape, which is (channels, height, width), and classes; it lacks image_shape",
        ),
        (no_module, "no_module builds a NoneType, not a torch.nn.Module"),
        (always_the_same, "first.weight is on the meta device, without values; a constructor must build a new network"),
        (UndefinedName, "cannot take images of 8x8 pixels: name 'undefined' is not defined (test_own_networks.py, "),
        (TwoInTraining, "cannot be trained: it gives a tuple, not logits"),
        (MeanOverBatch, "cannot be trained: it gives (1, 4) for 16 images, not (16, 4): one logit per class"),
        (Labels, "it gives numbers of type int64, not logits"),
        (Frozen, "cannot be trained: it has no parameters, only frozen ones, or a forward pass without gradients"),
        (Infinite, "cannot be trained: it gives nan or inf before any training"),
        (ByItsWeight, "call a layer, or select the pixels first: x[..., ::2, ::2] (test_own_networks.py, line "),
        (Viewed, "Use .reshape(...) instead. (test_own_networks.py, line "),
        (KeepsGraph, "cannot be trained: Trying to backward through the graph a second time"),
        (
            InPlaceOnWeight,
            "cannot be trained: a leaf Variable that requires grad is being used in an in-place operation",
        ),
        (SparseGradient, "the gradient of colors.weight is sparse"),
        (ExtraState, "_extra_state of its state_dict() is a dict, and only tensors can be saved"),
        (Expanded, "places is expanded, so its values could not be loaded again: add .clone()"),
        (SparseBuffer, "edges is sparse_coo, which weights.safetensors cannot hold"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_networks_that_cannot_train_are_refused(refused, own_model, network, complaint):
    assert complaint in refused(*own_model(network))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
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
