"""A network of the user, however odd, trains, and predicts the same when it is loaded."""

import json
import os

import numpy as np
import pytest
import torch
from plain_network import Plain
from torch import nn

import attnconv

pytestmark = pytest.mark.slow


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
