"""Ctrl-C and SIGTERM: the first asks the run to stop at its next step, the second stops it at once.

A cluster's engine (submitit) has handlers of its own: on SIGUSR2, before the time limit, it puts the job back into the
queue and exits; SIGTERM it lets pass, because the scheduler's SIGKILL follows. A signal that has such an owner is
handed to it, once the run is saved.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from attnconv.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
OWNED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # taken only from an owner: without one they are not ours


class Interrupts:
    """While entered, signals only raise a flag, which the training loop looks at between steps.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Args:
        several: whether this is one process of several. torchrun and the cluster's scheduler then both signal each of
            them, so that a second signal is not a second request; torchrun kills what does not end.
        parent: the process that this one works for: if it is gone, that counts as SIGTERM. A sweep that is killed would
            else leave the processes of its pool running, with nobody to stop them.
    """

    def __init__(self, several: bool = False, parent: int | None = None) -> None:
        self._several, self._parent = several, parent
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            ours = [*SIGNALS, *(signum for signum in OWNED_SIGNALS if _owner(signal.getsignal(signum)))]
            self._before = {signum: signal.signal(signum, self._receive) for signum in ours}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def signum(self) -> int | None:
        """The signal that asks the run to stop, if one does."""
        if self._signum is None and self._parent is not None and os.getppid() != self._parent:
            return signal.SIGTERM
        return self._signum

    @property
    def has_owner(self) -> bool:
        """Whether the signal received is someone else's to decide about."""
        return self._signum is not None and _owner(self._before[self._signum]) is not None

    def end(self, signum: int) -> None:
        """End the run, which is saved, because of a signal; or go on, if its owner only took note of it.

        Raises:
            Stopped: the signal has no owner, or its owner gives the run up.
            SystemExit: its owner starts the run again.
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
        """Raise Stopped for a signal that came too late for this run, which is done, but not for a sweep's next one."""
        if self.signum is not None and not self.has_owner:
            raise Stopped(self.signum, done=True)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None and not self._several and not self.has_owner:
            os._exit(128 + signum)  # at once: no checkpoint, no result, no waiting for a device
        self._signum = self._signum or signum


def _owner(handler: Any) -> Callable[[int, Any], Any] | None:
    """A handler that is neither the system's nor Python's own."""
    return handler if callable(handler) and handler is not signal.default_int_handler else None
