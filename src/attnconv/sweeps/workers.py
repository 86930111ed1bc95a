"""Run cells as separate processes, a few at a time, each on one thread."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from attnconv.config import CONFIGS, POOL
from attnconv.errors import Stopped
from attnconv.runs.folder import run_name
from attnconv.sweeps.grid import Cell
from attnconv.training.interrupts import SIGNALS, handle

TRAIN = CONFIGS.parent / "train.py"
POLL_SECONDS = 0.2


@dataclass
class _Worker:
    place: int  # index of its cell among the cells to run
    process: subprocess.Popen[bytes]
    log: Path


class Workers:
    """A launcher for attnconv.sweeps.grid that runs a few processes at a time, in order.

    A cell that starts from another run's weights waits for that run. A signal and the end of the budget are passed on
    to the processes, which save their runs.

    Args:
        cells: composed; includes the cells to launch.
        at_once: number of processes at a time.
        logs: folder for the output of the processes.
        on_start: called with each cell before it starts.
        until: time.monotonic() at the end of the budget; None for no limit.
    """

    def __init__(
        self, cells: list[Cell], at_once: int, logs: Path, on_start: Callable[[Cell], None], until: float | None = None
    ):
        self._cells = {tuple(cell.overrides): cell for cell in cells}
        self._at_once, self._logs, self._on_start, self._until = at_once, logs, on_start, until
        self._running: list[_Worker] = []
        self._signals: list[int] = []  # received, but not passed on yet
        self._signum: int | None = None  # the first one
        self._stopping = False

    def __call__(self, overrides: list[list[str]]) -> list[str | None]:
        """Run cells and return for each why it failed, or None.

        Raises:
            Stopped: a signal was received, and all processes have ended.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        self._reasons: list[str | None] = [None] * len(overrides)
        self._waiting = {place: self._cells[tuple(cell)] for place, cell in enumerate(overrides)}
        before = handle(SIGNALS, self._receive)
        try:
            while self._step():
                time.sleep(POLL_SECONDS)
        finally:
            self._end()
            for signum, handler in before.items():
                signal.signal(signum, handler)
        if self._signum is not None:
            raise Stopped(self._signum)
        return self._reasons

    def _step(self) -> bool:
        """Handle ended processes and start new ones; return whether there is anything left to wait for."""
        for worker in [worker for worker in self._running if worker.process.poll() is not None]:
            self._running.remove(worker)
            if not self._stopping:
                self._reasons[worker.place] = _reason(worker)
        if self._until is not None and time.monotonic() > self._until:
            self._until = None
            self._signals.append(signal.SIGTERM)
        while self._signals:  # passed on here, because a signal may arrive while a process is being started
            self._stop(self._signals.pop(0))
        while self._waiting and len(self._running) < self._at_once and self._start_next():
            pass
        if not self._running:  # no process is left that could produce the weights
            for place, cell in self._waiting.items():
                self._reasons[place] = f"needs {cell.donor}, which does not exist"
        return bool(self._running)

    def _start_next(self) -> bool:
        """Start the first cell that can start, if any."""
        for place, cell in self._waiting.items():
            needed = cell.donor
            if needed is None or needed.exists():
                del self._waiting[place]
                self._on_start(cell)
                self._start(place, cell)
                return True
        return False

    def _start(self, place: int, cell: Cell) -> None:
        log = self._logs / f"{run_name(cell.config)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *cell.overrides, "hydra.mode=RUN"],
                env=os.environ | {"OMP_NUM_THREADS": "1", POOL: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # else Ctrl-C would reach it twice, and the second one would kill it
            )
        self._running.append(_Worker(place, process, log))

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is None or signum != signal.SIGHUP:  # a terminal that closes can send it twice
            self._signals.append(signum)
        self._signum = self._signum or signum

    def _end(self) -> None:
        """Wait for the processes that an error left behind; they save their runs."""
        for worker in self._running:
            worker.process.terminate()
        for worker in self._running:
            worker.process.wait()

    def _stop(self, signum: int) -> None:
        self._stopping = True
        self._waiting.clear()
        for worker in self._running:
            worker.process.send_signal(signum)


def _reason(worker: _Worker) -> str | None:
    """Return why a run failed, from the last line of its output, or None."""
    code = worker.process.returncode
    if code == 0:
        return None
    lines = worker.log.read_text("utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it printed nothing"
    if code < 0:
        last = f"killed by {signal.Signals(-code).name}"
    return f"{last} (its output: {worker.log})"
