"""Values of the wrong type, as in a YAML file, are refused with the name of the setting, never misread."""

import pickle

import pytest
from omegaconf import OmegaConf

from attnconv.config import SCHEMA, compose, flatten, freeze, to_plain
from attnconv.errors import ConfigError
from attnconv.settings.composition import composed
from conftest import TINY_SCALE

WRONG = [
    ("data.flip", 2, "data.flip=2 must be true or false: set data.flip=true or data.flip=false"),
    ("compile", None, "compile must not be null"),
    ("seed", True, "seed must be a whole number, not true"),
    ("seed", 1.0, "seed must be a whole number, not 1.0"),
    ("epochs", "3.5", "epochs must be a whole number, not '3.5'"),
    ("recipe.lr", True, "recipe.lr must be a number, not true"),
    ("recipe.lr", "fast", "recipe.lr must be a number, not 'fast'"),
    ("recipe.lr", "nan", "recipe.lr must be a finite number, not nan"),
    ("recipe.lr", {"peak": 1}, "recipe.lr must be a number, not {'peak': 1}"),
    ("name", True, "name must be text, not true; the text is name='\"true\"'"),
    ("device", None, "device must not be null"),
    ("recipe.milestones", 5, "recipe.milestones must be a list, such as recipe.milestones=[5], not 5"),
    ("recipe.milestones", [True], "recipe.milestones must be a whole number, not true"),
    ("data.mean", [None], "data.mean must not be null"),
]
RIGHT = [
    ("data.flip", "on", True),
    ("data.flip", "No", False),
    ("seed", "5", 5),  # as from ${oc.env:SEED}
    ("recipe.lr", 1, 1.0),
    ("recipe.milestones", ["2", 3], [2, 3]),
    ("data.mean", None, None),
    ("name", 2024, "2024"),
]


def composed_with(key, value):
    config = composed(TINY_SCALE[:1])
    OmegaConf.update(config, key, value, merge=False)
    return config


@pytest.mark.parametrize(("key", "value", "complaint"), WRONG)
def test_values_of_the_wrong_type_are_refused(key, value, complaint):
    with pytest.raises(ConfigError) as caught:
        freeze(composed_with(key, value))
    assert str(caught.value) == complaint


@pytest.mark.parametrize(("key", "value", "expected"), RIGHT)
def test_equivalent_values_are_converted_to_the_right_type(key, value, expected):
    found = OmegaConf.select(OmegaConf.structured(freeze(composed_with(key, value))), key)
    assert (found, type(found)) == (expected, type(found) if isinstance(expected, list) else type(expected))


def test_interpolation_uses_the_converted_value():
    config = composed_with("name", "lr_${recipe.lr}")
    config.recipe.lr = 1
    assert freeze(config).name == "lr_1.0"


def test_wrong_types_in_a_user_file_are_refused(refused, tmp_path):
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/mine.yaml").write_text("name: mine\nsource: arrays\nroot: ../arrays\nflip: 2\n")
    assert "data.flip=2 must be true or false" in refused("--config-dir", tmp_path / "own", "data=mine")


FILES = [
    ("seed: [1\n", "mine.yaml, line 3: expected ',' or ']'"),
    ("seed: 1\nseed: 2\n", "mine.yaml, line 3: found duplicate key seed"),
    ("recipe: 5\n", "error: experiment/mine.yaml: recipe must be settings and their values, not 5"),
    ("recipe: {milestones: {a: 1}}\n", "error: experiment/mine.yaml: it has a list where another file has settings"),
    ("data: null\n", "'data.root' cannot be set, because data holds no settings"),
    ("model: resnet18\n", "model must be settings and their values, not 'resnet18'"),
]


@pytest.mark.parametrize(("text", "complaint"), FILES)
def test_a_file_that_cannot_be_composed_is_a_one_line_error(refused, tmp_path, text, complaint):
    file = tmp_path / "own/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{text}")
    assert complaint in refused("--config-dir", tmp_path / "own", "experiment=mine")


def test_a_missing_package_line_or_wrong_encoding_is_a_one_line_error(refused, tmp_path):
    file = tmp_path / "own/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("seed: 1\n")
    arguments = ("--config-dir", tmp_path / "own", "experiment=mine")
    assert "mine.yaml: its first line must be # @package _global_" in refused(*arguments)
    file.write_text("\ufeff# @package _global_\nseed: 1\n")
    assert "# @package _global_, without a byte order mark before it" in refused(*arguments)
    (tmp_path / "own/scale").mkdir()
    (tmp_path / "own/scale/mine.yaml").write_text("defaults: [override /recipe: modern]\n")
    assert "scale/mine.yaml: its first line must be # @package" in refused(*arguments[:2], "scale=mine")
    file.write_bytes(b"\xff\xfes\0")
    assert "is not UTF-8 text" in refused(*arguments)


def test_unknown_nested_settings_are_refused(refused):
    assert "unknown setting 'recipe.milestones.a'" in refused("recipe.milestones.a=1")
    assert refused("model.foo=1") == "error: unknown setting 'model.foo'; python train.py --help lists them"


def test_the_schema_is_pickled_by_name():
    # Pickled by value, as joblib would do, it would break: a copy of dataclasses.MISSING marks nothing as missing.
    assert pickle.loads(pickle.dumps(SCHEMA)) is SCHEMA
    assert all(pickle.loads(pickle.dumps(type(part))) is type(part) for part in vars(SCHEMA(model={})).values())


TEXTS = [
    ("name=2026_11_29", "2026_11_29"),
    ("name=0.10", "0.10"),
    ("name=1e3", "1e3"),
    ("name=2024", "2024"),
    ("name='0.10'", "0.10"),
    ("name=lr_0.10", "lr_0.10"),
    (r"name=a\,0.50", "a,0.50"),
    ("output=2026_11_29", "2026_11_29"),
    ("model.name=1_0", "1_0"),
    ("logger.tags=[1_0,'2_0, 3_0',b]", ["1_0", "2_0, 3_0", "b"]),
]


@pytest.mark.parametrize(("override", "expected"), TEXTS)
def test_text_that_looks_like_a_number_stays_as_typed(override, expected):
    key, config = override.partition("=")[0], compose(["logger=wandb", override])
    assert flatten(to_plain(config))[key] == expected


def test_text_of_a_sweep_stays_as_typed(refused):
    assert "would share the folder outputs/0.10/" in refused("-m", "name=0.10,1e3", "seed=0,0")
    assert "would share the folder outputs/1e3/" in refused("-m", "+hydra.sweeper.params.name='1e3,0.10'", "seed=0,0")
