"""Timing of one module's training step, and how the benchmarks that use it are asked for."""

import time

import torch
from torch import Tensor, nn

from attnconv.command import ScriptParser, positive
from attnconv.errors import one_line_errors
from attnconv.training.precision import autocast, choose_device, choose_precision


def forward_backward_seconds(module: nn.Module, x: Tensor, precision: str) -> float:
    """Seconds of one forward and backward pass, the device waited for."""
    started = time.perf_counter()
    with autocast(precision, x.device):
        out = module(x)
    out.float().square().sum().backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def benchmark_arguments(description: str | None) -> tuple[torch.device, str, int]:
    """Device, precision and rounds from the command line of a benchmark."""
    parser = ScriptParser(description)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--rounds", type=positive, default=9, help="9")
    arguments = parser.parse_args()
    with one_line_errors([]):
        device = choose_device(arguments.device)
    return device, choose_precision("auto", device), arguments.rounds
