"""Errors that a user can fix, each reported in one line."""

import difflib
import io
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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
    # What has nothing in common but the part before the last dot is not near.
    others = [other for other in names if other.rpartition(".")[0] != name.rpartition(".")[0] or "." not in name]
    others = [other for other in others if not name.startswith(f"{other}.")]
    close = [other for other in names if other.lower() == name.lower()]
    close = close or _same_leaf(name, names) or difflib.get_close_matches(name, others, n=1, cutoff=LIKENESS)
    if close:
        return f"; did you mean {' or '.join(repr(one) for one in close)}?"
    if not names:
        return ""
    # Nobody reads a long list.
    return f"; valid: {', '.join(names)}" if len(names) <= 20 else f"; {listed} lists them"


def _same_leaf(name: str, names: list[str]) -> list[str]:
    """Return the names with the same or a similar last part: all of them, or for a dotted name the nearest."""
    by_leaf: dict[str, list[str]] = {}
    for candidate in names:
        by_leaf.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    leaf = name.rpartition(".")[2]
    found = [leaf] if leaf in by_leaf else difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=LIKENESS)
    candidates = by_leaf[found[0]] if found else []
    if "." in name or len(candidates) > 3:
        return difflib.get_close_matches(name, candidates, n=1, cutoff=0)
    return candidates


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
        print("interrupted; rerun the same command to resume from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except SweepIncomplete as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        message = _what_to_mend(error, valid_keys)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def _what_to_mend(error: Exception, valid_keys: Iterable[str]) -> str | None:
    """Return one line about an error that a user can fix, or None for a bug in the program."""
    if isinstance(error, UserError):
        return " ".join(str(error).split("\n"))
    if _is_of(error, "hydra", "omegaconf"):
        return explain_composition_error(error, valid_keys)
    if _is_of(error, "yaml"):
        return explain_yaml_error(error)
    if isinstance(error, UnicodeDecodeError) and _raised_in(error, "hydra", "omegaconf"):
        return f"one of the YAML files that the arguments choose is not UTF-8 text ({error})"
    if isinstance(error, OSError) and error.strerror:  # of the system, not of a library
        return f"{error.filename or 'output'}: {error.strerror}"
    return None


def _mend_streams() -> None:
    """Let every print succeed: to a stream that the shell closed (>&-), and in letters that an encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # This also takes the stream's number, so that no file of a run gets it.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


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
    """Return whether the error was raised in one of these packages, or in what of Python they called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in packages for frame in frames[-2:])


# Code that is installed or part of this package.
NOT_OF_USER = ("<", os.path.dirname(traceback.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def line_of_user(error: BaseException) -> str | None:
    """Return the innermost line of a user's own code that an error came through, such as `net.py, line 7`, or None."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_OF_USER)]
    own = [frame for frame in own if "-packages" + os.sep not in frame.filename]
    return f"{os.path.basename(own[-1].filename)}, line {own[-1].lineno}" if own else None


def explain_yaml_error(error: Exception) -> str:
    """Return the file, the line and what is wrong there."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else str(getattr(error, "name", "a YAML file"))
    return f"{where}: {getattr(error, 'problem', None) or getattr(error, 'reason', None) or error}"


# The packages of Hydra's plugins, by option.
PLUGINS = {
    "optuna": "hydra-optuna-sweeper",
    "ax": "hydra-ax-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}


def explain_composition_error(error: Exception, valid_keys: Iterable[str]) -> str:
    """Return Hydra's message in one line, with the nearest valid key or option."""
    argument = explain_argument(error, valid_keys)
    if argument is not None:
        return argument
    text = str(error)
    where = re.search(r"In '([^']+)'", text)
    prefix = f"configs/{where.group(1)}.yaml: " if where else ""

    option = re.search(r"Could not (?:find|load) '([^']+)/([^'/]*)'", text)
    if option:
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        group, choice = option.groups()
        if group in ("hydra/launcher", "hydra/sweeper") and choice in PLUGINS:
            return f"{group}={choice} needs a plugin that is not installed: pip install {PLUGINS[choice]}"
        return f"{prefix}{group}={choice} does not exist{nearest(choice, options)}"

    missing_config = re.search(r"Cannot find primary config '([^']+)'", text)
    if missing_config:
        return f"--config-name {missing_config.group(1)} does not exist in the configuration folders"

    key = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if key and re.search(r"is not in struct|Key '[^']+' not in|Could not override", text):
        valid, (group, _, _) = set(valid_keys), key.group(1).partition(".")
        if group == "experiment":
            return f"{prefix}its first line must be # @package _global_"
        if key.group(1) in valid and group == "model":
            return f"{prefix}the chosen model has no setting '{key.group(1)}'; other models have"
        if key.group(1) in valid:
            return f"{prefix}'{key.group(1)}' cannot be set, because {group} holds no settings"
        return f"{prefix}unknown setting '{key.group(1)}'{nearest(key.group(1), valid)}"

    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        name = key.group(1) if key else missing.group(1)
        return f"{name} has no default: set {name}=VALUE"

    replaced = re.search(r"Merge error: \w+ is not a subclass of (\w+)Config\. value: (.*)", text)
    if replaced:
        return f"{prefix}{replaced.group(1).lower()} must be settings and their values, not {replaced.group(2)}"
    if re.search("Cannot merge (Dict|List)Config with (Dict|List)Config", text):
        return f"{prefix}it has a list where another file has settings, or settings where another has a list"

    # Hydra's own message leaves out what was wrong with the value; the cause has it.
    if error.__cause__ is not None and text.startswith("Error merging override"):
        text = f"{text}: {error.__cause__}"
    lines = [line.strip() for line in text.splitlines()]
    about = ("object_type=", "reference_type=", "full_key:", "See ")
    message = " ".join(line for line in lines if line and not line.startswith(about))
    return prefix + (f"{key.group(1)}: " if key else "") + message


def explain_argument(error: Exception, valid_keys: Iterable[str]) -> str | None:
    """Return what is wrong with an argument that Hydra cannot read and how to write it, or None for other errors."""
    from hydra.errors import OverrideParseException

    text = str(error)
    several = re.match(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires", text)
    if several:
        override = several.group(1) or several.group(2)
        return (
            f"{override} has several values: add -m for one run per value, write {override.partition('=')[0]}"
            f"=[A,B] for a list, or {quoted(override)} for one text"
        )
    if not isinstance(error, OverrideParseException):
        return None
    key, equals, _ = error.override.partition("=")
    if not re.fullmatch(r"[\w$./:@-]+", key.lstrip("+~"), flags=re.ASCII):
        return f"unknown setting '{key}'{nearest(key, valid_keys) if key else ''}"
    if not equals:
        return f"the argument '{key}' has no value: write {key}=VALUE"
    function = re.match(r"Error parsing override .*\n(.*)", text)
    if function:  # of a sweep, such as range(): it could be read, but not evaluated
        return f"{error.override}: {function.group(1)}"
    return f"{error.override} cannot be parsed; quote the value for the shell and for Hydra: {quoted(error.override)}"


def quoted(override: str) -> str:
    """Return an override that sets its value as one string, quoted for the shell."""
    key, _, value = override.partition("=")
    text = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'{key}="{text}"')
