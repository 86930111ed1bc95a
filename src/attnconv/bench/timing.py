"""Compare the times of two implementations: alternately, in one process, after checking that their outputs agree.

A ratio of alternating times is meaningful on any machine, but a single time is not. So each time is reported together
with the time of a plain matrix product on the same machine in the same run.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from attnconv.errors import UserError
from attnconv.training.device import autocast

MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}
TINY_SIDE = 64


class Disagree(UserError):
    """Two implementations of the same function differ."""


@dataclass(frozen=True)
class Spread:
    """Median and extremes over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def take_turns(
    workloads: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time each workload once per round, alternating, after one untimed warm-up round.

    The order is reversed in every second round, so that no workload always follows the same other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for count in range(rounds + 1):
        order = list(workloads) if count % 2 else list(workloads)[::-1]
        for name in order:
            _wait(device)
            started = time.perf_counter()
            workloads[name]()
            _wait(device)
            if count:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> Spread:
    """Return slow / fast, round by round."""
    return Spread.of([before / after for before, after in zip(slow, fast, strict=True)])


def matmul(kind: torch.dtype, device: torch.device, tiny: bool = False) -> tuple[Callable[[], object], int]:
    """Return a square matrix product as a workload for `take_turns`, and its FLOPs."""
    side = TINY_SIDE if tiny else MATMUL_SIDE.get(device.type, 2048)
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    times = 4

    def workload() -> None:
        for _ in range(times):
            left @ right

    return workload, times * 2 * side**3


def flops_of(workload: Callable[[], object]) -> int:
    """Return the FLOPs of all matrix products and convolutions of a workload, including backward passes."""
    with FlopCounterMode(display=False) as counter:
        workload()
    return counter.get_total_flops()


def peak_bytes(workload: Callable[[], object], device: torch.device) -> int:
    """Return the peak bytes of the tensors that a workload allocates."""
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        workload()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        workload()
    # The trace is the public interface to the profiler's record of allocations, in order.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    allocations = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = peak = 0
    for _, size in allocations:
        held += size
        peak = max(peak, held)
    return peak


@torch.no_grad()
def check_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, tolerance: float, what: str
) -> float:
    """Return the largest difference of two functions' outputs, relative to the largest output.

    Raises:
        Disagree: it is above the tolerance or not finite, so the functions must not be timed.
    """
    expected = theirs(x).float()
    difference = ((ours(x).float() - expected).abs().max() / expected.abs().max()).item()
    if not difference <= tolerance:
        raise Disagree(f"{what}: outputs differ by {difference:.1e} of the largest, more than {tolerance:g}; not timed")
    return difference


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the least-squares slope of log(seconds) against log(sizes)."""
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, seconds)]).slope


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        raise UserError(f"times and memory can be measured on a CPU or a CUDA device, not on {device.type}")


def forward_backward(module: nn.Module, x: Tensor, precision: str) -> None:
    """Run one forward and backward pass: a workload for `take_turns`."""
    with autocast(precision, x.device):
        out = module(x)
    out.float().square().sum().backward()
