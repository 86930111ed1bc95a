"""Record problems with files of results/, continue with everything else, and report them at the end."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attnconv.errors import UserError


@contextmanager
def noting(errors: list[str]) -> Iterator[None]:
    """Record an error in a part once, and continue without that part."""
    try:
        yield
    except UserError as error:
        note(errors, [error])


def note(errors: list[str], found: Iterable[UserError]) -> None:
    """Record errors, each once."""
    errors += [text for text in dict.fromkeys(map(str, found)) if text not in errors]


def exit_with(errors: list[str]) -> None:
    """Print each error as a line, and exit with code 2 if there are any."""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        sys.exit(2)
