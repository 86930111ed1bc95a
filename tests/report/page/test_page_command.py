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
