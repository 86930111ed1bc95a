"""User-defined networks that read the values of tensors, which do not exist on the meta device."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from attnconv.analysis.exchange import exchange
from attnconv.data.dataset import Split, load_dataset
from attnconv.models.build import build_seeded_model
from attnconv.models.cost import parameters
from attnconv.training.checks import check_network
from attnconv.training.distributed import Processes


class Linear(nn.Module):
    """A network that reads no values."""

    def __init__(self, image_shape, classes, width=8):
        super().__init__()
        channels, height, side = image_shape
        self.layers = nn.Sequential(nn.Linear(channels * height * side, 16 * width), nn.Linear(16 * width, classes))

    def forward(self, x):
        return self.layers(x.flatten(1))


class InForward(Linear):
    def forward(self, x):
        return super().forward(x) * (1 if x.sum().item() < 1e9 else 0)


class InConstructor(Linear):
    def __init__(self, image_shape, classes, width=8):
        super().__init__(image_shape, classes, width)
        self.rates = torch.linspace(0, 1, 4).tolist()


class Drawn(Linear):
    """A network that draws initial values with other generators than PyTorch's."""

    def __init__(self, image_shape, classes, width=8):
        super().__init__(image_shape, classes, width)
        self.drawn = np.random.uniform(), random.random()  # noqa: NPY002


class ThroughNumPy(Linear):
    def forward(self, x):
        return super().forward(x) + float(x.numpy().mean())


class OnTheCPU(Linear):
    def forward(self, x):
        return super().forward(x) + torch.zeros(1)


class WithAnAssertion(Linear):
    def forward(self, x):
        assert x.isfinite().all()
        return super().forward(x)


class TooNarrow(InForward):
    def forward(self, x):
        return super().forward(x[:, :1])


class Options(InForward):
    """A network that takes its width among arbitrary keyword arguments."""

    def __init__(self, image_shape, classes, **options):
        super().__init__(image_shape, classes, **options)


class Fraction(Linear):
    def __init__(self, image_shape, classes, width: "float | None" = 1.0):
        super().__init__(image_shape, classes, round(16 * width))


@torch.library.custom_op("attnconv_tests::on_gpu", mutates_args=(), device_types="cuda")
def on_gpu(x: torch.Tensor) -> torch.Tensor:
    """An operator without a CPU kernel."""
    return x.clone()


class OnTheGPU(Linear):
    def forward(self, x):
        return super().forward(on_gpu(x))


class WithoutABody(Linear):
    def forward(self, x):
        raise NotImplementedError("forward of the base class")


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        out = self.convolution(x).mean((2, 3))
        return out * (1 if out.sum().item() < 1e9 else 0)


@pytest.fixture
def own(own_model):
    """Return a function: class -> arguments of train.py that select it as the model."""
    return lambda network: own_model(network, "width: 8")


@pytest.mark.parametrize("network", [InForward, InConstructor, ThroughNumPy, OnTheCPU, WithAnAssertion])
def test_networks_that_read_values_train_without_flop_counts(train, tmp_path, own, network):
    code, _, err = train(*own(network), "recipe.batch_size=13")  # the last batch has one image
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    result = json.loads(result.read_text())
    assert result["parameters"] == parameters(Linear((3, 8, 8), 4))
    counted = network is InConstructor  # its forward pass reads no values
    assert (result["flops_paper"] is not None) == (result["flops_full"] is not None) == counted


def test_checks_before_training_do_not_advance_the_rng(train, tmp_path, own):
    weights = []
    for network in (Linear, InConstructor):
        choice = own(network)
        assert train(*choice, f"name={network.__name__}")[0] == 0
        (saved,) = tmp_path.rglob(f"{network.__name__}/**/weights.safetensors")
        weights.append(saved.read_bytes())
    assert weights[0] == weights[1]


def test_equal_seeds_give_equal_weights_with_any_generator():
    node = {"name": "mine", "_target_": f"{__name__}.Drawn", "width": 8}
    first, again, other = (build_seeded_model(node, (3, 8, 8), 4, seed) for seed in (2**40, 2**40, 3))
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert first.drawn == again.drawn
    assert not set(first.drawn) & set(other.drawn)


def test_shape_mismatch_is_reported(refused, own):
    assert "cannot take images of 8x8 pixels: addmm: mat1 and mat2 shapes cannot be" in refused(*own(TooNarrow))


def test_operator_without_a_cpu_kernel_is_named(refused, own):
    error = refused(*own(OnTheGPU))
    assert error.startswith("error: model=mine does not run on a CPU: Could not run 'attnconv_tests::on_gpu'")


def test_not_implemented_error_is_not_mistaken_for_a_gpu_only_operator(refused, own):
    assert "cannot take images of 8x8 pixels: forward of the base class" in refused(*own(WithoutABody))


def test_gpu_only_network_passes_all_checks_before_training(tiny):
    node = {"name": "mine", "_target_": f"{__name__}.OnTheGPU", "width": 8}
    config = tiny("recipe.sizes=[0.5,1]", "recipe.batch_size=13")
    data = load_dataset(config.data, torch.device("cpu"))
    found, _ = check_network(config, node, data, Processes(), torch.device("cuda"))
    assert found.flops_full is None


def test_parameters_can_be_matched_but_flops_cannot(train, refused, tmp_path, own):
    choice = own(InForward)
    assert "set match=parameters" in refused(*choice, "match=flops")
    code, _, err = train(*choice, "match=parameters", "scale.width=96")
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    match = json.loads(result.read_text())["match"]
    assert isinstance(match["width"], int)
    assert abs(match["difference"]) < 0.02


@pytest.mark.parametrize(("network", "kind"), [(Options, int), (Fraction, float)])
def test_matched_width_is_an_integer_unless_the_class_accepts_floats(train, tmp_path, own, network, kind):
    code, _, err = train(*own(network), "match=parameters", "scale.width=96")
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    assert type(json.loads(result.read_text())["match"]["width"]) is kind


def test_shape_mismatch_is_reported_before_flops_are_matched(refused, own):
    assert "cannot take images of 8x8 pixels: addmm: mat1" in refused(*own(TooNarrow), "match=flops")


def test_conversion_is_compared_without_flops():
    pixels = torch.randint(256, (6, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, torch.arange(6) % 4, torch.full((3,), 0.5), torch.full((3,), 0.25))
    torch.manual_seed(0)
    row = exchange(Convolutional().eval(), split)
    assert (row["layers"], row["predictions_changed"]) == (1, 0)
    assert (row["convolution_flops"], row["attention_flops"]) == (None, None)
