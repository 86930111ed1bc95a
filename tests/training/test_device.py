"""The precision used for training."""

import pytest
import torch

from attnconv.training import device as precision
from attnconv.training.device import choose_precision


def test_auto_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "computes_in_bf16", lambda device: False)
    assert choose_precision("auto", cpu) == "fp32"
    monkeypatch.setattr(precision, "computes_in_bf16", lambda device: True)
    assert choose_precision("auto", cpu) == "bf16"
    assert choose_precision("fp32", cpu) == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [("AVX512", True), ("AVX2", False)])
def test_cpu_limited_to_avx2_does_not_compute_in_bf16(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision.computes_in_bf16(torch.device("cpu")) == expected
