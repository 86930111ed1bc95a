"""Settings that would have no effect because of other settings."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

import attnconv
from attnconv.config import CONFIGS
from attnconv.errors import ConfigError
from attnconv.models.build import build_seeded_model
from attnconv.settings.contradictions import require_effect, unused_by_network
from attnconv.training.setup import prepare
from conftest import TINY_SCALE, compose

IDLE = [
    ("eval_mirrored=true data.flip=false", "eval_mirrored=true has no effect: data.flip=false"),
    ("data.alternating_flip=true data.flip=false", "data.alternating_flip=true has no effect: data.flip=false"),
    ("data.padding_mode=reflect data.crop_padding=0", "data.padding_mode=reflect has no effect: data.crop_padding=0"),
    ("recipe.sizes=[1,1.0]", "recipe.sizes=[1,1.0] has no effect: images of size 1"),
    ("data.distance=12", "data.distance=12 has no effect: only data=pairs uses it, and this is data=arrays"),
    ("recipe.cutmix=0.5 recipe.batch_size=1", "recipe.cutmix=0.5 has no effect: recipe.batch_size=1"),
    ("recipe.milestones=[5]", "recipe.milestones=[5] has no effect: recipe.schedule=linear"),
    ("recipe.milestones=[5,9] recipe.schedule=step epochs=8", "milestones after epochs=8 are never reached"),
    ("recipe.decay_factor=2", "recipe.decay_factor=2 has no effect: recipe.schedule=linear"),
    ("recipe.decay_factor=2 recipe.schedule=step", "recipe.milestones=[]"),
    ("recipe.warmup=0.2 recipe.schedule=step", "recipe.warmup=0.2 has no effect: recipe.schedule=step"),
    ("recipe.lr_changes=epoch recipe.schedule=step", "recipe.lr_changes=epoch has no effect"),
    ("recipe.adamw_lr=0.1 recipe.optimizer=sgd", "recipe.adamw_lr=0.1 has no effect: recipe.optimizer=sgd"),
    ("recipe.momentum=0.5 recipe.optimizer=adamw", "recipe.momentum=0.5 has no effect: recipe.optimizer=adamw"),
    ("recipe.cropped_from=0.5", "recipe.cropped_from=0.5 has no effect: no size of recipe.sizes=[]"),
    ("recipe.cropped_from=0.9 recipe.sizes=[0.5,0.75]", "recipe.cropped_from=0.9 has no effect"),
    (
        "recipe.cropped_from=0.5 recipe.sizes=[1]",
        "recipe.cropped_from=0.5 has no effect: no size of recipe.sizes=[1.0]",
    ),
    ("recipe.centers_lr=0.1 model=conv3x3", "has no effect: model=conv3x3 has no Gaussian heads to train"),
    ("recipe.centers_lr=0.1 model=sa_quadratic_random", "model=sa_quadratic_random has no Gaussian heads to train"),
    ("data.subset_seed=3", "data.subset_seed=3 has no effect: data.fraction=1 takes all images"),
    ("logger=none logger.group=a", "logger.group=a has no effect: logger=none does not use it"),
    ("logger=trackio logger.entity=a", "logger.entity=a has no effect: logger=trackio does not use it"),
    ("match_model=resnet10", "match_model=resnet10 has no effect: match is null"),
    (
        "model=resnet10 model.width=8 match=parameters",
        "model.width=8 has no effect: match=parameters chooses the width",
    ),
]


@pytest.mark.parametrize(("overrides", "complaint"), IDLE)
def test_settings_without_effect_are_refused(overrides, complaint):
    with pytest.raises(ConfigError) as caught:
        compose([*TINY_SCALE, "data=arrays", "data.root=somewhere", *overrides.split()])
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "override", ["collected=results", "retry_failed=true", "hydra/launcher=joblib", "hydra/sweeper=basic"]
)
def test_sweep_only_settings_are_refused_in_a_single_run(refused, override):
    assert refused(override).startswith(f"error: {override} has no effect in a single run")


@pytest.mark.parametrize(
    "overrides",
    [["hydra.run.dir=x"], ["hydra.output_subdir=.hydra"], ["hydra.sweep.dir=x"], ["hydra.sweep.subdir=x", "-m"]],
)
def test_folders_of_hydra_are_refused(refused, overrides):
    expected = f"error: {overrides[0]} is not supported: set output=FOLDER, which holds run folders and .sweeps/"
    assert refused(*overrides) == expected


def test_a_data_set_has_its_own_source(refused):
    for source in ("pairs", "digits", "cifar10"):
        expected = f"error: data.source={source} is not the source of data=arrays: choose data={source}"
        assert refused(f"data.source={source}") == expected


def test_settings_of_hydra_are_refused_in_compose():
    for override in ("hydra.job.chdir=true", "hydra/launcher=joblib", "hydra.verbose=true"):
        with pytest.raises(ConfigError, match=f"{override} has no effect"):
            attnconv.compose([override])
    assert attnconv.compose(["experiment=table1", "model=sa_learned", "seed=3"]).seed == 3


@pytest.mark.parametrize("lr", [True, False])
def test_rates_without_a_matrix_for_muon_are_noted(train, own_model, lr):
    asked = ["recipe.lr=0.5"] if lr else ["recipe.adamw_lr=0.01"]
    code, _, err = train(*own_model(NoMatrix), "recipe=modern", *asked)
    assert code == 0, err
    assert ("note: recipe.lr=0.5 has no effect: Muon trains matrices between" in err) == lr


class NoMatrix(torch.nn.Module):
    """A network of one layer, which is first and last."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.head = torch.nn.Linear(image_shape[0], classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("overrides", ["eval_mirrored=true data.flip=false", "recipe.milestones=[5,3]"])
def test_contradictions_are_one_line_errors(refused, overrides):
    assert overrides.partition("=")[0] in refused(*overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "recipe=speedrun data=digits",  # sets eval_mirrored and alternating flips, which have no effect on digits
        "recipe=modern model=conv3x3",  # sets centers_lr
        "recipe=paper model=resnet18 recipe.schedule=cosine",  # sets milestones
        "eval_mirrored=false data.flip=false",
        "model=conv3x3 model.width=32 match=parameters",  # changes the proportion of model.width and model.hidden
        "recipe.centers_lr=0.1 model=sa_gated",
        "scale.layers=3 recipe.dropout=0.5 model=resnet18",  # all models share these: there is a note instead
        "logger=trackio logger.group=a",
        "recipe.milestones=[2,4] recipe.schedule=step",
    ],
)
def test_settings_from_files_and_settings_with_an_effect_are_accepted(overrides):
    compose([*TINY_SCALE, *overrides.split()])


@pytest.mark.parametrize(("override", "fine"), [("recipe.centers_lr=0.1", True), ("recipe.momentum=0.5", False)])
def test_a_sweep_override_must_have_an_effect_in_at_least_one_run(override, fine):
    cells = []
    for model in ("conv3x3", "sa_quadratic"):
        overrides = [*TINY_SCALE, "recipe.optimizer=adamw", f"model={model}"]
        config = compose(overrides)
        key, value = override.split("=")
        setattr(config.recipe, key.removeprefix("recipe."), float(value))
        cells.append((config, [*overrides, override]))
    if fine:
        require_effect(cells)
    else:
        with pytest.raises(ConfigError, match="has no effect"):
            require_effect(cells)


def test_a_sweep_with_a_setting_without_effect_is_refused_before_any_run(refused):
    assert "eval_mirrored=True has no effect" in refused("-m", "eval_mirrored=true", "data.flip=false")


OTHER_VALUES = {
    "scale.layers": 3, "scale.heads": 25, "scale.width": 32, "scale.hidden": 10, "scale.patch": 2,
    "scale.center_std": 3.0, "scale.cnn_width": 4, "recipe.dropout": 0.4, "recipe.attention_dropout": 0.4,
}  # fmt: skip
NEED_A_FILE = ("sa_quadratic_copied", "sa_quadratic_pruned", "timm")


def one_model_of_each_kind() -> list[str]:
    """Return one model file for each class of networks and mixers and each start of frozen heads."""
    kinds = {}
    for path in sorted(CONFIGS.glob("model/*.yaml")):
        if path.stem not in NEED_A_FILE:
            kind = [OmegaConf.select(OmegaConf.load(path), key) for key in ("_target_", "mixer._target_", "start")]
            kinds.setdefault(tuple(kind), path.stem)
    return list(kinds.values())


@pytest.mark.parametrize("model", one_model_of_each_kind())
def test_settings_are_unused_if_and_only_if_they_leave_the_network_as_it_is(model):
    def composed(*overrides):
        return compose([f"model={model}", "scale=mini", "recipe=paper", *small, *overrides])

    def outputs(config):
        network = build_seeded_model(config.model, (3, 32, 32), 10, seed=0)
        torch.manual_seed(1)
        return network.train()(images)

    small = ["scale.layers=2", "scale.width=16", "scale.hidden=8", "scale.cnn_width=2"]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    base = composed()
    before = outputs(base)
    for key, value in OTHER_VALUES.items():
        config = composed(f"{key}={value}")
        same = config.model == base.model or torch.equal(before, outputs(config))
        assert same == (key in {unused for unused, _ in unused_by_network(config)}), key


@pytest.mark.parametrize("model", ["resnet10", "vit"])
def test_sizes_that_the_network_does_not_use_are_noted(train, model):
    code, _, err = train(f"model={model}", "scale.heads=4")
    assert code == 0
    assert f"note: scale.heads=4 has no effect on model={model}\n" in err


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("conv3x3", "model.heads=5"),
        ("conv3x3", "model.attention_dropout=0.5"),
        ("sa_quadratic_random", "+model.spread=9"),
    ],
)
def test_arguments_that_the_network_does_not_use_are_noted(train, model, setting):
    code, _, err = train(f"model={model}", setting)
    assert code == 0
    assert f"note: {setting.lstrip('+')} has no effect on model={model}\n" in err


def test_a_size_that_only_the_matched_model_uses_is_not_noted(train):
    assert "scale.heads" not in train("model=resnet10", "scale.heads=4", "match=parameters")[2]


def test_a_size_that_neither_the_network_nor_the_matched_model_uses_is_noted(train):
    err = train("model=conv3x3", "scale.cnn_width=4", "match=parameters", "match_model=mlp_mixer")[2]
    assert "note: scale.cnn_width=4 has no effect on model=conv3x3\n" in err


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (
            ["recipe=paper", "epochs=1", "recipe.batch_size=1"],
            "with epochs=1, the learning rate is 0 at all steps: nothing is trained",
        ),
        (
            ["model=resnet18", "recipe=paper", "epochs=3"],
            "recipe.milestones=[80, 150, 250] are after epochs=3: the learning rate stays at 0.1",
        ),
        (["recipe=paper", "epochs=2", "recipe.batch_size=1"], None),
        (["model=resnet18", "recipe=paper", "recipe.milestones=[2]", "epochs=2"], None),
        (["recipe=modern", "epochs=1"], None),
    ],
)
def test_a_learning_rate_that_never_changes_is_noted(tiny, overrides, note):
    assert [found for found in prepare(tiny(*overrides)).notes if "learning rate" in found] == ([note] if note else [])


def test_heads_that_cannot_be_drawn_are_noticed_before_training(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(ConfigError, match="matplotlib, which draws the heads, cannot be imported"):
        prepare(tiny("model=sa_quadratic"))
    prepare(tiny("model=conv3x3"))
