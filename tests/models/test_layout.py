"""Backward passes that oneDNN gets wrong are never run: no abort, no wrong gradient."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from attnconv.models.build import build_model
from attnconv.models.layout import FaultyCall, FaultyCalls, is_faulty, place
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.training.setup import prepare

CPU = torch.device("cpu")
STEPS = 20  # on AVX2, an unguarded narrow network aborts within the first few


def narrow_timm(image_shape, classes):
    """Return a timm ResNet with shortcuts of 2, 4 and 8 channels at stride 2."""
    return TimmResNet(
        BasicBlock, [1, 1, 1, 1], classes, image_shape[0], stem_width=2, channels=(2, 4, 8, 16), avg_down=False
    )


def narrow(tiny, model, *overrides):
    config = tiny(f"model={model}" if model != "timm" else "model=resnet18", "precision=fp32", *overrides)
    if model == "timm":
        config.model = {"name": "narrow_timm", "_target_": f"{__name__}.narrow_timm"}
    return config


def gradient(model, images, labels):
    """Return the gradient of all weights as one vector."""
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    return torch.cat([one.flatten() for one in gradients])


@pytest.mark.parametrize(
    ("layer", "faulty"),
    [
        (nn.Conv2d(2, 4, 1, stride=2), True),
        (nn.Conv2d(1, 4, 1, stride=2), True),
        (nn.Conv2d(15, 4, 1, stride=(1, 2), padding="valid", dilation=2), True),
        (nn.Conv1d(2, 4, 1, stride=3), True),
        (nn.Conv2d(16, 4, 1, stride=2), False),
        (nn.Conv2d(2, 4, 1), False),
        (nn.Conv2d(2, 4, (1, 2), stride=2), False),
        (nn.Conv2d(2, 4, 3, stride=2), False),
        (nn.Conv2d(2, 4, 1, stride=2, padding=1), False),
        (nn.Conv2d(2, 4, 1, stride=2, groups=2), False),
    ],
)
def test_only_faulty_layers_are_changed(layer, faulty):
    before = layer.stride
    assert is_faulty(layer) == faulty
    place(layer, CPU)
    assert ("forward" in vars(layer)) == faulty
    assert layer.stride == before, "the code of a network may read it"


class Standardized(nn.Conv2d):
    """A layer with a forward pass of its own."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(1, keepdim=True), self.bias, self.stride)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize("channels", [1, 2, 7, 15])
@pytest.mark.parametrize("kind", [nn.Conv2d, Standardized])
def test_placed_layers_keep_their_outputs_and_gradients(kind, channels, stride, side):
    torch.manual_seed(0)
    layer = kind(channels, 8, 1, stride=stride)
    exact = copy.deepcopy(layer).double()
    place(layer, CPU)
    layer = copy.deepcopy(layer)  # as the warm-up does
    for _ in range(STEPS):
        images = torch.randn(16, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
        own = images.detach().double().contiguous().requires_grad_()
        with FaultyCalls():
            out = layer(images)
        expected = exact(own)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
        gradients = torch.autograd.grad(out.square().sum(), [images, *layer.parameters()])
        expected_gradients = torch.autograd.grad(expected.square().sum(), [own, *exact.parameters()])
        for gradient, right in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient.double(), right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("model", ["resnet18", "nonlocal_resnet18", "se_resnet18", "timm"])
def test_a_narrow_network_trains(tiny, model):
    config = narrow(tiny, model, "epochs=3")
    assert run(config)["status"] == "done"
    losses = [json.loads(line)["train/loss"] for line in (run_folder_path(config) / "metrics.jsonl").open()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("model", ["resnet18", "timm"])
def test_prepare_leaves_no_faulty_call(tiny, model):
    model = prepare(narrow(tiny, model)).model
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(map(is_faulty, convolutions)) == 3, "one shortcut in each of three stages"
    with FaultyCalls():
        model(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("model", ["resnet18", "nonlocal_resnet18", "timm"])
def test_narrow_network_gradients_match_float64(tiny, model):
    this = prepare(narrow(tiny, model))
    exact = build_model(this.config.model, (3, 8, 8), 4).double()  # contiguous, and never placed
    exact.load_state_dict(this.model.state_dict())
    images, labels = next(this.data.train.batches(16))
    expected = gradient(exact, images.double().contiguous(), labels)
    assert (gradient(this.model, images, labels) - expected).norm() < 1e-4 * expected.norm()


def test_wide_networks_and_other_devices_are_left_alone(tiny):
    wide = prepare(tiny("model=resnet18", "scale.cnn_width=16")).model
    assert "forward" not in vars(wide.blocks[2].shortcut[0])
    assert wide.stem.weight.is_contiguous(memory_format=torch.channels_last)
    elsewhere = nn.Conv2d(2, 4, 1, stride=2)
    place(elsewhere, torch.device("meta"))
    assert "forward" not in vars(elsewhere)


def test_copies_of_placed_layers_use_their_own_weights():
    layer = nn.Conv2d(2, 4, 1, stride=2)
    place(layer, CPU)
    images = torch.randn(2, 2, 8, 8)
    before = layer(images)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        nn.init.zeros_(copied.weight)
        nn.init.zeros_(copied.bias)
        assert not copied(images).any()
    assert torch.equal(layer(images), before)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, layer: F.conv2d(x, layer.weight, None, layer.stride),
        lambda x, layer: F.conv2d(x, weight=layer.weight, stride=2, padding="valid"),
        lambda x, layer: F.conv1d(x.flatten(2), layer.weight[..., 0], layer.bias, 2, 0),
    ],
)
def test_faulty_calls_of_functions_are_refused(call):
    layer = nn.Conv2d(2, 4, 1, stride=2)
    place(layer, CPU)
    with FaultyCalls(), pytest.raises(FaultyCall, match="select the pixels first"):
        call(torch.zeros(1, 2, 8, 8), layer)


def test_calls_of_functions_without_gradients_are_fine():
    images, kernel = torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 1, 1)
    with FaultyCalls():
        F.conv2d(images, kernel, stride=2)
        with torch.no_grad():
            F.conv2d(images, kernel.requires_grad_(), stride=2)


def test_only_four_dimensional_weights_are_in_channels_last_layout():
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv2d(2, 4, 3))
    place(network, CPU)
    assert network[0].weight.is_contiguous()
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last)
