"""Wall-clock time and CPU time of a run; pauses and other runs do not increase CPU time."""

import time

import torch

from attnconv.training.distributed import Processes


class Stopwatch:
    """Measure time since construction."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return wall-clock seconds."""
        return time.perf_counter() - self._clock

    def cpu_seconds(self, processes: Processes) -> float:
        """Return the CPU seconds of all threads of all processes; all processes must call this."""
        spent = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64)
        return processes.sum_(spent).item()
