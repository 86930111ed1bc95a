"""Invalid `model` nodes: the error names the key and the expected value, before anything is built."""

from collections.abc import Callable, Sequence

import pytest
from omegaconf import OmegaConf
from torch import nn

from attnconv.config import CONFIGS
from attnconv.errors import ConfigError
from attnconv.models.build import build_model, check_node
from attnconv.settings.composition import composed
from conftest import TINY_SCALE

DELETED = object()
WRONG = [
    ("sa_quadratic", "mixer", None, "model.mixer must have a _target_ (the class to build) and its arg"),
    ("sa_quadratic", "mixer", DELETED, "model.mixer is missing: attnconv.models.backbone.Backbone needs it"),
    ("sa_quadratic", "mixer", "conv", "model.mixer must have a _target_ (the class to build) and its arguments, not"),
    ("sa_quadratic", "mixer", [1], "model.mixer must have a _target_ (the class to build) and its arguments, not [1]"),
    ("sa_quadratic", "mixer", {"encoding": 5}, "model.mixer must have a _target_ (the class to build)"),
    ("sa_quadratic", "mixer", {"_partial_": True}, "model.mixer must have a _target_ (the class to build)"),
    ("sa_quadratic", "classes", 10, "model.classes=10 cannot be set: it comes from the data"),
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


class Own(nn.Module):
    """A network whose arguments have annotations of all kinds."""

    def __init__(
        self,
        image_shape,
        classes,
        name,
        sizes: [int, int] = (1, 2),
        bare: Sequence = (),
        options: dict | None = None,
        act: str | Callable = "relu",
        depth: int = None,  # noqa: RUF013
        rate: float = "auto",
        body: nn.Module | None = None,
    ):
        super().__init__()
        self.given = name, list(sizes), list(bare), options, act, depth, rate, body


def test_own_arguments_of_all_kinds_are_accepted():
    body = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU"}]}
    given = {"sizes": [3, 4], "bare": [1], "options": {"a": 1}, "act": "gelu", "depth": None, "rate": "auto"}
    model = build_model({"name": "x", "_target_": f"{__name__}.Own", **given, "body": body}, (3, 8, 8), 4)
    assert model.given[:-1] == ("x", *given.values())
    assert isinstance(model.given[-1][0], nn.ReLU)


@pytest.mark.slow
def test_all_model_configs_pass_the_check():
    for path in CONFIGS.glob("model/*.yaml"):
        if path.stem not in ("timm", "sa_quadratic_copied", "sa_quadratic_pruned"):  # they need one more setting
            node_of(path.stem)
