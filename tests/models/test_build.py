"""Invalid `model` nodes: the error names the key and the expected value, before anything is built."""

import pytest
from omegaconf import OmegaConf

from attnconv.config import CONFIGS
from attnconv.errors import ConfigError
from attnconv.models.build import check_node
from attnconv.settings.composition import composed
from conftest import TINY_SCALE

DELETED = object()
WRONG = [
    ("sa_quadratic", "mixer", None, "model.mixer must have a _target_ (the class to build) and its arg"),
    ("sa_quadratic", "mixer", DELETED, "model.mixer is missing: attnconv.models.backbone.Backbone needs it"),
    ("sa_quadratic", "mixer", "conv", "model.mixer must have a _target_ (the class to build) and its arguments, not"),
    ("sa_quadratic", "mixer", [1], "model.mixer must have a _target_ (the class to build) and its arguments, not [1]"),
    ("sa_quadratic", "mixer", {"encoding": 5}, "model.mixer._partial_ must be true"),
    ("sa_quadratic", "mixer", {"_partial_": True}, "model.mixer has no _target_"),
    ("sa_quadratic", "mixer.encoding", None, "model.mixer.encoding must have a _target_"),
    ("sa_quadratic", "mixer.encoding", DELETED, "model.mixer.encoding is missing: attnconv.mixers.positional.Pos"),
    ("sa_quadratic", "mixer._partial_", False, "model.mixer._partial_ must be true"),
    ("sa_quadratic", "mixer._target_", 5, "model.mixer._target_=5 cannot be imported: a class is given by its dotted"),
    ("sa_quadratic", "mixer.encoding._target_", "nope", "model.mixer.encoding._target_=nope cannot be imported"),
    ("sa_quadratic", "mixer.window", 3, "model.mixer.window: attnconv.mixers.positional.PositionalAttention does not"),
    ("sa_quadratic", "width", {"a": 1}, "model.width must be a whole number, not {'a': 1}"),
    ("sa_quadratic_random", "mixer", None, "model.mixer must have a _target_"),
    ("sa_quadratic_random", "depth", 3, "model.depth: attnconv.models.frozen.frozen_heads does not have this argument"),
    ("random_attention", "mixer.pattern", "window", "model.mixer.pattern must have a _target_"),
    ("resnet18", "blocks", DELETED, "model.blocks is missing: attnconv.models.resnet.ResNet needs it"),
]


def node_of(model):
    node = OmegaConf.to_container(composed([f"model={model}", *TINY_SCALE[:1]]), resolve=True)["model"]
    check_node(node)
    return node


@pytest.mark.parametrize(("model", "key", "value", "complaint"), WRONG)
def test_errors_name_the_invalid_key(model, key, value, complaint):
    node = node_of(model)
    *parents, leaf = key.split(".")
    part = node
    for name in parents:
        part = part[name]
    part[leaf] = value
    if value is DELETED:
        del part[leaf]
    with pytest.raises(ConfigError) as caught:
        check_node(node)
    assert str(caught.value).startswith(complaint)


@pytest.mark.slow
def test_all_model_configs_pass_the_check():
    for path in CONFIGS.glob("model/*.yaml"):
        if path.stem not in ("timm", "sa_quadratic_copied", "sa_quadratic_pruned"):  # they need one more setting
            node_of(path.stem)
