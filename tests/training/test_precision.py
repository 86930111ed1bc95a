"""Which numbers a network is trained in."""

import torch

from attnconv.training import precision
from attnconv.training.precision import choose_precision


def test_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "computes_in_bf16", lambda device: False)
    assert choose_precision("auto", cpu) == "fp32"
    monkeypatch.setattr(precision, "computes_in_bf16", lambda device: True)
    assert choose_precision("auto", cpu) == "bf16"
    assert choose_precision("fp32", cpu) == "fp32"
