"""Replacing convolutions by attention changes no prediction."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import Logits, images
from torch import nn

from attnconv.analysis.exchange import exchange
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.data.dataset import Split, load_dataset
from attnconv.models.timm_models import timm_model
from attnconv.runs.load import build_untrained
from conftest import REPOSITORY, compose, script, write_arrays

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", ["resnet18", "vgg11_bn", "conv3x3"])
def test_replacing_convolutions_by_attention_keeps_predictions(tiny, tmp_path, model):
    write_arrays(tmp_path / "large", side=32, test=8)
    config = tiny(f"model={model}", f"data.root={tmp_path}/large")
    data = load_dataset(config.data, torch.device("cpu"))
    network = build_untrained(config, data).eval()
    row = exchange(network, data.test)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert row["layers"] == len(convolutions) > 0
    assert row["heads"] == sum(module.kernel_size[0] * module.kernel_size[1] for module in convolutions)
    assert row["predictions_changed"] == 0
    assert row["largest_difference"] <= 1e-5 * row["largest_logit"]
    assert row["attention_acc"] == row["convolution_acc"]
    assert row["attention_parameters"] == row["convolution_parameters"] + 3 * row["heads"]
    assert row["attention_flops"] > row["convolution_flops"] > 0


def test_converted_timm_network_keeps_predictions():
    network = timm_model((3, 32, 32), 10, "edgenext_xx_small").eval()  # reads its convolutions' attributes
    row = exchange(network, images(4, side=32))
    assert (row["layers"], row["predictions_changed"]) == (20, 0)
    assert row["largest_difference"] <= 1e-5 * row["logits_range"]


def test_conditional_convolutions_are_detected_in_inference_mode():
    network = timm_model((3, 32, 32), 10, "efficientnet_cc_b0_4e").eval()
    with pytest.raises(Inconvertible, match=r"computed inside blocks\.4\.0\.conv_pw CondConv2d.* and \d+ more"):
        exchange(network, images(2, side=32))


@pytest.mark.cifar
def test_no_prediction_changes_on_1000_cifar10_images():
    config = compose(["model=conv3x3", "scale=mini", "scale.layers=2", f"data.root={REPOSITORY}/data/cifar10"])
    if not (REPOSITORY / "data/cifar10/train_images.npy").exists():
        pytest.skip("no CIFAR-10 in data/cifar10")
    data = load_dataset(config.data, torch.device("cpu"))
    test = Split(data.test.images[:1000], data.test.labels[:1000], data.test.mean, data.test.std)
    row = exchange(build_untrained(config, data).eval(), test)
    assert (row["images"], row["predictions_changed"]) == (1000, 0)


def test_difference_shrinks_as_alpha_grows():
    errors = [exchange(Logits(), images(), alpha)["largest_difference"] for alpha in (1, 4, 16)]
    assert errors[0] > 3 * errors[1]
    assert errors[1] > 100 * errors[2]


def test_a_shared_layer_counts_once():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    row = exchange(Logits(shared, nn.ReLU(), shared), images())
    assert (row["layers"], row["heads"]) == (2, 18)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_float64_bfloat16_and_weight_norm_are_supported():
    assert exchange(Logits().double(), images())["largest_difference"] < 1e-14
    assert exchange(Logits().bfloat16(), images())["predictions_changed"] == 0
    assert exchange(Logits(nn.utils.weight_norm(nn.Conv2d(4, 4, 3))), images())["layers"] == 2


class Random(Logits):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True) + random.random() + np.random.rand()  # noqa: NPY002


class InPlace(Logits):
    def forward(self, x):
        return super().forward(x.mul_(-3))


class OwnGradient(Logits):
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(super().forward(x).square().sum(), x)[0].mean((2, 3))


class CallsForward(Logits):
    def forward(self, x):
        return self[0].forward(x).mean((2, 3))


class ByKeyword(Logits):
    def forward(self, x):
        return self[0](input=x).mean((2, 3))


class ChecksFeatures(nn.Module):
    def forward(self, x):
        if not x.std() > 0:
            raise ValueError("dead features")
        return x


class OneDoubleNumber(Logits):
    def __init__(self):
        super().__init__()
        self.register_parameter("scale", nn.Parameter(torch.full((), 2.0, dtype=torch.float64)))

    def forward(self, x):
        return super().forward(x) * self.scale.float()


class OnlyConvolutions(nn.Sequential):
    """Refuses to hold other layers."""

    def __setattr__(self, name, value):
        if isinstance(value, nn.Module) and not isinstance(value, nn.Conv2d):
            raise TypeError("only convolutions")
        super().__setattr__(name, value)

    def forward(self, x):
        return super().forward(x).mean((2, 3))


class FixedKernel(nn.Conv2d):
    """Its weight is a buffer, so it has no parameters."""

    def __init__(self):
        super().__init__(4, 4, 3, bias=False)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight)


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (Random(), 1),
        (InPlace(), 1),
        (OwnGradient(), 1),
        (CallsForward(), 1),
        (Logits(FixedKernel()), 2),
        (ByKeyword(), 1),
        (Logits(nn.Identity(), ChecksFeatures()), 1),
        (OneDoubleNumber(), 1),
        (OnlyConvolutions(nn.Conv2d(3, 4, 3)), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_networks_keep_their_predictions(network, layers):
    before = copy.deepcopy(network.state_dict())
    row = exchange(network, images(), batch=4)
    assert (row["layers"], row["predictions_changed"]) == (layers, 0)
    assert 0 < row["largest_difference"] <= 1e-5 * row["logits_range"]
    assert all(map(torch.equal, before.values(), network.state_dict().values()))
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "0"], "'0' is not a whole number from 1"),
        (["--batch", "0"], "'0' is not a whole number from 1"),
        (["--alpha", "-1"], "argument --alpha: '-1' is not a number above 0"),
        (["--alpha", "inf"], "argument --alpha: 'inf' is not a number above 0"),
        (["--device", "nonsense"], "nonsense"),
        (["--trust", "somebody"], "--trust is for runs"),
        (["scale.cnn_width=2", "data=digits", "--images", "4", "model.bias=1"], "model.bias"),
    ],
)
def test_command_reports_errors_in_one_line(arguments, complaint, monkeypatch, capsys):
    code, out, err = script(monkeypatch, capsys, "conv_to_attention", "--model", "resnet10", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert complaint in err


def test_a_network_in_training_mode_is_compared_in_evaluation_mode_and_not_changed():
    network = Logits(nn.BatchNorm2d(4)).train()
    before = copy.deepcopy(network.state_dict())
    row = exchange(network, images())
    assert row["predictions_changed"] == 0
    assert network.training
    assert all(map(torch.equal, before.values(), network.state_dict().values()))
