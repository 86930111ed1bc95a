"""Check the memory that a run needs before anything is allocated."""

import os

import torch

from attnconv.errors import OutOfMemory

TRAINING_BYTES = 16  # per parameter in float32: itself, its gradient and two moments of the optimizer


def physical_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits(needed: int) -> bool:
    """Return whether this machine's memory holds `needed` bytes."""
    return needed <= physical_memory()


def require_memory(needed: int, what: str, lower: str) -> None:
    """Check that something fits into this machine's memory.

    Args:
        needed: bytes.
        what: the thing that needs the memory.
        lower: the settings to lower, with their present values.

    Raises:
        OutOfMemory: it does not fit.
    """
    if not fits(needed):
        there_is = physical_memory()
        raise OutOfMemory(
            f"{what} need {needed / 2**30:,.1f} GiB of memory, and this machine has {there_is / 2**30:,.1f}; "
            f"lower {lower}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the machine ran out of memory."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)
