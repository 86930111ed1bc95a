"""Networks of a user's own that read the values of their tensors, which the meta device does not have."""

import json

import pytest
import torch
from torch import nn

from attnconv.analysis.exchange import exchange
from attnconv.data.dataset import Split
from attnconv.models.cost import parameters


class Linear(nn.Module):
    """A network that reads nothing."""

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
    """Its width is one of any options."""

    def __init__(self, image_shape, classes, **options):
        super().__init__(image_shape, classes, **options)


class Fraction(Linear):
    def __init__(self, image_shape, classes, width: "float | None" = 1.0):
        super().__init__(image_shape, classes, round(16 * width))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        out = self.convolution(x).mean((2, 3))
        return out * (1 if out.sum().item() < 1e9 else 0)


@pytest.fixture
def own(tmp_path):
    """A function: class -> arguments of train.py that choose it as the model."""

    def choose(network):
        (tmp_path / "own/model").mkdir(parents=True)
        text = f"name: mine\n_target_: {network.__module__}.{network.__name__}\nwidth: 8\n"
        (tmp_path / "own/model/mine.yaml").write_text(text)
        return "--config-dir", tmp_path / "own", "model=mine"

    return choose


@pytest.mark.parametrize("network", [InForward, InConstructor, ThroughNumPy, OnTheCPU, WithAnAssertion])
def test_it_trains_and_its_flops_are_left_out(train, tmp_path, own, network):
    code, _, err = train(*own(network), "recipe.batch_size=13")  # the last batch has one image
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    result = json.loads(result.read_text())
    assert result["parameters"] == parameters(Linear((3, 8, 8), 4))
    counted = network is InConstructor  # its forward pass reads nothing
    assert (result["flops_paper"] is not None) == (result["flops_full"] is not None) == counted


def test_the_checks_before_training_draw_nothing(train, tmp_path, own):
    weights = []
    for network in (Linear, InConstructor):
        choice = own(network)
        assert train(*choice, f"name={network.__name__}")[0] == 0
        (tmp_path / "own/model/mine.yaml").unlink()
        (tmp_path / "own/model").rmdir()
        (tmp_path / "own").rmdir()
        (saved,) = tmp_path.rglob(f"{network.__name__}/**/weights.safetensors")
        weights.append(saved.read_bytes())
    assert weights[0] == weights[1]


def test_a_wrong_shape_is_named(refused, own):
    assert "cannot take images of 8x8 pixels: addmm: mat1 and mat2 shapes cannot be" in refused(*own(TooNarrow))


def test_its_flops_cannot_be_matched_and_its_parameters_can(train, refused, tmp_path, own):
    choice = own(InForward)
    assert "set match=parameters" in refused(*choice, "match=flops")
    code, _, err = train(*choice, "match=parameters", "scale.width=96")
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    match = json.loads(result.read_text())["match"]
    assert isinstance(match["width"], int)
    assert abs(match["difference"]) < 0.02


@pytest.mark.parametrize(("network", "kind"), [(Options, int), (Fraction, float)])
def test_a_width_is_a_whole_number_unless_the_class_takes_a_fraction(train, tmp_path, own, network, kind):
    code, _, err = train(*own(network), "match=parameters", "scale.width=96")
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    assert type(json.loads(result.read_text())["match"]["width"]) is kind


def test_a_wrong_shape_is_named_before_flops_are_matched(refused, own):
    assert "cannot take images of 8x8 pixels: addmm: mat1" in refused(*own(TooNarrow), "match=flops")


def test_its_conversion_is_compared_without_flops():
    pixels = torch.randint(256, (6, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, torch.arange(6) % 4, torch.full((3,), 0.5), torch.full((3,), 0.25))
    torch.manual_seed(0)
    row = exchange(Convolutional().eval(), split)
    assert (row["layers"], row["predictions_changed"]) == (1, 0)
    assert (row["convolution_flops"], row["attention_flops"]) == (None, None)
