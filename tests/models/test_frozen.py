"""Frozen heads: their positions, that training does not move them, and that all else is as with learned heads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnconv.errors import ConfigError
from attnconv.files import FileError
from attnconv.models.build import build_model
from attnconv.models.cost import parameters
from attnconv.models.frozen import learned_heads
from attnconv.run import run
from attnconv.runs.folder import RunFolder
from attnconv.training.optimizers import build_optimizer
from conftest import compose

pytestmark = pytest.mark.slow  # building networks takes seconds

TINY = ["scale=mini", "scale.layers=2", "scale.width=8", "scale.hidden=8"]


def build(model, *overrides, seed=0):
    torch.manual_seed(seed)
    return build_model(compose([*TINY, f"model={model}", *overrides]).model, (3, 32, 32), 10)


def heads(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith(("centers", "spreads"))}


@pytest.mark.parametrize("recipe", ["modern", "paper"])
@pytest.mark.parametrize("model", ["sa_quadratic_shifts", "sa_quadratic_random"])
def test_training_changes_everything_except_frozen_heads(tiny, model, recipe):
    config = tiny(f"model={model}", f"recipe={recipe}", "scale.heads=9", "epochs=2")
    torch.manual_seed(config.seed)
    before = build_model(config.model, (3, 8, 8), 4).state_dict()
    run(config)
    after = load_file(RunFolder(config).weights)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.endswith(("centers", "spreads")), name


@pytest.mark.parametrize("recipe", ["modern", "paper", "modern optimizer"])
def test_optimizers_exclude_exactly_the_frozen_heads(recipe):
    recipe, *adamw = recipe.split()
    overrides = [f"recipe={recipe}", *(["recipe.optimizer=adamw"] if adamw else [])]
    config = compose([*TINY, "model=sa_quadratic_shifts", *overrides])
    model = build_model(config.model, (3, 32, 32), 10)
    taken = {id(it) for group in build_optimizer(model, config.recipe, "fp32").param_groups for it in group["params"]}
    left = {name for name, parameter in model.named_parameters() if id(parameter) not in taken}
    assert left == heads(model).keys()


def test_networks_with_the_same_seed_differ_only_in_their_heads():
    learned, shifts, drawn = (build(name) for name in ("sa_quadratic", "sa_quadratic_shifts", "sa_quadratic_random"))
    assert parameters(learned) == parameters(shifts) == parameters(drawn)
    for name, tensor in learned.state_dict().items():
        assert torch.equal(tensor, drawn.state_dict()[name])
        assert torch.equal(tensor, shifts.state_dict()[name]) == (name not in heads(learned)), name


def test_heads_on_the_shifts_put_99_percent_of_attention_on_their_taps():
    model = build("sa_quadratic_shifts")
    for layer in model.layers:
        probs = layer.mixer.attention_probs(8, 8)[0, :, 27].reshape(9, 8, 8)
        assert layer.mixer.encoding.centers.tolist() == [[r, c] for r in (-1, 0, 1) for c in (-1, 0, 1)]
        taps = probs[:, 2:5, 2:5].reshape(9, 9)
        assert (taps.diagonal() > 0.99).all()


def test_heads_on_the_shifts_have_the_configured_spread():
    model = build("sa_quadratic_shifts", "model.spread=2.5")
    assert {spread for layer in model.layers for spread in layer.mixer.encoding.spreads.tolist()} == {2.5}


@pytest.mark.parametrize("count", [4, 8, 16])
def test_shifts_require_an_odd_square_number_of_heads(count):
    with pytest.raises(ConfigError, match="square number"):
        build("sa_quadratic_shifts", f"scale.heads={count}")
    build("sa_quadratic_shifts", "scale.heads=25")


def test_copied_heads_equal_those_of_the_source_run(tiny):
    learned = tiny("model=sa_quadratic", "seed=1")
    run(learned)
    weights = RunFolder(learned).weights
    copied = tiny("model=sa_quadratic_copied", f"model.start={weights}", "seed=0")
    run(copied)
    source, ours = load_file(weights), load_file(RunFolder(copied).weights)
    for name, tensor in source.items():
        assert torch.equal(tensor, ours[name]) == name.endswith(("centers", "spreads")), name
    assert not torch.equal(source["layers.0.mixer.encoding.centers"], source["layers.1.mixer.encoding.centers"])


def test_heads_are_copied_from_external_weight_files(tmp_path):
    state = build("sa_quadratic", seed=1).state_dict()
    torch.save({"state_dict": {f"module.{name}": it for name, it in state.items()}}, tmp_path / "outside.pth")
    ours = heads(build("sa_quadratic_copied", f"model.start={tmp_path}/outside.pth"))
    assert all(torch.equal(ours[name], state[name]) for name in ours)


def test_copying_incompatible_heads_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"

    def complaint(*overrides):
        with pytest.raises(ConfigError) as caught:
            build("sa_quadratic_copied", f"model.start={path}", *overrides)
        return str(caught.value)

    assert f"start={path} is not a file" in complaint()
    for model, *overrides in (["sa_learned"], ["sa_quadratic", "scale.layers=3"], ["sa_quadratic", "scale.heads=4"]):
        save_file(build(model, *overrides).state_dict(), path)
        assert f"start={path} does not hold the quadratic heads of this network" in complaint()
    assert "only quadratic encodings can be frozen" in complaint(
        "model.mixer.encoding._target_=attnconv.mixers.encodings.GeneralizedQuadraticEncoding", "model.name=mine"
    )


def test_misspelled_start_is_reported_as_a_missing_file():
    with pytest.raises(ConfigError, match="start=shift is not a file; use shifts, random"):
        build("sa_quadratic_random", "model.start=shift")


def test_unknown_arguments_are_refused():
    node = {**compose([*TINY, "model=sa_quadratic_shifts"]).model, "widht": 8}
    with pytest.raises(ConfigError, match="widht"):
        build_model(node, (3, 32, 32), 10)


def test_copied_heads_must_be_finite(tmp_path):
    for value in (torch.nan, torch.inf):
        tensors = {"layers.0.mixer.encoding.centers": torch.full((3, 2), value)}
        save_file(tensors, tmp_path / "weights.safetensors")
        with pytest.raises(FileError, match=r"weights\.safetensors has nan or inf in .*centers"):
            learned_heads(tmp_path / "weights.safetensors")
