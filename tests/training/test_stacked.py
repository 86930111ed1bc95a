"""Stacked networks against the same networks one by one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnconv.config import compose
from attnconv.models.build import build_model
from attnconv.training.optimizers import build_optimizer, step_together
from attnconv.training.stacked import CannotStack, Stack, check_stackable

SMALL = ["scale=mini", "scale.layers=2", "scale.heads=4", "scale.width=16", "scale.hidden=16", "scale.cnn_width=4"]
STEPS = 3


def networks(model, recipe="modern", count=3):
    config = compose([*SMALL, f"model={model}", f"recipe={recipe}", "recipe.dropout=0", "recipe.attention_dropout=0"])
    torch.manual_seed(0)
    models = [build_model(config.model, (3, 32, 32), 10).double() for _ in range(count)]
    return models, [build_optimizer(model, config.recipe) for model in models]


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("sa_quadratic", "paper"),
        ("sa_learned", "modern"),
        ("sa_learned_content", "modern"),
        ("conv3x3", "modern"),
        ("resnet10", "paper"),  # batch norm has buffers that a forward pass changes
    ],
)
def test_steps_together_equal_steps_one_by_one(model, recipe):
    models, optimizers = networks(model, recipe)
    slow, slow_optimizers = networks(model, recipe)
    stack = Stack(models)
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(3, 4, 3, 32, 32, generator=draw, dtype=torch.double)
        labels = torch.randint(10, (3, 4), generator=draw)
        logits = stack(images)
        stack.forget_gradients()
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
        stack.share_gradients()
        step_together(optimizers)
        for number, (one, optimizer) in enumerate(zip(slow, slow_optimizers, strict=True)):
            alone = one(images[number])
            assert torch.allclose(logits[number], alone, rtol=1e-9, atol=1e-9)
            optimizer.zero_grad()
            F.cross_entropy(alone, labels[number], reduction="sum").backward()
            optimizer.step()
    for stacked, one in zip(models, slow, strict=True):
        for (name, value), other in zip(stacked.state_dict().items(), one.state_dict().values(), strict=True):
            # Muon's iterations are in bfloat16 whatever the weights are, and round what they are given.
            tolerance = 1e-9 if recipe == "paper" else 1e-4
            assert torch.allclose(value, other, rtol=0, atol=tolerance), name


def test_a_network_of_the_stack_is_a_view_of_it_and_still_itself():
    models, _ = networks("sa_quadratic")
    before = [copy.deepcopy(model.state_dict()) for model in models]
    stack = Stack(models)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    with torch.no_grad():
        models[1].head.bias += 1
        together = stack(images.expand(3, *images.shape))
    assert torch.allclose(together[1], models[1](images))
    assert not torch.allclose(together[1], together[0])


def test_what_cannot_be_stacked_is_said():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            return F.dropout(self.head(images.mean(dim=(2, 3))), 0.5, self.training)

    with pytest.raises(CannotStack, match="randomness"):
        check_stackable(Random(), torch.randn(2, 3, 8, 8), "fp32")


def test_what_gives_something_else_when_stacked_is_refused(monkeypatch):
    models, _ = networks("sa_quadratic", count=1)
    images, real = torch.randn(2, 3, 32, 32, dtype=torch.double), Stack.__call__
    check_stackable(models[0], images, "fp32")
    monkeypatch.setattr(Stack, "__call__", lambda self, images: real(self, images).flip(0))
    with pytest.raises(CannotStack, match="differ"):
        check_stackable(models[0], images, "fp32")
