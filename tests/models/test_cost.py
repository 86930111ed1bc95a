"""Costs against the published ones and against counting by hand; widths matched to a budget."""

import csv

import pytest
import torch
from torch import nn

from attnconv.config import compose, model_node
from attnconv.errors import ConfigError
from attnconv.mixers.global_convolution import DepthwiseGlobal
from attnconv.models.cost import activation_bytes, build_unfilled, flops_full, flops_paper, parameters
from attnconv.models.match import match_width
from attnconv.study.models import CLAIMS, cost_row, study_models
from conftest import REPOSITORY

CIFAR = (3, 32, 32)
IMAGE = torch.zeros(1, *CIFAR, device="meta")


def model(*overrides):
    return build_unfilled(compose(list(overrides)).model, CIFAR, 10)


@pytest.mark.parametrize(
    ("name", "published"),
    [("sa_quadratic", "6.18"), ("sa_learned", "6.18"), ("sa_learned_content", "15.02"), ("resnet18", "1.11")],
)
def test_flops_as_the_paper_counts_them(name, published):
    assert f"{flops_paper(model(f'model={name}'), IMAGE) / 1e9:.2f}" == published


def test_flops_in_full_by_hand():
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
    # Forward of the map and of the kernel, and back: 2.5 n log2 n each, on 8 channels of 256 pixels.
    assert flops_full(layer, torch.zeros(1, 16, 16, 8, device="meta")) == 3 * int(2.5 * 8 * 256 * 8)


def test_activations_of_a_stack_by_hand():
    """Linear keeps its input, ReLU its output: 12 and 20 numbers of 4 bytes per image."""
    layers = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    assert activation_bytes(layers, (12,), device="cpu") == 4 * (12 + 20)


def test_activations_are_the_same_measured_on_real_tensors():
    overrides = ["model=sa_learned_content", "scale=mini", "scale.layers=2"]
    real = activation_bytes(
        torch.nn.Module.to_empty(build_unfilled(compose(overrides).model, CIFAR, 10), device="cpu"), CIFAR, "cpu"
    )
    assert activation_bytes(model(*overrides), CIFAR) == real


def test_every_model_has_a_claim_and_a_row_that_is_still_true():
    with (REPOSITORY / "results" / "models.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = {(row["model"], row["scale"]): row for row in reader}
    assert reader.fieldnames[:2] == ["model", "scale"]
    assert {name for name, _ in rows} == set(study_models()) == set(CLAIMS)
    for (name, scale), row in rows.items():
        for key, value in cost_row(name, scale).items():
            assert row[key] == str(value), f"{name}, {scale}, {key}: python scripts/model_table.py"


@pytest.mark.parametrize("budget", ["parameters", "flops"])
@pytest.mark.parametrize(
    "name",
    ["conv3x3", "sa_learned_content", "local_attention", "vit", "mlp_mixer", "resnet18", "vgg11_bn", "involution"],
)
def test_every_width_is_matched_within_two_percent(name, budget):
    config = compose([f"model={name}", "scale=mini"])
    match = match_width(config.model, model_node("sa_quadratic", config), budget, CIFAR, 10)
    own, target = (
        parameters(network) if budget == "parameters" else flops_full(network, IMAGE)
        for network in (build_unfilled(match.node, CIFAR, 10), model("model=sa_quadratic", "scale=mini"))
    )
    assert (match.achieved, match.target) == (own, target)
    assert abs(own / target - 1) == pytest.approx(abs(match.difference))
    assert abs(match.difference) <= 0.02


def test_a_reference_has_the_scale_of_the_run():
    config = compose(["model=conv3x3", "scale=mini", "scale.width=32", "scale.heads=4"])
    node = model_node("sa_quadratic", config)
    assert (node["width"], node["heads"], node["patch"]) == (32, 4, 4)


def test_what_no_width_reaches_is_refused():
    config = compose(["model=fully_connected", "scale=mini"])
    with pytest.raises(
        ConfigError, match=r"no width of model=fully_connected comes within 2% of the 450,540 parameters"
    ):
        match_width(config.model, model_node("sa_quadratic", config), "parameters", CIFAR, 10)
    with pytest.raises(ConfigError, match="has no width that match=parameters could scale"):
        match_width({"name": "timm_x"}, config.model, "parameters", CIFAR, 10)
    with pytest.raises(ConfigError, match=r"match_model=sa_quadratik does not exist; did you mean 'sa_quadratic'"):
        model_node("sa_quadratik", config)
