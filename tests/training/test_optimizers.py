"""Parameter groups of each optimizer, and learning rates by step, against timm, PyTorch and the published rates."""

import copy
import itertools
import json
import math
import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import muon as timm_muon
from torch import nn

from attnconv.models.build import build_model
from attnconv.training.optimizers import build_optimizer, lr_factor, orthogonalize
from conftest import compose

SMALL = ["scale.layers=1", "scale.width=8", "scale.hidden=8", "scale.cnn_width=2"]


def groups(*overrides):
    """Return {parameter name: its group} for a small model, and the optimizer."""
    config = compose([*overrides, *SMALL])
    model = build_model(config.model, (3, 32, 32), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, config.recipe, "fp32")
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


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_sgd_uses_classical_momentum_and_adds_weight_decay_to_the_gradient(momentum, decay):
    """v = momentum v + gradient + decay w, then w = w - lr v, three times by hand: no Nesterov, no dampening."""
    config = compose([f"recipe.momentum={momentum}", f"recipe.weight_decay={decay}", "recipe.lr=0.3"])
    layer = nn.Linear(3, 2).double()
    weight, velocity = layer.weight.detach().clone(), torch.zeros(2, 3, dtype=torch.float64)
    optimizer = build_optimizer(layer, config.recipe, "fp32")
    for _ in range(3):
        gradient = torch.randn(2, 3, dtype=torch.float64)
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(2, dtype=torch.float64)
        optimizer.step()
        velocity = momentum * velocity + gradient + decay * weight
        weight = weight - 0.3 * velocity
        torch.testing.assert_close(layer.weight, weight, check_dtype=True)


@pytest.mark.parametrize(
    ("name", "ends"),
    [("resnet18", {"conv1", "fc"}), ("mobilenetv3_small_050", {"conv_stem", "classifier"}),
     ("vit_tiny_patch16_224", {"patch_embed.proj", "head"})],
)  # fmt: skip
def test_muon_leaves_the_stems_and_classifiers_of_timm_to_adamw(name, ends):
    model = timm.create_model(name, num_classes=4, pretrained=False)
    optimizer = build_optimizer(model, compose(["recipe=modern"]).recipe, "fp32")
    muon = {id(parameter) for group in optimizer.param_groups if group["use_muon"] for parameter in group["params"]}
    layers = {place: part for place, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    assert {place for place, part in layers.items() if id(part.weight) not in muon} == ends


def test_modern_recipe_uses_muon_for_the_matrices_between_stem_and_head():
    found, _ = groups("recipe=modern", "model=sa_learned")
    muon = {name for name, group in found.items() if group["use_muon"]}
    assert muon == {f"layers.0.{part}.weight" for part in ("mixer.value", "projection", "expand", "contract")}
    for name, group in found.items():
        if name.endswith(("bias", "norm.weight")):
            assert group["weight_decay"] == 0.0, name


@pytest.mark.parametrize("model", ["conv3x3", "resnet18"])
def test_muon_trains_convolution_kernels(model):
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


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 40), (4, 24, 7), (1, 1, 9)])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 0.0])
def test_orthogonalization_matches_timm_bit_for_bit(shape, scale):
    matrices = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    quintic = timm_muon._COEFFICIENTS["quintic"]
    assert torch.equal(
        orthogonalize(matrices, torch.bfloat16), timm_muon.zeropower_via_newtonschulz(matrices, 5, quintic)
    )


def test_float32_and_bfloat16_orthogonalization_agree_up_to_rounding():
    matrices = torch.randn((3, 8, 20), generator=torch.Generator().manual_seed(0))
    exact, rounded = (orthogonalize(matrices, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert exact.dtype == torch.float32
    assert torch.allclose(exact, rounded.float(), atol=0.03)
    assert torch.allclose(exact, orthogonalize(matrices.double(), torch.float64).float(), atol=1e-5)
    values = torch.linalg.svdvals(exact)
    assert 0.8 < values.min() < values.max() < 1.2


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_muon_uses_the_precision_of_the_run(precision, dtype):
    optimizer, _ = trained("sa_quadratic", lambda ours: ours, precision)
    assert copy.deepcopy(optimizer).defaults["dtype"] == dtype
    assert not any("dtype" in group for group in optimizer.state_dict()["param_groups"])


def trained(model, optimizer_of, precision="bf16"):
    """Take three steps on random gradients; return the optimizer and the network."""
    torch.manual_seed(0)
    config = compose(["recipe=modern", "scale=mini", f"model={model}", *SMALL, "scale.layers=2"])
    network = build_model(config.model, (3, 32, 32), 10)
    optimizer = optimizer_of(build_optimizer(network, config.recipe, precision))
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer, network


def timms(ours):
    """Return timm's Muon with the same parameter groups."""
    groups = [group | {"nesterov": group["use_muon"]} for group in ours.param_groups]
    return timm_muon.Muon(groups, momentum=ours.defaults["momentum"], adjust_lr_fn="original")


@pytest.mark.parametrize("model", ["sa_quadratic", "resnet10"])
def test_muon_matches_timm(model):
    """Bit-identical, except for matrix products: timm multiplies one by one, ours all matrices of a shape at once."""
    optimizer, network = trained(model, lambda ours: ours)
    _, theirs = trained(model, timms)
    matrices = {id(p) for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
    state = dict(theirs.named_parameters())
    for name, parameter in network.named_parameters():
        if id(parameter) in matrices:
            assert torch.allclose(parameter, state[name], rtol=0, atol=1e-6), name
        else:
            assert torch.equal(parameter, state[name]), name


def test_timm_muon_checkpoints_can_be_resumed():
    ours, network = trained("sa_quadratic", lambda optimizer: optimizer)
    theirs, other = trained("sa_quadratic", timms)
    network.load_state_dict(other.state_dict())
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))  # a copy, as loading would share the tensors
    for parameter, same in zip(network.parameters(), other.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        same.grad = parameter.grad.clone()
    ours.step()
    theirs.step()
    state = other.state_dict()
    assert all(torch.allclose(value, state[name], rtol=0, atol=1e-6) for name, value in network.state_dict().items())


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_muon_leaves_complex_and_empty_weights_to_adamw():
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 0), nn.Linear(0, 4))
    optimizer = build_optimizer(model, compose(["recipe=modern"]).recipe, "fp32")
    before = model[0].weight.detach().clone()
    out = model[2](model[1](torch.randn(3, 4))) + torch.view_as_real(model[0](torch.randn(3, 4) + 0j)).sum(-1)
    out.square().sum().backward()
    optimizer.step()
    change = torch.view_as_real(model[0].weight.detach() - before)
    assert (change.abs().amax((0, 1)) > 0).all(), "real and imaginary part"


def test_muon_gets_shared_weights_once_and_computed_weights_never():
    config = compose(["recipe=modern"])
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    model[1].weight = model[0].weight
    model[2] = nn.utils.parametrizations.weight_norm(model[2])
    optimizer = build_optimizer(model, config.recipe, "fp32")
    matrices = [parameter for group in optimizer.param_groups if group["use_muon"] for parameter in group["params"]]
    assert [id(matrix) for matrix in matrices] == [id(model[0].weight), id(model[3].weight)]
    everything = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(everything) == sorted(id(parameter) for parameter in model.parameters())


def test_adamw_decays_weights_apart_from_the_gradient_and_spares_biases():
    config = compose(["recipe.optimizer=adamw", "recipe.lr=0.1", "recipe.weight_decay=0.5"])
    layer = nn.Linear(3, 2)
    before = copy.deepcopy(layer.state_dict())
    optimizer = build_optimizer(layer, config.recipe, "fp32")
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), before["bias"])


def test_the_modern_recipe_gives_each_group_its_own_rate_and_decay():
    rates = ["recipe.lr=0.5", "recipe.adamw_lr=0.25", "recipe.momentum=0.7", "recipe.weight_decay=0.125"]
    found, optimizer = groups("recipe=modern", "model=sa_learned", *rates)
    assert optimizer.defaults["momentum"] == 0.7
    assert {group["use_muon"] for group in found.values()} == {True, False}
    for name, group in found.items():
        assert group["lr"] == (0.5 if group["use_muon"] else 0.25), name
        vector = name.endswith("bias") or "norm" in name
        assert group["weight_decay"] == (0.0 if vector else 0.125), name


GOLDEN = json.loads((Path(__file__).parent / "paper_learning_rates.json").read_text())
IMAGES, BATCH = 50_000, 100


def rates(model: str) -> list[float]:
    """Return our learning rate in every epoch on the full data, and check that it is constant within an epoch."""
    config = compose([f"model={model}"])
    assert (config.recipe.batch_size, config.epochs) == (BATCH, 300)
    factor = lr_factor(config.recipe, config.epochs, IMAGES)
    steps = IMAGES // BATCH
    for epoch in (0, 14, 79, 299):
        assert len({factor(epoch * steps + step) for step in range(steps)}) == 1
    return [config.recipe.lr * factor(epoch * steps) for epoch in range(config.epochs)]


@pytest.mark.parametrize("model", ["sa_quadratic", "resnet18"])
def test_paper_recipe_matches_the_golden_rates_in_every_epoch(model):
    assert rates(model) == pytest.approx(GOLDEN[model], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_lr_scale_multiplies_every_learning_rate(recipe):
    one, three = (
        lr_factor(compose([f"recipe={recipe}", f"recipe.lr_scale={scale}"]).recipe, 10, 1000) for scale in (1, 3)
    )
    assert [three(step) for step in range(80)] == pytest.approx([3 * one(step) for step in range(80)])


def test_golden_rates_include_the_quirks_of_the_published_code():
    attention, resnet = GOLDEN["sa_quadratic"], GOLDEN["resnet18"]
    assert attention[0] == 0.0, "epoch 0 trains at learning rate 0"
    assert attention[15] < 0.1, "warm-up ends after epoch 15, not at it"
    assert attention[299] > 0
    drops = [epoch for epoch in range(1, 300) if resnet[epoch] < resnet[epoch - 1]]
    assert drops == [79, 149, 249], "milestones 80, 150, 250 act one epoch early"


def test_cosine_equals_lambda_lr_stepped_once_per_epoch():
    total, warmup = 300 * (IMAGES // BATCH + 1), 0.05 * 300 * (IMAGES // BATCH + 1)

    def lr_lambda(step):
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda)
    seen = []
    optimizer.step()
    for epoch in range(300):
        # At the start of an epoch, the published loop passes the number of steps taken so far to the scheduler.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch advises against the argument
            scheduler.step(epoch * (IMAGES // BATCH))
        seen.append(optimizer.param_groups[0]["lr"])
    assert rates("sa_quadratic") == pytest.approx(seen, rel=1e-9, abs=1e-15)


def test_step_decay_equals_multistep_lr_stepped_before_the_epoch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 150, 250], gamma=0.1)
    seen = []
    for _ in range(300):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert rates("resnet18") == pytest.approx(seen, rel=1e-9)


def test_modern_schedule_warms_up_and_decays_to_near_zero():
    config = compose(["recipe=modern", "epochs=10"])
    factor = lr_factor(config.recipe, 10, 1280)
    values = [factor(step) for step in range(100)]
    assert values[0] > 0
    peak = values.index(max(values))
    assert max(values) == pytest.approx(1.0)
    assert peak == pytest.approx(100 * config.recipe.warmup, abs=1)
    assert values[:peak] == sorted(values[:peak])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert 0 < values[-1] < 0.02


def test_the_linear_schedule_falls_by_equal_steps():
    factor = lr_factor(compose(["recipe=modern", "recipe.schedule=linear", "epochs=10"]).recipe, 10, 1280)
    values = [factor(step) for step in range(100)]
    falls = [one - other for one, other in itertools.pairwise(values[values.index(max(values)) + 1 :])]
    assert falls == pytest.approx([falls[0]] * len(falls))
