"""Networks: parameter counts, the stem, initialization, and errors for invalid model nodes."""

import pytest
import torch

from attnconv.errors import ConfigError
from attnconv.models.backbone import space_to_depth
from attnconv.models.build import build_model
from attnconv.models.vit import vit
from conftest import compose

CIFAR = (3, 32, 32)


def count(*overrides: str) -> int:
    with torch.device("meta"):
        model = build_model(compose(list(overrides)).model, CIFAR, 10)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        (["model=sa_quadratic"], 12_086_844),
        (["model=sa_quadratic_generalized"], 12_087_006),
        (["model=sa_learned"], 12_278_682),
        (["experiment=many_heads"], 18_806_970),
        (["model=resnet18"], 11_173_962),
        # No published count: 12,086,682 without encodings, and 6 layers x 2 axes x 400 x 9 weights on sinusoids.
        (["model=sa_sinusoidal"], 12_086_682 + 6 * 2 * 400 * 9),
        (["model=conv3x3"], 12_086_682),
        (["model=sa_learned_content"], 29_484_282),
        (["model=sa_learned_key"], 20_822_682),
        # Queries and keys of 6 layers, 2 x (400 x 3,600 + 3,600) each, plus the position terms.
        (["model=sa_content"], 12_086_682 + 6 * 2_887_200),
        (["model=sa_quadratic_content"], 12_086_682 + 6 * (2_887_200 + 27)),
        (["model=sa_gated"], 12_086_682 + 6 * (2_887_200 + 27 + 9)),
        (["model=bigbird"], 29_484_282),
    ],
)
def test_parameter_counts_at_paper_scale(overrides, parameters):
    assert count(*overrides) == parameters


def test_space_to_depth_moves_each_pixel_into_its_patch():
    x = torch.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    for row in range(4):
        for column in range(6):
            place = (row % 2) * 2 + column % 2
            assert torch.equal(y[:, row // 2, column // 2, 3 * place : 3 * place + 3], x[:, row, column])


def test_image_size_not_divisible_by_the_patch_size_is_refused():
    with pytest.raises(ConfigError, match="30x32 pixels do not divide into patches of 4x4"):
        build_model(compose(["scale=mini"]).model, (3, 30, 32), 10)


def test_unknown_argument_suggests_the_closest_name():
    node = {**compose([]).model, "widht": 8}
    with pytest.raises(ConfigError, match=r"model\.widht: .*did you mean 'width'"):
        build_model(node, CIFAR, 10)


def test_unknown_encoding_argument_is_reported_with_its_path():
    node = compose([]).model
    node["mixer"]["encoding"]["centre_std"] = 1.0
    with pytest.raises(ConfigError, match=r"model\.mixer\.encoding\.centre_std: .*'center_std'"):
        build_model(node, CIFAR, 10)


def test_nonexistent_target_is_named():
    with pytest.raises(ConfigError, match=r"attnconv\.mixers\.Nothing cannot be imported"):
        build_model({"_target_": "attnconv.mixers.Nothing"}, CIFAR, 10)


def test_initialization_differs_between_layers():
    model = build_model(compose(["scale=mini"]).model, CIFAR, 10)
    first, second = (layer.mixer.encoding.centers for layer in model.layers[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("std", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("model", ["sa_quadratic", "sa_quadratic_generalized", "sa_quadratic_random"])
def test_initial_head_centers_have_the_configured_std(model, std):
    torch.manual_seed(0)
    node = compose([f"model={model}", f"scale.center_std={std}", "scale.heads=900", "scale.width=2", "scale.layers=1"])
    encoding = build_model(node.model, CIFAR, 10).layers[0].mixer.encoding
    assert encoding.centers.std().item() == pytest.approx(std, rel=0.06)  # over three standard errors for 1,800 numbers
    assert encoding.centers.mean().item() == pytest.approx(0, abs=0.08 * std)


def test_dropout_of_a_vit_acts_on_the_outputs_of_its_layers_only():
    model = vit((3, 8, 8), 4, 4, 1, 2, 8, 8, dropout=0.3, attention_dropout=0.2)
    (block,) = model.blocks
    parts = model.pos_drop, block.attn.attn_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2
    assert [part.p for part in parts] == [0, 0.2, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(("width", "hidden"), [(14, 61), (22, 15), (38, 53), (8, 8)])
def test_hidden_layers_of_a_vit_have_the_given_width(width, hidden):
    """timm takes a ratio, and hidden / width times width can be rounded below hidden."""
    with torch.device("meta"):
        (block,) = vit((3, 8, 8), 4, 4, 1, 1, width, hidden, dropout=0.0, attention_dropout=0.0).blocks
    assert block.mlp.fc1.out_features == hidden
