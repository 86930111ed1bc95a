"""Adding a way for pixels to talk takes one module and one config file, from outside the package too."""

import torch
from torch import nn

from attnconv.config import compose
from attnconv.models.build import build_model


class RowMean(nn.Module):
    """Every pixel becomes the mean of its row."""

    def __init__(self, width, heads, grid, attention_dropout=0.0):
        super().__init__()

    def forward(self, x):
        return x.mean(dim=2, keepdim=True).expand_as(x)


def test_a_mixer_from_outside_trains_in_the_backbone():
    node = compose(["scale=mini"]).model | {
        "name": "row_mean",
        "mixer": {"_target_": "models.test_toy_mixer.RowMean", "_partial_": True},
    }
    model = build_model(node, (3, 32, 32), 10)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.stem.weight.grad.abs().sum() > 0
