"""Overrides that Hydra would misread, and errors that appear before torch is imported."""

import subprocess

import pytest

from attnconv.config import compose
from attnconv.errors import ConfigError
from attnconv.settings.overrides import check_overrides
from conftest import PYTHON

REMOVED = ["~seed", "~seed=0", "~output", "~data.root", "~recipe.lr", "~recipe", "~model", "~model.mixer", "~logger"]
SWITCHES = [
    "data.flip=2",
    "data.flip=-1",
    'data.flip="2"',
    "compile=2",
    "eval_mirrored=0.5",
    "warm_up=maybe",
    "compile=",
]
NOT_NAMES = ["model=null", "model=5", "model=true", "model=", "recipe=null", "scale={}", "data=[]", "experiment=null"]


@pytest.mark.parametrize("override", REMOVED)
def test_settings_cannot_be_removed(refused, override):
    key = override.lstrip("~").partition("=")[0]
    assert refused(override) == f"error: {override}: settings cannot be removed; set {key}=VALUE"


@pytest.mark.parametrize("override", SWITCHES)
def test_boolean_settings_must_be_true_or_false(refused, override):
    key = override.partition("=")[0]
    assert f" must be true or false: set {key}=true or {key}=false" in refused(override)


def test_an_experiment_cannot_be_swept(refused):
    assert "each experiment has a grid of its own" in refused("-m", "experiment=table1,optimizer")


@pytest.mark.parametrize("override", ["hydra/launcher=null", "hydra/sweeper=5"])
def test_plugins_of_hydra_need_a_file_name(refused, override):
    assert f"{override} does not name a file of {override.partition('=')[0]}" in refused("-m", override)


@pytest.mark.parametrize("name", ["recipe/modern.yaml", "backbone.yaml"])
def test_a_file_that_hydra_would_ignore_is_refused(refused, tmp_path, name):
    file = tmp_path / "own" / name
    file.parent.mkdir(parents=True)
    file.write_text("lr: 1\n")
    assert f"own/{name} would be ignored" in refused("--config-dir", tmp_path / "own")
    for place in (f"file://{tmp_path}/own", f"{tmp_path}/own"):
        assert f"own/{name} would be ignored" in refused(f"hydra.searchpath=[pkg://some.package,'{place}']")
    with pytest.raises(ConfigError, match=f"own/{name} would be ignored"):
        compose([f"hydra.searchpath=[file://{tmp_path}/own]"])


def test_an_empty_config_dir_is_refused(refused):
    assert "--config-dir is empty" in refused("--config-dir", "")


@pytest.mark.parametrize("override", NOT_NAMES)
def test_config_groups_need_a_file_name(refused, override):
    assert f"{override} does not name a file of configs/{override.partition('=')[0]}" in refused(override)


TARGETS = ["nothing", "torch.nn", "5", "attnconv.Nope", "torch.nn.Linear"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_invalid_model_target_is_a_one_line_error(refused, target):
    assert "model" in refused(f"model._target_={target}")


def test_a_network_without_one_logit_per_class_is_refused_before_training(refused, tmp_path):
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text("name: mine\n_target_: torch.nn.Identity\n")
    line = refused("--config-dir", tmp_path / "own", "model=mine")
    assert line == "error: model=mine: it gives (1, 3, 8, 8) for 1 image, not (1, 4): one logit per class"


@pytest.mark.parametrize("name", ["5", "nope", "timm"])
def test_an_invalid_match_model_is_a_one_line_error(refused, name):
    assert f"match_model={name}" in refused("match=parameters", f"match_model={name}")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("hydra.launcher=x", "hydra.launcher=x: hydra.launcher holds settings: set hydra.launcher.KEY=VALUE; hydra"),
        ("hydra.sweeper=5", "hydra.sweeper=5: hydra.sweeper holds settings: set hydra.sweeper.KEY=VALUE; hydra/"),
        ("hydra=5", "hydra=5: hydra holds settings: set hydra.KEY=VALUE"),
        ("hydra.run=null", "hydra.run=null: hydra.run holds settings: set hydra.run.KEY=VALUE"),
        ("hydra.sweeper._target_=nope", "hydra.sweeper._target_=nope: choose a sweeper with hydra/sweeper=NAME"),
        ("hydra.job.env_copy=[NO_SUCH]", "hydra.job.env_copy=[NO_SUCH]: the environment has no variable NO_SUCH"),
        ("recipe.optimizer=SGD", "recipe.optimizer=SGD is not one of sgd, adamw, muon; did you mean 'sgd'?"),
        ("recipe.optimizer=q", "recipe.optimizer=q is not one of sgd, adamw, muon"),
        ("hydra.verbose=2", "hydra.verbose=2 is invalid: set hydra.verbose=true, false, or the names of loggers"),
        ("model=sa_quadratic_pruned", "model.start has no default: set model.start=RUN/weights.safetensors"),
        ("experiment=[table1,small]", "experiment=[table1,small] does not name a file of configs/experiment; "),
        ("scale=[mini,paper]", "scale=[mini,paper] does not name a file of configs/scale; valid: mini, paper, small"),
        ("recipe=paper.yaml", "recipe=paper.yaml does not name a file of configs/recipe; did you mean 'paper'?"),
        ("model=./conv3x3", "model=./conv3x3 does not name a file of configs/model; did you mean 'conv3x3'?"),
        ("recipe=../recipe/paper", "recipe=../recipe/paper does not name a file of configs/recipe; did you mean"),
        (f"seed={'1' * 5000}", "seed has a number of more than 4,299 digits"),
        (f"name={'1' * 5000}", "name has a number of more than 4,299 digits"),
        ("model=vit,conv3x3", "model=vit,conv3x3 has several values: add -m for one run per value"),
        ("seed=1,2", "seed=1,2 has several values: add -m for one run per value"),
        ("recipe.sizes=1,2", "add -m for one run per value, or write recipe.sizes=[A,B] for a list"),
        ("logger.notes='caf\udce9'", "logger.notes='caf\\udce9' has bytes that are not UTF-8 text"),
        ("model=", "model= does not name a file of configs/model"),
        ("data.mean=[a]", "data.mean must be a number, not 'a'"),
        ("=5", "=5 has no setting before the = sign: write KEY=5"),
    ],
)
def test_hydra_errors_are_one_line_without_internal_types(refused, override, complaint):
    error = refused(override)
    assert complaint in error
    assert "reference_type" not in error


def test_hydra_errors_do_not_offer_what_does_not_work(refused):
    for override in ("model=vit,conv3x3", "seed=1,2"):
        assert refused(override).endswith("has several values: add -m for one run per value")


def test_environment_variables_set_numbers_that_models_share(monkeypatch):
    monkeypatch.setenv("HERE", "24")
    monkeypatch.setenv("RATE", "0.25")
    config = compose(["scale.width=${oc.env:HERE}", "recipe.dropout=${oc.env:RATE}", "seed=${oc.env:HERE}"])
    assert (config.model["width"], config.model["dropout"], config.seed) == (24, 0.25, 24)
    monkeypatch.setenv("HERE", "x")
    with pytest.raises(ConfigError, match=r"scale\.width must be a whole number, not 'x'"):
        compose(["scale.width=${oc.env:HERE}"])


def test_a_grid_of_a_file_is_checked_like_the_command_line(refused, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {seed: 'range(0,3,0)'}\n"
    (tmp_path / "own/experiment/mine.yaml").write_text(text)
    error = refused("--config-dir", tmp_path / "own", "experiment=mine")
    assert error == "error: seed=range(0,3,0): the step of a range must not be 0"


def test_every_value_of_a_sweep_is_checked(refused):
    assert "data.flip=2 must be true or false" in refused("-m", "data.flip=true,2")
    assert "recipe=modern,null does not name a file of configs/recipe; valid: " in refused("-m", "recipe=modern,null")


def test_sweep_syntax_for_values_and_files_is_accepted():
    several = ["recipe.whitening=true,false", "model=glob(sa_*)", "seed=range(0,3)"]
    check_overrides([*several, "+recipe=modern", "model=[conv3x3]"])


@pytest.mark.slow
def test_invalid_settings_are_refused_without_importing_torch():
    overrides = [["name="], ["output="], ["seed=99999999999999999999"], ["recipe.lr=nan"], ["model.layers=0"]]
    code = (
        "import sys\nfrom attnconv.config import compose\nfrom attnconv.errors import ConfigError\n"
        f"for overrides in {overrides}:\n"
        "    try:\n        compose(overrides)\n"
        "    except ConfigError:\n        pass\n"
        "    else:\n        raise AssertionError(overrides)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([PYTHON, "-c", code], check=True)
