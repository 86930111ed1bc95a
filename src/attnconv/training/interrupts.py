"""Ctrl-C and SIGTERM: the first asks the run to stop at its next step, the second stops it at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """While entered, signals only raise a flag, which the training loop looks at between steps.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Args:
        several: whether this is one process of several. torchrun and the cluster's scheduler then both signal each of
            them, so that a second signal is no second request; torchrun kills what does not end.
    """

    def __init__(self, several: bool = False) -> None:
        self._several = several
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and not self._several:
            os._exit(128 + signum)  # at once: no checkpoint, no result, no waiting for a device
        self.signum = self.signum or signum
