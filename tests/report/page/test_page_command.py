"""The page's command repeats a run."""

import shlex

import pytest

from attnconv.config import to_plain
from attnconv.report.page.command import command_of
from conftest import compose

pytestmark = pytest.mark.slow

WITHOUT_DEFAULTS = [  # choices whose files leave a setting to the command line
    ["model=sa_quadratic_copied", "model.start=outputs/other/weights.safetensors", "data.fraction=0.1"],
    ["model=sa_quadratic_pruned", "model.start=outputs/other/weights.safetensors"],
    ["model=timm", "model.timm_name=test_resnet", "scale=mini"],
    ["model=conv3x3", "data=arrays", "data.root=some/images"],
]


@pytest.mark.parametrize("overrides", [*WITHOUT_DEFAULTS, ["model=sa_learned", "recipe.lr=0.5", "seed=3"]])
def test_the_command_composes_the_same_configuration(overrides):
    config = to_plain(compose(overrides))
    python, script, *arguments = shlex.split(command_of(config))
    assert (python, script) == ("python", "train.py")
    assert to_plain(compose(arguments)) == config


def test_files_that_are_not_in_configs_are_named_and_their_settings_left_out():
    config = to_plain(compose(["model=sa_quadratic", "scale=mini", "scale.width=8", "scale.hidden=16", "recipe=modern",
                               "recipe.lr=0.5", "data=arrays", "data.root=some images", "seed=3"]))  # fmt: skip
    for group in ("scale", "recipe", "data"):
        config[group]["name"] = f"my_{group}"
    others = ["scale=my_scale", "recipe=my_recipe", "data=my_data", "seed=3", "epochs=20"]
    assert command_of(config).split() == ["python", "train.py", "model=sa_quadratic", *others]
    config["model"]["name"] = "my_model"
    assert command_of(config).split() == ["python", "train.py", "model=my_model", *others]
