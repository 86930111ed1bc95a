"""Errors that a user can fix, each reported in one line, and checks of memory."""

import difflib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


class UserError(Exception):
    """A request that cannot be fulfilled; the message says what is wrong and how to fix it."""


class ConfigError(UserError):
    """A configuration that no run can have."""


class DataError(UserError):
    """Data that is missing, damaged or in the wrong format."""


class Diverged(UserError):
    """Training with a loss or gradient that is not finite."""


class OutOfMemory(UserError):
    """A configuration that needs more memory than the machine has."""


class RunFolderError(UserError):
    """A run folder that cannot or must not be written."""


class Stopped(BaseException):
    """A signal stopped the run. It is not an Exception, so that no handler takes it for a failure."""

    def __init__(self, signum: int, done: bool = False, reason: str | None = None):
        super().__init__(signum, done, reason)  # so that it can be pickled
        self.signum, self.done, self.reason = signum, done, reason

    def __str__(self) -> str:
        return signal.Signals(self.signum).name + (f" ({self.reason})" if self.reason else "")

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal, as shells do: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.signum


class CannotWrite(RunFolderError):
    """A run that the disk stopped: it was full or could not be written. The same command resumes it."""


class AlreadyDone(RunFolderError):
    """The run is finished: an error for a single run; a sweep skips it."""


class InUse(RunFolderError):
    """Another process is using the run folder: an error for a single run; a sweep skips it."""


class CellFailed(UserError):
    """A run of a sweep failed; the reason has been printed."""


class SweepIncomplete(UserError):
    """A sweep ended before all of its runs were done."""

    exit_code = 1


TRAINING_BYTES = 16  # per parameter in float32: itself, its gradient and two moments of the optimizer

# Minimum similarity of a suggestion: `batch` suggests `batch_size`, but `trainer` does not suggest `train_images`.
LIKENESS = 0.65


def nearest(name: str, valid: Iterable[str], listed: str = "python train.py --help") -> str:
    """Return "; did you mean 'epochs'?", or a list of the valid names if none is similar.

    The last part of dotted names counts first: `batch_size` suggests `recipe.batch_size`, even if another name is more
    similar.

    Args:
        listed: a command that lists the valid names, for when there are many.
    """
    names = sorted(set(valid))
    close = [other for other in names if other.lower() == name.lower()] or _same_leaf(name, names)
    if not close and not ("." in name and any("." in other for other in names)):
        close = _alike(name, names)
    if close:
        return f"; did you mean {' or '.join(repr(one) for one in close)}?"
    if not names:
        return ""
    # Nobody reads a long list.
    return f"; valid: {', '.join(names)}" if len(names) <= 20 else f"; {listed} lists them"


def _same_leaf(name: str, names: list[str]) -> list[str]:
    """Return the names with the same or a similar last part: all of them, or for a dotted name the nearest.

    A dotted name is not similar to names of other sections: `data.path` does not suggest `scale.patch`.
    """
    leaf, leaves = name.rpartition(".")[2], {other.rpartition(".")[2] for other in names}
    if leaf in leaves:
        found = [leaf]
    elif begun := [other for other in leaves if len(leaf) >= 3 and other.startswith(leaf)]:
        # `out` is the beginning of `output`, and more like `count`.
        found = sorted(begun, key=lambda other: (len(other), other))[:1]
    else:
        section = name.partition(".")[0]
        names = [other for other in names if "." not in name or other.partition(".")[0] == section]
        found = _alike(leaf, sorted({other.rpartition(".")[2] for other in names}))
    candidates = [other for other in names if found and other.rpartition(".")[2] == found[0]]
    if "." in name or len(candidates) > 3:
        return difflib.get_close_matches(name, candidates, n=1, cutoff=0)
    return candidates


def _alike(name: str, others: list[str]) -> list[str]:
    """Return the most similar name, if any is similar; short names must also begin with the same letter."""
    if len(name) < 4:
        others = [other for other in others if other[:1] == name[:1]]
    return difflib.get_close_matches(name, others, n=1, cutoff=LIKENESS) if len(name) > 2 else []


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 run", "1,000 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@cache
def warn(text: str) -> None:
    """Print a warning, once per process."""
    print(f"warning: {text}", file=sys.stderr)


def first_few(names: Collection[str], shown: int = 4) -> str:
    """Join names into one line: the first few, and the number of others."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(list(names)[:shown]) + more


def reason_of(error: object) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def one_line_errors(valid_keys: Iterable[str] = ()) -> Iterator[None]:
    """Print errors that a user can fix in one line on stderr and exit with code 2; let others show their traceback.

    By default Hydra prints its errors itself, without a suggestion; HYDRA_FULL_ERROR makes it raise them.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _mend_streams()
    try:
        try:
            yield
        finally:
            _flush()
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)
    except Stopped as stopped:
        rest = "the run had finished" if stopped.done else "rerun the same command to resume"
        print(f"stopped by {stopped}; {rest}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SweepIncomplete as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        message = what_to_mend(error, valid_keys)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def what_to_mend(error: Exception, valid_keys: Iterable[str]) -> str | None:
    """Return one line about an error that a user can fix, or None for a bug in the program."""
    if isinstance(error, UserError):
        return " ".join(str(error).split("\n"))
    if _is_of(error, "hydra", "omegaconf"):
        from attnconv.settings.explain import explain_composition_error

        return explain_composition_error(error, valid_keys)
    if _is_of(error, "yaml"):
        return explain_yaml_error(error)
    if isinstance(error, UnicodeDecodeError) and _raised_in(error, "hydra", "omegaconf"):
        return f"one of the YAML files that the arguments choose is not UTF-8 text ({error})"
    if isinstance(error, OSError) and error.strerror:  # of the system, not of a library
        return f"{error.filename or 'output'}: {error.strerror}"
    return None


def _mend_streams() -> None:
    """Let every print succeed: to a closed stream (>&-) or terminal, and in letters that an encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # This also takes the stream's number, so that no file of a run gets it.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            errors = "backslashreplace" if stream.errors == "strict" else stream.errors
            if stream.isatty():
                terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
                stream = io.TextIOWrapper(terminal, stream.encoding, errors, line_buffering=True)
                setattr(sys, name, stream)
            stream.reconfigure(errors=errors)


class _Terminal(io.FileIO):
    """A terminal that may close: a run in the background goes on without it."""

    def write(self, text: Any) -> int:
        try:
            return super().write(text)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(text)


def _flush() -> None:
    """Flush stdout here, where a closed pipe and a full disk are handled."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes when it ends
        raise


def _is_of(error: Exception, *packages: str) -> bool:
    """Return whether one of these packages defines the error, without importing them, which is slow."""
    return any(kind.__module__.partition(".")[0] in packages for kind in type(error).__mro__)


def _raised_in(error: Exception, *packages: str) -> bool:
    """Return whether the error was raised in one of these packages, or in code that they called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in packages for frame in frames[-2:])


# Code that is installed or part of this package.
NOT_OF_USER = ("<", os.path.dirname(traceback.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def is_of_user(file: str) -> bool:
    """Return whether a file of code is neither installed nor part of this package."""
    return not file.startswith(NOT_OF_USER) and "-packages" + os.sep not in file


def line_of_user(error: BaseException) -> str | None:
    """Return the innermost line of a user's own code that an error came through, such as `net.py, line 7`, or None."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_of_user(frame.filename)]
    return f"{os.path.basename(own[-1].filename)}, line {own[-1].lineno}" if own else None


def explain_yaml_error(error: Exception) -> str:
    """Return the file, the line and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else str(getattr(error, "name", "a YAML file"))
    return f"{where}: {getattr(error, 'problem', None) or getattr(error, 'reason', None) or error}"


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
    import torch  # whoever runs out of memory has imported it; small commands have not

    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)
