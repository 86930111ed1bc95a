"""All configurations compose and build under their own names, and typos are errors."""

import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

import composed_once
from attnconv import config as settings
from attnconv.analysis.profile import study_models
from attnconv.config import CONFIGS, Config, freeze, register_schema, valid_keys
from attnconv.errors import ConfigError, nearest
from attnconv.models.cost import build_unfilled
from attnconv.settings.composition import composed
from attnconv.settings.explain import explain_composition_error
from conftest import compose

# Model settings that have no default.
NEEDS = {"timm": ["model.timm_name=resnet10t"], "sa_quadratic_copied": ["model.start=weights.safetensors"]}


def members(group: str) -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob(f"{group}/*.yaml") if not path.stem.startswith("_"))


def overlays(model: str) -> set[str]:
    """Return the recipes that have their own settings for the family of a model."""
    family = "resnet" if "resnet" in model or model.startswith("vgg") else model
    return {recipe for recipe in members("recipe") if f"{recipe}_{family}" in members("recipe_for_model")}


@pytest.mark.parametrize("group", ["recipe", "scale"])
def test_every_file_holds_its_own_name(group):
    assert [composed([f"{group}={name}"])[group].name for name in members(group)] == members(group)


# tests/models/test_cost.py builds these models at the other scales.
BUILT_ELSEWHERE = [(name, scale) for name in study_models() for scale in ("mini", "paper")]
BUILT_ELSEWHERE.remove(("fully_connected", "mini"))


@pytest.mark.slow
# The size of sa_quadratic_pruned depends on the weights that it starts from: see tests/models/test_pruned.py.
@pytest.mark.parametrize("model", [model for model in members("model") if model != "sa_quadratic_pruned"])
def test_every_model_builds_at_every_scale_and_with_every_recipe(model):
    """Compose each model once with Hydra, and once more for each recipe that has its own settings for it.

    A scale sets sizes and a recipe dropouts, so each scale is built with one of the recipes.
    """
    extra, name = NEEDS.get(model, []), "timm_resnet10t" if model == "timm" else model
    for recipe, scale in zip(members("recipe"), members("scale"), strict=True):
        own = [f"recipe={recipe}"] if recipe in overlays(model) else []
        config = composed([f"model={model}", *own])
        config.scale = composed([f"scale={scale}"]).scale
        if not own:
            config.recipe = composed([f"recipe={recipe}"]).recipe
        for override in extra:
            key, _, value = override.partition("=")
            OmegaConf.update(config, key, value)
        config = freeze(config)
        assert config.model["name"] == name
        if (model, scale) in BUILT_ELSEWHERE:
            continue
        network = build_unfilled(config.model, (3, 32, 32), 10)
        if scale == "small":
            for images in (2, 0):
                assert network(torch.zeros(images, 3, 32, 32, device="meta")).shape == (images, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "scale=mini",
        "scale=mini model=resnet18 data=pairs data.distance=12 data.mean=[0.5,0.4,0.3]",
        "model=fully_connected recipe=modern name='lr_${recipe.lr}' recipe.lr=0.3 +model.mixer.impl=dense",
        "experiment=speedrun logger=none seed=3 recipe.sizes=[0.5,1]",
    ],
)
def test_compose_gives_the_same_configuration_as_hydra(monkeypatch, overrides):
    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", composed_once.HYDRAS_OWN)
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        expected = freeze(hydra_compose("config", overrides.split()))
    assert compose(overrides.split()) == settings.compose(overrides.split()) == expected


def test_config_files_on_the_search_path_are_not_cached(tmp_path):
    (tmp_path / "model").mkdir()
    for width in (8, 99):
        (tmp_path / "model/mine.yaml").write_text(f"name: mine\n_target_: torch.nn.Identity\nwidth: {width}\n")
        config = settings.compose([f"hydra.searchpath=[file://{tmp_path}]", "model=mine"])
        assert config.model["width"] == width


def test_a_changed_config_file_is_read_again(monkeypatch, tmp_path):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr("attnconv.settings.composition.CONFIGS", tmp_path / "configs")
    assert settings.compose(["scale=mini"]).scale.heads == 9
    changed = tmp_path / "configs/scale/mini.yaml"
    changed.write_text(changed.read_text().replace("heads: 9", "heads: 4"))
    assert settings.compose(["scale=mini"]).scale.heads == 4


@pytest.mark.parametrize("experiment", members("experiment"))
def test_every_experiment_composes_and_documents_cost_and_expected_result(experiment):
    assert isinstance(compose([f"experiment={experiment}"]), Config)
    text = (CONFIGS / f"experiment/{experiment}.yaml").read_text()
    assert text.startswith("# @package _global_\n"), "its keys would land below `experiment`"
    assert f"experiment={experiment}" in text
    assert "Cost:" in text
    assert "Expect:" in text
    assert "\nprecision: " in text, "auto is another arithmetic on another machine"
    assert "\nmodel:" not in text, "keys of one model leak into another: variants get their own model file"


@pytest.mark.slow
@pytest.mark.parametrize("group", ["data", "logger"])
def test_every_data_and_logger_config_composes_and_has_its_file_name(group):
    for member in members(group):
        extra = ["data.root=somewhere"] if member == "arrays" else []
        assert getattr(compose([f"{group}={member}", *extra]), group).name == member


def test_every_recipe_for_model_file_matches_a_recipe_and_a_family():
    # `optional` in the defaults list would silently ignore a misspelled file.
    families = [*members("model"), "resnet"]
    pairs = {f"{recipe}_{family}" for recipe in members("recipe") for family in families}
    assert set(members("recipe_for_model")) <= pairs


@pytest.mark.parametrize("model", ["resnet10", "resnet18", "nonlocal_resnet18", "se_resnet18", "vgg11_bn"])
def test_published_convolutional_networks_use_the_step_schedule(model):
    assert compose([f"model={model}", "recipe=paper"]).recipe.schedule == "step"


def test_recipe_defaults_depend_on_the_model():
    assert compose(["model=sa_quadratic"]).recipe.schedule == "cosine"
    assert compose(["model=resnet18"]).recipe.schedule == "step"
    assert compose(["model=resnet18", "recipe.schedule=cosine"]).recipe.schedule == "cosine"


def test_mini_scale_uses_the_modern_recipe_by_default():
    assert compose(["scale=mini"]).recipe.name == "modern"
    assert compose(["scale=mini", "recipe=paper"]).recipe.name == "paper"
    assert compose([]).recipe.name == "paper"


def test_the_default_configuration_matches_the_paper():
    config = compose([])
    scale, recipe = config.scale, config.recipe
    assert (scale.layers, scale.heads, scale.width, scale.hidden, scale.patch) == (6, 9, 400, 512, 2)
    assert (recipe.optimizer, recipe.batch_size, recipe.lr, recipe.momentum) == ("sgd", 100, 0.1, 0.9)
    assert (recipe.weight_decay, recipe.dropout, recipe.attention_dropout) == (1e-4, 0.1, 0.1)
    assert (recipe.warmup, recipe.label_smoothing, config.epochs) == (0.05, 0.0, 300)
    assert (config.data.mean, config.data.std) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    assert (config.data.crop_padding, config.data.flip) == (4, True)


def compose_with(tmp_path: Path, text: str) -> Config:
    """Compose configs/ with an additional experiment file."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs/experiment/new.yaml").write_text(f"# @package _global_\n{text}\n")
    register_schema()
    with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
        return freeze(hydra_compose("config", ["experiment=new"]))


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("epohcs: 2", "epohcs", "epochs"),
        ("recipe: {wieght_decay: 0.1}", "recipe.wieght_decay", "recipe.weight_decay"),
        ("data: {fracton: 0.1}", "data.fracton", "data.fraction"),
    ],
)
def test_a_typo_in_an_experiment_file_suggests_the_right_setting(tmp_path, text, wrong, right):
    with pytest.raises(Exception, match="not in") as caught:
        compose_with(tmp_path, text)
    message = explain_composition_error(caught.value, valid_keys())
    assert message == f"experiment/new.yaml: unknown setting '{wrong}'; did you mean '{right}'?"


def test_an_experiment_file_without_typos_composes(tmp_path):
    assert compose_with(tmp_path, "epochs: 2").epochs == 2


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("data.fraction=0", "data.fraction must be above 0, not 0.0"),
        ("data.fraction=-0.5", "data.fraction must be above 0, not -0.5"),
        ("data.fraction=1.01", "data.fraction must be at most 1, not 1.01"),
        ("data.holdout=1", "data.holdout must be below 1, not 1.0"),
        ("scale.heads=0", "scale.heads must be at least 1, not 0"),
        ("scale.width=-4", "scale.width must be at least 1, not -4"),
        ("epochs=0", "epochs must be at least 1, not 0"),
        ("recipe.dropout=1", "recipe.dropout must be below 1, not 1.0"),
        ("precision=fp16", "precision=fp16 is not one of auto, fp32, bf16; did you mean 'bf16'?"),
        ("recipe.schedule=cosin", "recipe.schedule=cosin is not one of cosine, linear, step; did you mean 'cosine'?"),
        ("+epohcs=3", "unknown setting 'epohcs'; did you mean 'epochs'?"),
        ("+recipe.lrr=3", "unknown setting 'recipe.lrr'; did you mean 'recipe.lr'?"),
    ],
)
def test_invalid_values_and_unknown_settings_are_refused(override, complaint):
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert str(caught.value) == complaint


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model=timm"], "model.timm_name has no default: set model.timm_name=resnet18, or another model of timm"),
        (["name=${nothing}"], "name: Interpolation key 'nothing' not found"),
        (["name=${oc.env:NO_SUCH_VARIABLE}"], "Environment variable 'NO_SUCH_VARIABLE' not found"),
        (["name=${"], "name=${ cannot be parsed"),
        (["hydra.searchpath=[file://FOLDER]", "experiment=torn"], "torn.yaml, line 3: expected ',' or ']'"),
    ],
)
def test_errors_of_composition_are_those_of_the_command_line(refused, tmp_path, overrides, complaint):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/torn.yaml").write_text("# @package _global_\nseed: [1\n")
    overrides = [override.replace("FOLDER", f"{tmp_path}/own") for override in overrides]
    with pytest.raises(ConfigError) as caught:
        settings.compose(overrides)
    assert complaint in str(caught.value)
    assert refused(*overrides).removeprefix("error: ") == str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("batch_size", "; did you mean 'recipe.batch_size'?"),
        ("recipe.batchsize", "; did you mean 'recipe.batch_size'?"),
        ("lr", "; did you mean 'recipe.lr'?"),
        ("out", "; did you mean 'output'?"),
        ("data.frac", "; did you mean 'data.fraction'?"),
        ("data.lr", "; did you mean 'recipe.lr'?"),
        ("width", "; did you mean 'model.width' or 'scale.width'?"),
        ("epohcs", "; did you mean 'epochs'?"),
        ("max_epochs", "; did you mean 'epochs'?"),
        ("trainer", "; python train.py --help lists them"),
        ("num_workers", "; python train.py --help lists them"),
        ("gpus", "; python train.py --help lists them"),
        ("data.path", "; python train.py --help lists them"),  # and not scale.patch
        ("model.mixer.window", "; python train.py --help lists them"),
        ("model.mixer.impl.x", "; python train.py --help lists them"),
        ("model.mixr.kernel_size", "; did you mean 'model.mixer.kernel_size'?"),
        ("bs", "; python train.py --help lists them"),
        ("amp", "; python train.py --help lists them"),
    ],
)
def test_suggestions_match_the_last_part_of_a_name_or_point_to_help(name, near):
    assert nearest(name, valid_keys()) == near


def test_home_folder_is_expanded_in_all_path_settings(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = compose(['output="~/runs"', 'data.root="~/c10"', 'collected="~"'])
    assert (config.output, config.data.root, config.collected) == ("/home/ada/runs", "/home/ada/c10", "/home/ada")


def test_nearest_lists_valid_names_only_if_they_are_few():
    assert nearest("xyz", ["a", "b"]) == "; valid: a, b"
    assert nearest("xyz", map(str, range(50))) == "; python train.py --help lists them"
