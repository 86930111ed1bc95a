"""Invalid numbers, switches and lists."""

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from attnconv.config import freeze
from attnconv.errors import ConfigError
from attnconv.models.build import build_model
from attnconv.settings.composition import composed
from conftest import TINY_SCALE, compose

NUMBERS = [
    ("seed=99999999999999999999", "seed must be at most 9223372036854775807, not 99999999999999999999"),
    ("data.subset_seed=9223372036854775808", "data.subset_seed must be at most"),
    ("data.images_seed=9223372036854775808", "data.images_seed must be at most"),
    ("seed=-1", "seed must be at least 0, not -1"),
    ("recipe.lr=nan", "recipe.lr must be a finite number, not nan"),
    ("recipe.lr=inf", "recipe.lr must be a finite number, not inf"),
    ("recipe.lr=1e300", "recipe.lr must be at most 1e+30, not 1e+300"),
    ("recipe.lr_scale=1e-30", "recipe.lr=0.015 times recipe.lr_scale=1e-30 must be from 1e-30 to 1e+30"),
    ("recipe.weight_decay=1e30", "recipe.weight_decay must be at most 1000"),
    ("recipe.cutmix=1e-320", "recipe.cutmix must be 0 or at least 0.01, not 1e-320"),
    ("recipe.cutmix=1e-10", "recipe.cutmix must be 0 or at least 0.01, not 1e-10"),
    ("recipe.cutmix=-1", "recipe.cutmix must be 0 or at least 0.01, not -1.0"),
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
    ("recipe.milestones=[1,3]", "recipe.milestones must be at least 2, not 1"),
    ("recipe.milestones=[99999999999]", "recipe.milestones must be at most 2147483647"),
    ("data.mean=[0.5,nan,0.5]", "data.mean must be a finite number, not nan"),
    ("data.mean=[125.3,123,113.9]", "data.mean must be at most 1, not 125.3"),
    ("data.mean=[[0.5,0.5,0.5]]", "data.mean must be a number, not [0.5, 0.5, 0.5]"),
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
    ("conv3x3", "mixer.kernel_size=99", "model=conv3x3: kernel_size=99 must be at most 15 on 8x8"),
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


def refusal(model, override):
    """Return the error for one override, raised before the network uses memory."""
    config = composed([f"model={model}", *TINY_SCALE])
    parsed = OverridesParser.create().parse_override(override)
    OmegaConf.update(config, parsed.key_or_group, parsed.value())
    with pytest.raises(ConfigError) as caught, torch.device("meta"):
        build_model(freeze(config).model, (3, 32, 32), 10)
    return str(caught.value)


@pytest.mark.parametrize(("override", "complaint"), NUMBERS)
def test_invalid_numbers_in_settings_are_refused(override, complaint):
    assert refusal("sa_quadratic", override).startswith(complaint)


@pytest.mark.parametrize(("model", "override", "complaint"), MODEL_NUMBERS)
def test_invalid_numbers_in_model_settings_are_refused(model, override, complaint):
    assert refusal(model, f"model.{override}").startswith(complaint)


@pytest.mark.parametrize(
    "override", ["seed=99999999999999999999", "recipe.lr=inf", "model.mixer.encoding.spread_std=-1"]
)
def test_invalid_numbers_are_one_line_errors(refused, override):
    assert override.partition("=")[0] in refused(override)


def test_a_gate_may_be_an_integer():
    node = compose(["model=sa_gated", *TINY_SCALE, "scale.heads=4", "model.mixer.gate=1"]).model
    assert build_model(node, (3, 32, 32), 10).layers[0].mixer.gates.tolist() == [1.0] * 4
