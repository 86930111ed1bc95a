"""Names must be single folder names; others are refused in one line, and nothing is written."""

import pytest

from attnconv.config import checked
from attnconv.errors import ConfigError, UserError
from conftest import compose

NAMES = [
    ("name=", "name is empty: it names a folder (an unset shell variable?)"),
    ("name=/tmp/elsewhere", "name='/tmp/elsewhere' must be a single folder name"),
    ("name=..", "name='..' is a folder name and must not start with a dot"),
    ("name=../../elsewhere", "must be a single folder name"),
    ("name=study/../../a", "must be a single folder name"),
    ("name=study/a", "must be a single folder name"),
    ("name=a/", "must be a single folder name"),
    ("name=.", "must not start with a dot"),
    ("name=.sweeps", "must not start with a dot"),
    ("name=' a'", "name=' a' starts or ends with a space"),
    ("name='a '", "starts or ends with a space"),
    ("name='a\tb'", r"name='a\tb' has characters that cannot be printed"),
    ("name='a\nb'", r"name='a\nb' has characters that cannot be printed"),
    ("name='a\0b'", r"name='a\x00b' has characters that cannot be printed"),
    ("name='a\udcffb'", "has bytes that are no text in this locale"),
    ("name=" + "a" * 256, "name has a name of 256 bytes; file systems take at most 255"),
    ("name='" + "ö" * 128 + "'", "256 bytes"),
    ("name='${data.root}'", "must be a single folder name"),
    ("model.name=../x", "model.name='../x' must be a single folder name"),
    ("model.name=", "model.name is empty"),
    ("~model.name", "~model.name: settings cannot be removed; set model.name=VALUE"),
    ("scale.name=a/b", "scale.name='a/b' must be a single folder name"),
    ("recipe.name=..", "recipe.name='..' is a folder name"),
    ("recipe.name=" + "a" * 252, "the run folder has a name of 258 bytes"),
    ("data.name=a/b", "data.name='a/b' must be a single folder name"),
    ("logger.project=../x", "logger.project='../x' must be a single folder name"),
    ("logger.project='a#?'", "logger.project='a#?' must not contain # ?"),
    (f"logger.project={'p' * 129}", "logger.project must have 1 to 128 characters; 'ppp"),
    ("logger.group=", "logger.group must have 1 to 128 characters; '' has 0"),
    ("logger.tags=[a,'']", "logger.tags must have 1 to 64 characters; '' has 0"),
    (f"logger.tags=[{'t' * 65}]", "logger.tags must have 1 to 64 characters; 'ttt"),
    ("output=", "output is empty"),
    ("output='a\0b'", "cannot be printed"),
    ("output=" + "a" * 300, "output has a name of 300 bytes"),
    ("output=" + "/abc" * 1000, "output leads to paths of"),
    ("collected=' '", "starts or ends with a space"),
    ("collected=", "collected is empty: set collected=VALUE"),
]
MODEL_NAMES = [
    (
        "model=timm model.timm_name=hf-hub:timm/resnet10t",
        "model.name='timm_hf-hub:timm/resnet10t' must be a single folder name",
    ),
    (
        "model=timm model.timm_name=resnet18.nonsense",
        "timm has no model 'resnet18.nonsense'; set model.timm_name=resnet18 or resnet18.",
    ),
    ("+model._convert_=foo", "model._convert_=foo is not one of none, partial, object, all"),
    ("hydra.searchpath=[/nowhere]", "hydra.searchpath=[/nowhere]: /nowhere is not a folder"),
]


@pytest.mark.parametrize(("override", "complaint"), NAMES)
def test_invalid_names_and_paths_are_refused(override, complaint):
    with pytest.raises(UserError) as refused:
        compose([override])
    assert complaint in str(refused.value)


OF_OTHERS = [
    (
        "model=sa_quadratic model.name=conv3x3",
        "conv3x3 is the name of another network, because model.mixer.",
    ),
    (
        "model=sa_quadratic model.mixer.encoding._target_=attnconv.mixers.encodings.GeneralizedQuadraticEncoding",
        "model.name=sa_quadratic is the name of another network, because model.mixer.encoding._target_ is",
    ),
    ("model=vit model.name=sa_quadratic", "is the name of another network, because model._target_ is"),
    ("model=resnet10 model.name=sa_quadratic_pruned", "pruned_heads: choose model=sa_quadratic_pruned, or set another"),
    ("scale=mini scale.name=paper", "scale.name=paper is the name of other settings: choose scale=paper"),
    ("recipe.name=paper", "recipe.name=paper is the name of other settings: choose recipe=paper"),
]


@pytest.mark.parametrize(("overrides", "complaint"), OF_OTHERS)
def test_results_cannot_bear_the_name_of_something_else(overrides, complaint):
    with pytest.raises(UserError) as refused:
        compose(overrides.split())
    assert complaint in str(refused.value)


def test_a_changed_model_may_keep_its_name_or_have_a_new_one():
    compose(["model=conv3x3", "model.mixer.kernel_size=5"])
    compose(["model=sa_quadratic", "model.name=mine", "scale=mini", "scale.name=mine"])
    compose(["recipe=paper", "recipe.name=paper"])


@pytest.mark.parametrize("override", ["name=", "name=../../elsewhere", "~model.name", "data.name=a/b", "output='a\0b'"])
def test_invalid_names_are_one_line_errors_and_write_nothing(refused, override):
    assert dict(NAMES)[override] in refused(override)


@pytest.mark.parametrize(("overrides", "complaint"), MODEL_NAMES)
def test_a_model_name_with_a_slash_is_refused(refused, overrides, complaint):
    assert complaint in refused(*overrides.split())


def test_a_recipe_file_cannot_set_a_path_as_its_name(refused, tmp_path):
    (tmp_path / "more/recipe").mkdir(parents=True)
    (tmp_path / "more/recipe/mine.yaml").write_text("# @package _global_\nrecipe: {name: ../../elsewhere}\n")
    assert "recipe.name='../../elsewhere' must be a single folder name" in refused(
        "recipe=mine", f"--config-dir={tmp_path}/more"
    )


@pytest.mark.parametrize("name", ["größe", "a b", "lr=0.1", "a..b", "ö" * 127])
def test_unusual_but_valid_names_are_accepted(name):
    assert compose([f"name='{name}'"]).name == name


def test_text_that_begins_the_name_of_another_setting_is_refused():
    config = compose(["logger=none"])
    config.logger.notes = "cost ${5"
    with pytest.raises(ConfigError, match=r"logger\.notes='cost \$\{5': text cannot contain \$\{, which refers"):
        checked(config)
