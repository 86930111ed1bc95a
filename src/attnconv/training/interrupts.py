"""Handle Ctrl-C, SIGTERM and SIGHUP: the first stops the run at its next step, the second stops it at once.

SIGHUP comes when a terminal closes. Signals that the parent ignores stay ignored: SIGHUP under nohup, and Ctrl-C in a
background job of a script.

A cluster's engine (submitit) has its own handlers. On SIGUSR2, sent before the time limit, it requeues the job and
exits. It ignores SIGTERM, because the scheduler's SIGKILL follows. A signal with such a handler is passed on to it once
the run is saved.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from attnconv.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
OWNED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # handled only if somebody else already handles them


class Interrupts:
    """While entered, let signals only set a flag, which the training loop reads between steps.

    Outside the main thread, where Python delivers no signals, this does nothing.

    Args:
        several: whether the run has several processes. torchrun and the cluster's scheduler then signal each of them,
            so a second signal is not a second request; torchrun kills processes that do not end.
        parent: the process that started this one; if it is gone, that counts as SIGTERM. Otherwise a killed sweep would
            leave the processes of its pool running.
    """

    def __init__(self, several: bool = False, parent: int | None = None) -> None:
        self._several, self._parent = several, parent
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            owned = [signum for signum in OWNED_SIGNALS if _owner(signal.getsignal(signum))]
            self._before = handle([*SIGNALS, *owned], self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def signum(self) -> int | None:
        """Return the signal that asks the run to stop, or None."""
        if self._signum is None and self._parent is not None and os.getppid() != self._parent:
            return signal.SIGTERM
        return self._signum

    @property
    def has_owner(self) -> bool:
        """Return whether the received signal has another handler."""
        return self._signum is not None and _owner(self._before[self._signum]) is not None

    def end(self, signum: int) -> None:
        """End the saved run because of a signal, or continue if the signal's other handler only recorded it.

        Raises:
            Stopped: the signal has no other handler, or that handler gives up the run.
            SystemExit: the other handler restarts the run.
        """
        owner = _owner(self._before.get(signum))
        if owner is None:
            raise Stopped(signum)
        self._signum = None
        try:
            owner(signum, None)
        except Exception as error:
            raise Stopped(signum, reason=str(error)) from error

    def end_sweep(self) -> None:
        """Raise Stopped for a signal that came after this run was done but must stop the sweep."""
        if self.signum is not None and not self.has_owner:
            raise Stopped(self.signum, done=True)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self._signum is not None and signum != signal.SIGHUP  # a terminal that closes can send it twice
        if again and not self._several and not self.has_owner:
            os._exit(128 + signum)  # at once: without a checkpoint, a result, or waiting for the device
        self._signum = self._signum or signum


def handle(signals: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle those of `signals` that this process does not ignore, and return their handlers so far."""
    heeded = [signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in heeded}


def _owner(handler: Any) -> Callable[[int, Any], Any] | None:
    """Return a handler that is neither the system's nor Python's own."""
    return handler if callable(handler) and handler is not signal.default_int_handler else None
