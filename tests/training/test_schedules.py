"""The paper's learning rates, epoch by epoch, against golden numbers and PyTorch's schedulers."""

import itertools
import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from attnconv.training.optimizers import lr_factor
from conftest import compose

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
