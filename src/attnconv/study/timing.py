"""Timing of one module's training step, for benchmarks."""

import time

import torch
from torch import Tensor, nn

from attnconv.training.precision import autocast


def forward_backward_seconds(module: nn.Module, x: Tensor, precision: str) -> float:
    """Seconds of one forward and backward pass, the device waited for."""
    started = time.perf_counter()
    with autocast(precision, x.device):
        out = module(x)
    out.float().square().sum().backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
