"""Bad input, as the command meets it: one line, exit code 2, and nothing written."""

import subprocess
from functools import cache

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attnconv.config import CONFIGS, freeze, register_schema
from attnconv.errors import ConfigError, OutOfMemory
from attnconv.models.build import build_model
from attnconv.settings.contradictions import require_effect
from attnconv.training.setup import prepare
from conftest import PYTHON, TINY_SCALE, compose, write_arrays


@pytest.fixture
def refused(train, tmp_path):
    """A function: overrides -> the one line with which `python train.py` refuses them, writing nothing."""

    def run(*overrides):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = train(*overrides)
        assert (code, out) == (2, ""), err
        (error,) = err.splitlines()
        assert error.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


NAMES = [
    ("name=", "name is empty: it names a folder (an unset shell variable?)"),
    ("name=/tmp/elsewhere", "name='/tmp/elsewhere' is a path, and it names one folder"),
    ("name=..", "name='..' names a folder, and must not start with a dot"),
    ("name=../../elsewhere", "is a path"),
    ("name=study/../../a", "is a path"),
    ("name=study/a", "is a path"),
    ("name=a/", "is a path"),
    ("name=.", "must not start with a dot"),
    ("name=.sweeps", "must not start with a dot"),
    ("name=' a'", "name=' a' starts or ends with a space"),
    ("name='a '", "starts or ends with a space"),
    ("name='a\tb'", r"name='a\tb' has characters that cannot be printed"),
    ("name='a\nb'", r"name='a\nb' has characters that cannot be printed"),
    ("name='a\0b'", r"name='a\x00b' has characters that cannot be printed"),
    ("name='a\udcffb'", "has characters that cannot be printed"),
    ("name=" + "a" * 256, "name has a name of 256 bytes; file systems take at most 255"),
    ("name='" + "ö" * 128 + "'", "256 bytes"),
    ("name='${data.root}'", "is a path"),
    ("model.name=../x", "model.name='../x' is a path"),
    ("model.name=", "model.name is empty"),
    ("~model.name", "model.name is empty"),
    ("scale.name=a/b", "scale.name='a/b' is a path"),
    ("recipe.name=..", "recipe.name='..' names a folder"),
    ("recipe.name=" + "a" * 252, "the run folder has a name of 257 bytes"),
    ("data.name=a/b", "data.name='a/b' is a path"),
    ("logger.project=../x", "logger.project='../x' is a path"),
    ("output=", "output is empty"),
    ("output='a\0b'", "cannot be printed"),
    ("output=" + "a" * 300, "output has a name of 300 bytes"),
    ("output=" + "/abc" * 1000, "output leads to paths of"),
    ("collected=' '", "starts or ends with a space"),
]
MODEL_NAMES = [
    ("model=timm model.timm_name=hf-hub:timm/resnet10t", "model.name='timm_hf-hub:timm/resnet10t' is a path")
]


@pytest.mark.parametrize(("override", "complaint"), NAMES)
def test_a_name_is_one_folder_and_nothing_is_written_elsewhere(refused, override, complaint):
    assert complaint in refused(override)


@pytest.mark.parametrize(("overrides", "complaint"), MODEL_NAMES)
def test_a_model_named_by_a_path_is_refused(refused, overrides, complaint):
    assert complaint in refused(*overrides.split())


def test_a_recipe_file_cannot_lead_elsewhere_either(refused, tmp_path):
    (tmp_path / "more/recipe").mkdir(parents=True)
    (tmp_path / "more/recipe/mine.yaml").write_text("# @package _global_\nrecipe: {name: ../../elsewhere}\n")
    assert "recipe.name='../../elsewhere' is a path" in refused("recipe=mine", f"--config-dir={tmp_path}/more")


@pytest.mark.parametrize("name", ["größe", "a b", "lr=0.1", "a..b", "ö" * 127])
def test_other_names_are_folders(name):
    assert compose([f"name='{name}'"]).name == name


NUMBERS = [
    ("seed=99999999999999999999", "seed must be at most 9223372036854775807, not 99999999999999999999"),
    ("data.subset_seed=9223372036854775808", "data.subset_seed must be at most"),
    ("data.images_seed=9223372036854775808", "data.images_seed must be at most"),
    ("seed=-1", "seed must be at least 0, not -1"),
    ("recipe.lr=nan", "recipe.lr must be a finite number, not nan"),
    ("recipe.lr=inf", "recipe.lr must be a finite number, not inf"),
    ("recipe.lr=1e300", "recipe.lr must be at most 1e+30, not 1e+300"),
    ("recipe.weight_decay=1e30", "recipe.weight_decay must be at most 1000"),
    ("recipe.decay_factor=inf", "recipe.decay_factor must be a finite number"),
    ("checkpoint_minutes=nan", "checkpoint_minutes must be a finite number, not nan"),
    ("checkpoint_minutes=-inf", "checkpoint_minutes must be a finite number, not -inf"),
    ("checkpoint_steps=99999999999", "checkpoint_steps must be at most 2147483647"),
    ("epochs=1000000001", "epochs must be at most 1000000, not 1000000001"),
    ("eval_every=99999999999", "eval_every must be at most 2147483647"),
    ("eval_batch_size=99999999999", "eval_batch_size must be at most 2147483647"),
    ("recipe.batch_size=99999999999", "recipe.batch_size must be at most 2147483647"),
    ("scale.width=99999999999", "scale.width must be at most 1048576"),
    ("scale.layers=100000000", "scale.layers must be at most 1000, not 100000000"),
    ("scale.center_std=nan", "scale.center_std must be a finite number"),
    ("data.crop_padding=99999", "data.crop_padding must be at most 4096"),
    ("data.fraction=nan", "data.fraction must be a finite number, not nan"),
    ("recipe.sizes=[0.5,nan]", "recipe.sizes must be a finite number, not nan"),
    ("recipe.sizes=[0,1]", "recipe.sizes must be above 0, not 0.0"),
    ("recipe.sizes=[1000]", "recipe.sizes must be at most 16, not 1000.0"),
    ("recipe.milestones=[-5,3]", "recipe.milestones must be at least 1, not -5"),
    ("recipe.milestones=[99999999999]", "recipe.milestones must be at most 2147483647"),
    ("data.mean=[0.5,nan,0.5]", "data.mean must be a finite number, not nan"),
    ("data.mean=[125.3,123,113.9]", "data.mean must be at most 1, not 125.3"),
    ("data.std=[0.2,0.2,0]", "data.std must be above 0, not 0.0"),
    ("data.std=[0.2,0.2,-1]", "data.std must be above 0, not -1.0"),
    ("data.std=[0.2,0.2,inf]", "data.std must be a finite number, not inf"),
    ("model.width=-4", "model.width must be at least 1, not -4"),
    ("model.layers=0", "model.layers must be at least 1, not 0"),
    ("model.layers=1.5", "model.layers must be a whole number, not 1.5"),
    ("model.layers=true", "model.layers must be a number, not True"),
    ("model.layers=many", "model.layers must be a number, not 'many'"),
    ("model.heads=99999999999", "model.heads must be at most 1000"),
    ("model.dropout=nan", "model.dropout must be a finite number, not nan"),
    ("model.attention_dropout=2", "model.attention_dropout must be below 1, not 2"),
    ("model.mixer.normalizer=3", "model.mixer.normalizer must be a word, not 3"),
    ("model.mixer.encoding.center_std=-1", "model.mixer.encoding.center_std must be above 0, not -1"),
    ("model.mixer.encoding.spread_std=-1", "model.mixer.encoding.spread_std must be at least 0, not -1"),
]
MODEL_NUMBERS = [
    ("resnet18", "width=0", "model.width must be at least 1, not 0"),
    ("resnet18", "width=nan", "model.width must be a finite number, not nan"),
    ("resnet18", "blocks=[2,0]", "model.blocks must be at least 1, not 0"),
    ("resnet18", "blocks=3", "model.blocks must be a list, not 3"),
    ("resnet18", "blocks=[1000000000]", "model.blocks must be at most 1000"),
    ("se_resnet18", "squeeze_reduction=0", "model.squeeze_reduction must be at least 1, not 0"),
    ("vit", "patch=0", "model.patch must be at least 1, not 0"),
    ("conv3x3", "mixer.kernel_size=nan", "model.mixer.kernel_size must be a finite number, not nan"),
    ("conv3x3", "mixer.kernel_size=0", "model.mixer.kernel_size must be at least 1, not 0"),
    ("conv3x3", "mixer.kernel_size=-1", "model.mixer.kernel_size must be at least 1, not -1"),
    ("conv3x3", "mixer.kernel_size=2", "model=conv3x3: kernel_size must be odd and at least 1, not 2"),
    ("conv3x3", "mixer.kernel_size=99", "model=conv3x3: kernel_size=99 is larger than the map"),
    ("conv3x3", "mixer.kernel_size=99999999999", "model.mixer.kernel_size must be at most 4095"),
    ("conv3x3", "mixer.kernel_size=big", "model.mixer.kernel_size must be a number, not 'big'"),
    ("conv3x3", "mixer.kernel_size=null", "model.mixer.kernel_size must be a whole number, not None"),
    ("sa_gated", "mixer.alpha=-1", "model.mixer.alpha must be above 0, not -1"),
    ("sa_gated", "mixer.alpha=nan", "model.mixer.alpha must be a finite number, not nan"),
    ("sa_gated", "mixer.gate=inf", "model.mixer.gate must be a finite number, not inf"),
    ("sa_gated", "mixer.gate=true", "model.mixer.gate must be a number, not True"),
    ("mlp_mixer", "mixer.hidden=0", "model.mixer.hidden must be at least 1, not 0"),
    ("sa_distance", "mixer.encoding.hidden=0", "model.mixer.encoding.hidden must be at least 1, not 0"),
    ("sa_sinusoidal", "mixer.encoding.base=0", "model.mixer.encoding.base must be above 0, not 0"),
    ("random_attention", "mixer.pattern.density=0", "model.mixer.pattern.density must be above 0, not 0"),
    ("random_attention", "mixer.pattern.density=1.5", "model.mixer.pattern.density must be at most 1, not 1.5"),
    ("random_attention", "mixer.pattern.seed=-1", "model.mixer.pattern.seed must be at least 0, not -1"),
    ("global_attention", "mixer.pattern.count=0", "model.mixer.pattern.count must be at least 1, not 0"),
    ("involution", "mixer.group_width=0", "model.mixer.group_width must be at least 1, not 0"),
]


@cache
def composed(model):
    """The configuration of a model, not frozen yet."""
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose("config", [f"model={model}", *TINY_SCALE])


def refusal(model, override):
    """The message with which a configuration with one override is refused before its network has any memory."""
    config = composed(model).copy()
    parsed = OverridesParser.create().parse_override(override)
    OmegaConf.update(config, parsed.key_or_group, parsed.value())
    with pytest.raises(ConfigError) as caught, torch.device("meta"):
        build_model(freeze(config).model, (3, 32, 32), 10)
    return str(caught.value)


@pytest.mark.parametrize(("override", "complaint"), NUMBERS)
def test_a_number_that_the_setting_cannot_take_is_refused(override, complaint):
    assert refusal("sa_quadratic", override).startswith(complaint)


@pytest.mark.parametrize(("model", "override", "complaint"), MODEL_NUMBERS)
def test_a_number_that_the_model_cannot_take_is_refused(model, override, complaint):
    assert refusal(model, f"model.{override}").startswith(complaint)


@pytest.mark.parametrize(
    "override", ["seed=99999999999999999999", "recipe.lr=inf", "model.mixer.encoding.spread_std=-1"]
)
def test_such_a_number_is_one_line(refused, override):
    assert override.partition("=")[0] in refused(override)


def test_a_gate_may_be_a_whole_number():
    node = compose(["model=sa_gated", *TINY_SCALE, "scale.heads=4", "model.mixer.gate=1"]).model
    assert build_model(node, (3, 32, 32), 10).layers[0].mixer.gates.tolist() == [1.0] * 4


def test_what_needs_nothing_loaded_is_refused_before_torch_is_imported():
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


IDLE = [
    ("eval_mirrored=true data.flip=false", "eval_mirrored=true does nothing: data.flip=false"),
    ("data.alternating_flip=true data.flip=false", "data.alternating_flip=true does nothing: data.flip=false"),
    ("data.padding_mode=reflect data.crop_padding=0", "data.padding_mode=reflect does nothing: data.crop_padding=0"),
    ("data.distance=12", "data.distance=12 does nothing: it is of pairs, and this is data=arrays"),
    ("recipe.milestones=[5]", "recipe.milestones=[5] does nothing: recipe.schedule=linear"),
    ("recipe.milestones=[5,9] recipe.schedule=step epochs=8", "not all of it: training ends at epochs=8"),
    ("recipe.decay_factor=2", "recipe.decay_factor=2 does nothing: recipe.schedule=linear"),
    ("recipe.decay_factor=2 recipe.schedule=step", "recipe.milestones=[]"),
    ("recipe.warmup=0.2 recipe.schedule=step", "recipe.warmup=0.2 does nothing: recipe.schedule=step"),
    ("recipe.lr_changes=epoch recipe.schedule=step", "recipe.lr_changes=epoch does nothing"),
    ("recipe.adamw_lr=0.1 recipe.optimizer=sgd", "recipe.adamw_lr=0.1 does nothing: recipe.optimizer=sgd"),
    ("recipe.momentum=0.5 recipe.optimizer=adamw", "recipe.momentum=0.5 does nothing: recipe.optimizer=adamw"),
    ("recipe.cropped_from=0.5", "recipe.cropped_from=0.5 does nothing: no size of recipe.sizes=[]"),
    ("recipe.cropped_from=0.9 recipe.sizes=[0.5,0.75]", "recipe.cropped_from=0.9 does nothing"),
    ("recipe.centers_lr=0.1 model=conv3x3", "does nothing: model=conv3x3 has no Gaussian heads to train"),
    ("recipe.centers_lr=0.1 model=sa_quadratic_random", "model=sa_quadratic_random has no Gaussian heads to train"),
    ("match_model=resnet10", "match_model=resnet10 does nothing: match is null"),
]


@pytest.mark.parametrize(("overrides", "complaint"), IDLE)
def test_a_setting_that_would_do_nothing_is_refused(overrides, complaint):
    with pytest.raises(ConfigError) as caught:
        compose([*TINY_SCALE, "data=arrays", "data.root=somewhere", *overrides.split()])
    assert complaint in str(caught.value)


@pytest.mark.parametrize("overrides", ["eval_mirrored=true data.flip=false", "recipe.milestones=[5,3]"])
def test_a_contradiction_is_one_line(refused, overrides):
    assert overrides.partition("=")[0] in refused(*overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "recipe=speedrun data=digits",  # brings eval_mirrored and alternating flips, which digits have no use for
        "recipe=modern model=conv3x3",  # brings centers_lr
        "recipe=paper model=resnet18 recipe.schedule=cosine",  # brings milestones
        "eval_mirrored=false data.flip=false",
        "recipe.centers_lr=0.1 model=sa_gated",
        "recipe.milestones=[2,4] recipe.schedule=step",
    ],
)
def test_what_a_file_brings_or_what_has_an_effect_is_accepted(overrides):
    compose([*TINY_SCALE, *overrides.split()])


@pytest.mark.parametrize(("override", "fine"), [("recipe.centers_lr=0.1", True), ("recipe.momentum=0.5", False)])
def test_in_a_sweep_an_override_has_to_do_something_in_one_cell(override, fine):
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
        with pytest.raises(ConfigError, match="does nothing"):
            require_effect(cells)


def test_a_sweep_refuses_a_setting_without_effect_before_anything_is_run(refused):
    assert "eval_mirrored=True does nothing" in refused("-m", "eval_mirrored=true", "data.flip=false")


def test_a_batch_of_more_images_than_there_are_is_refused_where_it_was_asked_for(refused):
    assert "more than the 40 training images of an epoch; at most recipe.batch_size=40" in refused(
        "recipe.batch_size=100000"
    )


def test_a_batch_that_a_recipe_makes_too_large_is_said(tiny, capsys):
    prepare(tiny("recipe.batch_size=128"))
    assert "note: recipe.batch_size=128 is more than the 40 training images of an epoch" in capsys.readouterr().err


def test_a_last_batch_of_one_image_is_refused_where_batch_norm_cannot_take_it(tiny):
    config = tiny("model=resnet10", "recipe.batch_size=39")  # 8 x 8 pixels become one at the last stage
    with pytest.raises(ConfigError, match=r"last batch of one image \(40 images .*=39\); recipe.batch_size=38 leaves"):
        prepare(config)
    prepare(tiny("model=resnet10", "recipe.batch_size=38"))
    prepare(tiny("model=sa_quadratic", "recipe.batch_size=39"))
    with pytest.raises(ConfigError, match=r"recipe.batch_size=2 leaves none"):
        prepare(tiny("model=resnet10", "recipe.batch_size=1"))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("scale.width=1000000", r"parameters, which need .* GiB of memory, and this machine has .*scale.width=1000000"),
        ("model=resnet18 scale.cnn_width=1000000", r"lower scale.cnn_width=1000000"),
        ("data=pairs data.train_images=1000000000", r"lower data.train_images=1000000000, data.test_images=2000"),
    ],
)
def test_what_the_machine_has_no_memory_for_is_refused_before_it_is_made(tiny, overrides, complaint):
    with pytest.raises(OutOfMemory, match=complaint):
        prepare(tiny(*overrides.split()))


def test_padding_that_the_machine_has_no_memory_for_is_refused(tiny, tmp_path):
    write_arrays(tmp_path / "arrays", train=2000)
    with pytest.raises(OutOfMemory, match=r"padded images need .*lower data.crop_padding=4096"):
        prepare(tiny("data.crop_padding=4096"))


def cifar10(folder):
    """A folder that looks like CIFAR-10's, with nothing in its files."""
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(b"")


def test_data_a_level_off_is_named(tmp_path, refused):
    cifar10(tmp_path / "home/c10/cifar-10-batches-py")
    source = "data=cifar10"
    found = refused(source, f"data.root={tmp_path}/home/c10/cifar-10-batches-py")
    assert f"but a level up; say data.root={tmp_path}/home/c10" in found
    assert f"a level down; say data.root={tmp_path}/home/c10" in refused(source, f"data.root={tmp_path}/home")


@pytest.mark.parametrize(
    ("source", "place", "complaint"),
    [
        ("arrays", "arrays/train_images.npy", "is a file; say data.root="),
        ("arrays", "nowhere", "there is no folder"),
        ("arrays", ".", "a level down; say data.root="),
        ("arrays", "''", "data.root is empty"),
        ("cifar10", "c10/cifar-10-python.tar.gz", "is a file; say data.root="),
        ("cifar10", "partly", "is damaged: data_batch_1, data_batch_2"),
        ("cifar10", "renamed", "move them into cifar-10-batches-py/"),
        ("cifar10", "broken", "is damaged: its md5 is not"),
    ],
)
def test_absent_misplaced_and_damaged_data_are_different_things(tmp_path, refused, source, place, complaint):
    cifar10(tmp_path / "renamed")
    cifar10(tmp_path / "partly/cifar-10-batches-py")
    for folder in ("c10", "broken"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cifar-10-python.tar.gz").write_bytes(b"half")
    root = place if place == "''" else tmp_path / place
    assert complaint in refused(f"data={source}", f"data.root={root}")


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_a_dashboard_that_is_switched_off_claims_no_folder(train, tmp_path, monkeypatch, variable, value):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(variable, value)
    code, out, err = train("logger=wandb", "output=there")
    assert code == 0, err
    assert "W&B: disabled" in out
    assert "sync" not in out
    assert "warning" not in err
    assert not [path for path in (tmp_path / "here").rglob("*") if "wandb" in path.name]
