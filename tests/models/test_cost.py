"""Costs against published and hand-computed values, and widths matched to a budget."""

import csv

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from attnconv.analysis.profile import THEORY, cost_row, study_models
from attnconv.config import freeze
from attnconv.errors import ConfigError
from attnconv.mixers.global_convolution import DepthwiseGlobal
from attnconv.models.backbone import Backbone
from attnconv.models.build import build_model
from attnconv.models.cost import activation_bytes, build_unfilled, counted_forward, flops_full, flops_paper, parameters
from attnconv.models.match import Match, match_width, model_node
from attnconv.models.resnet import NonLocalBlock
from attnconv.settings.composition import composed
from conftest import REPOSITORY, compose

pytestmark = pytest.mark.slow  # building networks takes seconds

CIFAR = (3, 32, 32)
IMAGE = torch.zeros(1, *CIFAR, device="meta")


def model_at(name, *overrides):
    return compose([f"model={name}", *overrides]).model


def model(*overrides):
    return build_unfilled(compose(list(overrides)).model, CIFAR, 10)


@pytest.mark.parametrize(
    ("name", "published"),
    [("sa_quadratic", "6.18"), ("sa_learned", "6.18"), ("sa_learned_content", "15.02"), ("resnet18", "1.11")],
)
def test_paper_flops_match_the_published_values(name, published):
    assert f"{flops_paper(model(f'model={name}'), IMAGE) / 1e9:.2f}" == published


def test_full_flops_match_hand_calculations():
    """Dense quadratic attention adds one product per head: N heads x Q x K x D multiply-adds in each of 6 layers."""
    quadratic = model("model=sa_quadratic")
    assert flops_full(quadratic, IMAGE) - flops_paper(quadratic, IMAGE) == pytest.approx(
        6 * 2 * 9 * 256 * 256 * 400, rel=1e-3
    )
    content = model("model=sa_content")
    assert flops_full(content, IMAGE) - flops_paper(content, IMAGE) == 2 * 6 * 2 * 9 * 256 * 256 * 400


def test_ffts_are_counted():
    with torch.device("meta"):
        layer = DepthwiseGlobal(8, 1, (16, 16))
    # The forward FFTs of map and kernel, and the inverse: 2.5 n log2 n each, on 8 channels of 256 pixels.
    assert flops_full(layer, torch.zeros(1, 16, 16, 8, device="meta")) == 3 * int(2.5 * 8 * 256 * 8)


class OwnToken(nn.Module):
    """As in CaiT and other transformers: the input of a module is a view of a parameter."""

    def __init__(self):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 8)

    def forward(self, x):
        return self.layer(self.token.expand(len(x), -1))


def test_flops_are_counted_when_a_module_input_is_a_view_of_a_parameter():
    own = OwnToken()
    own.layer.bias.requires_grad_(False)
    assert flops_full(own, torch.zeros(3, 1)) == 2 * 4 * 8
    learning = {name for name, parameter in own.named_parameters() if parameter.requires_grad}
    assert learning == {"token", "layer.weight"}, "as before"


def test_activation_bytes_match_hand_calculations():
    """Linear keeps its input, ReLU its output: 12 and 20 numbers of 4 bytes per image."""
    layers = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    assert activation_bytes(layers, (12,)) == 4 * (12 + 20)


@pytest.mark.parametrize("name", ["sa_learned_content", "conv3x3", "local_attention", "resnet18"])
def test_activation_bytes_are_the_same_on_the_meta_device(name):
    overrides = [f"model={name}", "scale=mini", "scale.layers=2"]
    if name == "sa_learned_content":  # the count follows the definition; the default implementation is cheaper
        overrides.append("+model.mixer.impl=dense")
    real = build_model(compose(overrides).model, CIFAR, 10)
    assert activation_bytes(model(*overrides), CIFAR) == activation_bytes(real, CIFAR)


@pytest.mark.parametrize("name", ["vit", "sa_learned_content"])
def test_fast_attention_stores_fewer_activation_bytes_than_its_definition(name):
    overrides = [f"model={name}", "scale=mini"]
    real = build_model(compose(overrides).model, CIFAR, 10)
    assert activation_bytes(real, CIFAR) < activation_bytes(model(*overrides), CIFAR)


def table():
    with (REPOSITORY / "results" / "models.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, {(row["model"], row["scale"]): row for row in reader}


def test_every_model_has_table_rows_that_match_its_claims():
    columns, rows = table()
    assert columns[:2] == ["model", "scale"]
    assert set(rows) == {(name, scale) for name in study_models() for scale in ("paper", "mini")}
    assert set(study_models()) == set(THEORY)
    for (name, _), row in rows.items():
        assert float(row["growth_theory"]) == THEORY[name].growth
        assert row["sees_content"] == ("yes" if THEORY[name].sees_content else "no")


@pytest.mark.parametrize("name", study_models())
def test_table_rows_are_up_to_date(name):
    _, rows = table()
    config = composed([f"model={name}"])
    unfilled = build_unfilled(freeze(config).model, CIFAR, 10)
    counts = counted_forward(unfilled, IMAGE)
    paper = {"flops_paper": counts.flops_paper, "flops_full": counts.flops_full}
    counted = {"paper": {"parameters": parameters(unfilled), **paper}}
    if name != "fully_connected":  # 400 MB of weights
        mini = composed(["scale=mini"])
        config.scale, config.recipe = mini.scale, mini.recipe
        counted["mini"] = cost_row(freeze(config).model)
    for scale, row in counted.items():
        recorded = {key: int(rows[name, scale][key]) for key in row}
        assert row == recorded, f"{name} at {scale} scale: python scripts/model_table.py"


@pytest.mark.parametrize("name", sorted(set(THEORY) - {"vit", "mlp_mixer"}))
def test_content_dependence_matches_the_claims(name):
    """A mixer that ignores content is affine. (MLP-Mixer ignores it, too, but has a GELU.)"""
    torch.manual_seed(0)
    network = build_model(compose([f"model={name}", "scale=mini", "scale.width=16"]).model, CIFAR, 10).double().eval()
    if not isinstance(network, Backbone):
        has_attention = any(isinstance(part, NonLocalBlock | SqueezeExcitation) for part in network.modules())
        assert has_attention == THEORY[name].sees_content
        return
    mixer = network.layers[0].mixer
    one, other = torch.randn(2, 1, 8, 8, 16, dtype=torch.float64)
    bend = mixer(one + other) - mixer(one) - mixer(other) + mixer(torch.zeros_like(one))
    assert (bend.abs().max() > 1e-6) == THEORY[name].sees_content


@pytest.mark.parametrize("budget", ["parameters", "flops"])
@pytest.mark.parametrize(
    "name",
    ["conv3x3", "sa_learned_content", "local_attention", "vit", "mlp_mixer", "resnet18", "vgg11_bn", "involution"],
)
def test_widths_are_matched_within_two_percent(name, budget):
    small = ["scale=mini", "scale.layers=2"]
    match = match_width(model_at(name, *small), model_at("sa_quadratic", *small), budget, CIFAR, 10)
    own, target = (
        parameters(network) if budget == "parameters" else flops_full(network, IMAGE)
        for network in (build_unfilled(match.node, CIFAR, 10), model("model=sa_quadratic", *small))
    )
    assert (match.achieved, match.target) == (own, target)
    assert abs(own / target - 1) == pytest.approx(abs(match.difference))
    assert abs(match.difference) <= 0.02


def test_reference_model_has_the_scale_of_the_run():
    config = compose(["model=conv3x3", "scale=mini", "scale.width=32", "scale.heads=4"])
    node = model_node("sa_quadratic", config)
    assert (node["width"], node["heads"], node["patch"]) == (32, 4, 4)


def test_matched_width_may_be_many_times_the_configured_one():
    conv, full = (compose([f"model={name}", "scale=mini"]).model for name in ("conv3x3", "fully_connected"))
    assert match_width(conv, full, "parameters", CIFAR, 10).node["width"] > 8 * conv["width"]


class Nothing(nn.Flatten):
    def __init__(self, image_shape, classes):
        super().__init__()


def test_unreachable_budgets_are_refused():
    # Its weights over positions alone outnumber all weights of the other model.
    config = compose(["model=mlp_mixer", "scale=mini", "scale.width=8"])
    with pytest.raises(
        ConfigError, match=r"no width of model=mlp_mixer comes within 2% .* nearest, model.width=1, has"
    ):
        match_width(config.model, model_node("conv3x3", config), "parameters", CIFAR, 10)
    with pytest.raises(ConfigError, match=r"needs a positive number for model.width, not \[8, 16\]"):
        match_width({**config.model, "width": [8, 16]}, config.model, "parameters", CIFAR, 10)
    nothing = {"name": "nothing", "_target_": f"{__name__}.Nothing"}
    with pytest.raises(ConfigError, match="match_model=nothing has no parameters, so it sets no budget"):
        match_width(config.model, nothing, "parameters", CIFAR, 10)
    with pytest.raises(ConfigError, match="has no width for match=parameters to scale"):
        match_width({"name": "timm_x"}, config.model, "parameters", CIFAR, 10)
    with pytest.raises(ConfigError, match=r"match_model=sa_quadratik does not exist; did you mean 'sa_quadratic'"):
        model_node("sa_quadratik", config)


def test_a_match_that_is_too_large_differs_by_a_positive_share():
    assert Match({}, "parameters", target=100, achieved=101).difference == pytest.approx(0.01)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_grouped_convolutions_count_the_channels_of_their_group(groups):
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, device="meta")
    assert flops_paper(layer, torch.zeros(1, 8, 5, 4, device="meta")) == 2 * 9 * (8 // groups) * 8 * 20
