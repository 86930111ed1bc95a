"""Time that a run takes: on the clock, and on the CPU, which a paused or crowded machine does not stretch."""

import time

import torch

from attnconv.training.distributed import Processes


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Seconds on the clock."""
        return time.perf_counter() - self._clock

    def cpu_seconds(self, processes: Processes) -> float:
        """CPU seconds of all threads of all processes, each of which has to ask."""
        spent = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64)
        return processes.sum_(spent).item()
