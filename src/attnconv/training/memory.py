"""What a run needs and this machine has, known before anything is made."""

import os

from attnconv.errors import OutOfMemory

TRAINING_BYTES = 16  # of a parameter in float32: itself, its gradient and two moments of the optimizer


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_memory(needed: int, what: str, lower: str) -> None:
    """Check that something fits into this machine's memory.

    Args:
        needed: bytes.
        what: what needs them.
        lower: settings with their values, one of which has to be lower.

    Raises:
        OutOfMemory: it does not fit.
    """
    there_is = physical_memory()
    if needed > there_is:
        raise OutOfMemory(
            f"{what} need {needed / 2**30:,.1f} GiB of memory, and this machine has {there_is / 2**30:,.1f}; "
            f"lower {lower}"
        )
