"""Replacing convolutions by attention changes no prediction; meaningless comparisons are refused."""

import copy
import math
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnconv.analysis.exchange import Meaningless, exchange
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.data.dataset import Split, load_dataset
from attnconv.models.timm_models import timm_model
from attnconv.runs.load import build_untrained
from conftest import REPOSITORY, compose, script, write_arrays

pytestmark = pytest.mark.slow


def images(count=6, side=9):
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=draw)
    return Split(pixels, torch.arange(count) % 4, torch.full((3,), 0.5), torch.full((3,), 0.25))


class Logits(nn.Sequential):
    """A convolution and the layers given by a test, averaged over pixels to logits of four classes."""

    def __init__(self, *more):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 4, 3, stride=2, padding=1), *more)

    def forward(self, x):
        return super().forward(x).mean((2, 3))


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


class ConvolvesInFirstBatch(Logits):
    """Computes another convolution on batches of more than three images."""

    def forward(self, x):
        return super().forward(x) + (F.conv2d(x, self[0].weight).mean() if len(x) > 3 else 0)


class ConvolvesInLastBatch(Logits):
    """Computes another convolution on a single image."""

    def forward(self, x):
        return super().forward(x) + (F.conv2d(x, self[0].weight).mean() if len(x) == 1 else 0)


class Tuple(Logits):
    def forward(self, x):
        return super().forward(x), x


class OneLogit(Logits):
    def forward(self, x):
        return super().forward(x)[:, :1]


class MeanOverBatch(Logits):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


class Complex(Logits):
    def forward(self, x):
        return super().forward(x) + 0j


class WithoutEffect(Logits):
    def forward(self, x):
        return 0 * super().forward(x) + x.flatten(1)[:, :4]


class WithALock(Logits):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class ReadsAttribute(Logits):
    def forward(self, x):
        return super().forward(x) * (1 + self[0].transposed)


class SkipsOtherLayers(Logits):
    """Calls its layers only while they are convolutions."""

    def forward(self, x):
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else x
        return x.mean((2, 3))


class OtherAttributes(nn.Conv2d):
    """Uses the name of an attribute of nn.Conv2d for something else."""

    def __init__(self):
        super().__init__(4, 4, 3)
        self.padding = nn.ReflectionPad2d(1)

    def forward(self, x):
        return F.conv2d(self.padding(x), self.weight, self.bias)


class PadsManyImages(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1 if len(x) > 2 else 0)


class SkipsLayersOnOneImage(Logits):
    """Layers after the first run only on batches of two or more images."""

    def forward(self, x):
        return super().forward(x) if len(x) > 1 else self[0](x).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "error", "complaint"),
    [
        (ConvolvesInFirstBatch(), Inconvertible, "computed inside ConvolvesInFirstBatch"),
        (ConvolvesInLastBatch(), Inconvertible, "computed inside ConvolvesInLastBatch"),
        (Tuple(), Inconvertible, "the network returns a tuple, not logits"),
        (nn.Conv2d(3, 4, 3), Inconvertible, r"the network returns \(2, 4, 7, 7\), not logits"),
        (OneLogit(), Inconvertible, r"returns \(2, 1\), not logits \(2 images, 2 or more classes\)"),
        (MeanOverBatch(), Inconvertible, r"returns \(1, 4\), not logits \(2 images, 2 or more classes\)"),
        (Complex(), Inconvertible, r"returns \(2, 4\) of complex numbers, not logits"),
        (WithoutEffect(), Meaningless, "do not depend on the convolutions"),
        (WithALock(), Inconvertible, "the network cannot be copied: .*lock"),
        (
            ReadsAttribute(),
            Inconvertible,
            r"converted network cannot run .* 'transposed' \(test_exchange.py, line \d+\)",
        ),
        (Logits(PadsManyImages(4, 4, 3)), Inconvertible, "the logits of the converted network differ by up to"),
        (SkipsOtherLayers(), Inconvertible, r"the converted network returns \(5, 3\), not \(5, 4\)"),
        (Logits(OtherAttributes()), Inconvertible, r"1 \(OtherAttributes: its attributes are not those of a conv"),
        (Logits(nn.Conv2d(4, 4, 30)), Inconvertible, r"the network cannot run on these images: .* \(test_exchange.py"),
        (Logits(nn.Threshold(1e9, math.nan)), Meaningless, "not finite"),
        (Logits(nn.Threshold(1e9, math.inf)), Meaningless, "not finite"),
        (Logits(nn.Threshold(1e9, 3.0)), Meaningless, "the same for all images"),
        (Logits(nn.Hardtanh(2.0, 2.0 + 1e-8)), Meaningless, "the same for all images"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(network, error, complaint):
    with pytest.raises(error, match=complaint):
        exchange(network, images(), batch=5)


def test_every_layer_must_be_reached_by_some_batch():
    network = SkipsLayersOnOneImage(nn.Conv2d(4, 4, 1))
    assert exchange(network, images(), batch=5)["layers"] == 2
    with pytest.raises(Inconvertible, match="not reached by the images, so not known to be converted: 1"):
        exchange(network, images(3), batch=1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "0"], "'0' is not a whole number from 1"),
        (["--batch", "0"], "'0' is not a whole number from 1"),
        (["--alpha", "-1"], "argument --alpha: '-1' is not a number above 0"),
        (["--alpha", "inf"], "argument --alpha: 'inf' is not a number above 0"),
        (["--device", "nonsense"], "nonsense"),
        (["scale.cnn_width=2", "data=digits", "--images", "4", "model.bias=1"], "model.bias"),
    ],
)
def test_command_reports_errors_in_one_line(arguments, complaint, monkeypatch, capsys):
    code, out, err = script(monkeypatch, capsys, "conv_to_attention", "--model", "resnet10", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert complaint in err
