"""Which parameter gets which optimiser, learning rate and weight decay."""

import pytest
import torch
from timm.optim.muon import Muon

from attnconv.config import compose
from attnconv.models.build import build_model
from attnconv.training.optimizers import build_optimizer

SMALL = ["scale.layers=1", "scale.width=8", "scale.hidden=8", "scale.cnn_width=2"]


def groups(*overrides):
    """{parameter name: its group} for a small model."""
    config = compose([*overrides, *SMALL])
    model = build_model(config.model, (3, 32, 32), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config.recipe)
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert sorted(found) == sorted(names.values()), "every parameter is trained, once"
    return found, optimizer


@pytest.mark.parametrize("model", ["sa_quadratic", "sa_quadratic_generalized"])
def test_paper_recipe_decays_everything_but_centers_and_spreads(model):
    found, optimizer = groups(f"model={model}")
    assert isinstance(optimizer, torch.optim.SGD)
    for name, group in found.items():
        spared = name.endswith(("centers", "spreads"))
        assert group["weight_decay"] == (0.0 if spared else 1e-4), name
        assert (group["lr"], group["momentum"]) == (0.1, 0.9)


def test_modern_recipe_gives_muon_the_matrices_between_stem_and_head():
    found, _ = groups("recipe=modern", "model=sa_learned")
    muon = {name for name, group in found.items() if group["use_muon"]}
    assert muon == {f"layers.0.{part}.weight" for part in ("mixer.value", "projection", "expand", "contract")}
    for name, group in found.items():
        if name.endswith(("bias", "norm.weight")):
            assert group["weight_decay"] == 0.0, name


@pytest.mark.parametrize("model", ["conv3x3", "resnet18"])
def test_muon_takes_convolution_kernels(model):
    found, optimizer = groups("recipe=modern", f"model={model}", "scale=mini")
    assert any(group["use_muon"] for name, group in found.items() if "conv" in name)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    before = [parameter.clone() for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.step()
    after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_centers_and_spreads_can_have_their_own_learning_rate():
    found, _ = groups("recipe=modern", "recipe.centers_lr=0.5")
    rates = {name: group["initial_lr"] for name, group in found.items()}
    assert {name for name, rate in rates.items() if rate == 0.5} == {
        f"layers.0.mixer.encoding.{name}" for name in ("centers", "spreads")
    }


@pytest.mark.parametrize("model", ["sa_quadratic", "resnet10"])
def test_batched_muon_equals_timms_matrix_by_matrix(model):
    def trained(step):
        torch.manual_seed(0)
        config = compose(["recipe=modern", "scale=mini", f"model={model}", *SMALL, "scale.layers=2"])
        network = build_model(config.model, (3, 32, 32), 10)
        optimizer = build_optimizer(network, config.recipe)
        for _ in range(3):
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            step(optimizer)
        return optimizer, network.state_dict()

    batched, ours = trained(lambda optimizer: optimizer.step())
    alone, theirs = trained(Muon.step)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=1e-6), name
    # A checkpoint of either is one of the other.
    batched.load_state_dict(alone.state_dict())
    states = zip(batched.state_dict()["state"].values(), alone.state_dict()["state"].values(), strict=True)
    assert all(mine.keys() == other.keys() for mine, other in states)
