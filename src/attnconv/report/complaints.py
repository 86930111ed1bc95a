"""What is wrong with files of results/: noted, so that all that does not need them is made, and said in the end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from attnconv.errors import UserError


@contextmanager
def noting(errors: list[str]) -> Iterator[None]:
    """Note what is wrong with a part, each error once, and go on without that part."""
    try:
        yield
    except UserError as error:
        if str(error) not in errors:
            errors.append(str(error))


def exit_with(errors: list[str]) -> None:
    """Print each error as a line, and end the program with exit code 2 if there is one."""
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        sys.exit(2)
