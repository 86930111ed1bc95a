"""Runs as processes of their own, some at a time, each on one thread."""

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

TRAIN = CONFIGS.parent / "train.py"
POLL_SECONDS = 0.2


@dataclass
class _Worker:
    place: int  # of its cell, among those that are to be run
    process: subprocess.Popen[bytes]
    log: Path


class Workers:
    """A launcher of cells (attnconv.sweeps.grid): a few processes at a time, in order.

    A cell that begins with the weights of another run waits for that run. A signal, or the end of the budget, is passed
    on to the processes, which save their runs.

    Args:
        cells: composed, among which those to launch are.
        at_once: processes at a time.
        logs: folder for what each process prints.
        on_start: called with a cell before it is started.
        until: time.monotonic() at which the budget ends; None: never.
    """

    def __init__(
        self, cells: list[Cell], at_once: int, logs: Path, on_start: Callable[[Cell], None], until: float | None = None
    ):
        self._cells = {tuple(cell.overrides): cell for cell in cells}
        self._at_once, self._logs, self._on_start, self._until = at_once, logs, on_start, until
        self._running: list[_Worker] = []
        self._signals: list[int] = []  # received, and not passed on yet
        self._signum: int | None = None  # the first of all
        self._stopping = False

    def __call__(self, overrides: list[list[str]]) -> list[str | None]:
        """Run cells; for each, why it failed, or None.

        Raises:
            Stopped: a signal asked for it, and every process has ended.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        self._reasons: list[str | None] = [None] * len(overrides)
        self._waiting = {place: self._cells[tuple(cell)] for place, cell in enumerate(overrides)}
        before = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGTERM, signal.SIGINT)}
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
        """Take note of what has ended and start what can be; whether there is anything left to wait for."""
        for worker in [worker for worker in self._running if worker.process.poll() is not None]:
            self._running.remove(worker)
            if not self._stopping:
                self._reasons[worker.place] = _reason(worker)
        if self._until is not None and time.monotonic() > self._until:
            self._until = None
            self._signals.append(signal.SIGTERM)
        while self._signals:  # here and not when they come, which may be between two steps of starting a process
            self._stop(self._signals.pop(0))
        while self._waiting and len(self._running) < self._at_once and self._start_next():
            pass
        if not self._running:  # nobody will make what these wait for
            for place, cell in self._waiting.items():
                self._reasons[place] = f"needs {cell.donor}, which is not there"
        return bool(self._running)

    def _start_next(self) -> bool:
        """Start the first cell that can begin, if there is one."""
        for place, cell in self._waiting.items():
            needed = cell.donor
            if needed is None or needed.exists():
                del self._waiting[place]
                self._on_start(cell)
                self._start(place, cell)
                return True
        return False

    def _start(self, place: int, cell: Cell) -> None:
        log = self._logs / f"{run_name(cell.config).replace('/', '_')}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(TRAIN), *cell.overrides, "hydra.mode=RUN"],
                env=os.environ | {"OMP_NUM_THREADS": "1", POOL: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C would reach it twice, and the second stops it at once
            )
        self._running.append(_Worker(place, process, log))

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._signum = self._signum or signum
        self._signals.append(signum)

    def _end(self) -> None:
        """Wait for processes that an error here left behind, which save their runs; without one there are none."""
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
    """Why a run failed, from the last thing that it printed; None if it did not."""
    code = worker.process.returncode
    if code == 0:
        return None
    lines = worker.log.read_text(errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it printed nothing"
    if code < 0:
        last = f"killed by {signal.Signals(-code).name}"
    return f"{last} (all that it printed: {worker.log})"
