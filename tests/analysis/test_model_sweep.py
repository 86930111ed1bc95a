"""The sweep randomizes all constant tensors of a model, and refused models get a row, too."""

import torch
from torch import nn

from attnconv.analysis.conversion import randomize, sweep_row
from attnconv.report.theorem_page import sweep_table


def test_randomize_leaves_no_constant_tensor():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    kernel = model[0].weight.clone()
    randomize(model, torch.randn(4, 3, 8, 8), 0)
    tensors = [*model.parameters(), model[1].running_mean, model[1].running_var]
    assert all(tensor.std() > 0 for tensor in tensors)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model[0].weight, kernel), "random already"


def test_sweep_rows_report_the_difference_or_the_reason_for_refusal():
    rows = [sweep_row("test_resnet", 2), sweep_row("test_vit", 2), sweep_row("no_such_model", 2)]
    assert (rows[0]["side"], rows[0]["predictions_changed"]) == (32, 0)
    assert rows[0]["largest_difference"] <= 1e-12 * rows[0]["largest_logit"], "in float64"
    assert "refused" not in rows[1], "the patches are a convolution"
    assert "timm has no model 'no_such_model'" in rows[2]["refused"]
    assert [line.count("|") for line in sweep_table(rows).splitlines()] == [8] * 5
