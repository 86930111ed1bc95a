"""What a person types: the arguments of train.py in the order that Hydra wants, and the parser of the scripts."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from attnconv.config import Config
from attnconv.errors import ConfigError, UserError
from attnconv.settings.limits import LARGEST_COUNT, LARGEST_FLOAT

# Settings that are paths: no shell expands the ~ of an argument such as output=~/runs.
PATHS = ("output", "data.root", "collected")

# What --shell-completion does with its argument.
COMPLETION = ("install", "uninstall", "query")


def train_arguments(arguments: list[str]) -> list[str]:
    """The arguments of train.py as Hydra reads them: overrides first, flags after them, and home folders by name.

    Raises:
        UserError: a flag is unknown, or goes with no other one here; see `check_overrides`.
    """
    from hydra._internal.utils import get_args_parser

    from attnconv.settings.overrides import check_overrides  # imports Hydra, which scripts do without
    from attnconv.settings.trial import trial_arguments, under_agent

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    found = parser.parse_intermixed_args(arguments)
    _check_flags(found)
    flags = [argument for argument in arguments if argument not in found.overrides]
    overrides = list(map(expand_home, found.overrides))
    if under_agent():
        overrides = trial_arguments(overrides)
    check_overrides(overrides)
    return [*overrides, *flags]


def expand_home(override: str) -> str:
    """`key=~/folder` with the home folder by its name, where the key is a path's."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in PATHS:
        return override
    # Of a sweep every path; inside quotes, too.
    return key + equals + re.sub(r"(?:^|(?<=[,'\"]))~[^/,'\"]*", lambda home: os.path.expanduser(home.group()), value)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python train.py --help shows how")


def _check_flags(found: argparse.Namespace) -> None:
    """Raise UserError for flags that Hydra answers with a traceback, or does not answer."""
    if found.help or found.hydra_help:
        return
    modes = {"--run": found.run, "-m": found.multirun, "--cfg": found.cfg, "--info": found.info,
             "--shell-completion": found.shell_completion}  # fmt: skip
    chosen = [flag for flag, value in modes.items() if value]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: --cfg and --info show one run, -m trains several")
    for flag, value in (("--resolve", found.resolve), ("--package", found.package)):
        if value and not found.cfg:
            raise UserError(f"{flag} goes with --cfg: python train.py --cfg job {flag}")
    if found.shell_completion and not any(override.partition("=")[0] in COMPLETION for override in found.overrides):
        raise UserError(f"--shell-completion needs one of {', '.join(f'{name}=SHELL' for name in COMPLETION)}")
    if found.experimental_rerun is not None:
        raise UserError("--experimental-rerun is not supported: the same command resumes a run")


# How the sweepers that optimize are asked for the largest value; all of them look for the smallest by default.
LARGEST: dict[str, Any] = {"direction": "maximize", "optim.maximize": True, "ax_config.experiment.minimize": False}


def sweeper_optimizes() -> bool:
    """Whether the sweep that this process works for chooses its next cells by what the last ones returned."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().sweeper._target_.rpartition(".")[2] not in ("CellSweeper", "BasicSweeper")


def check_trial(config: Config) -> None:
    """Refuse a trial of a sweeper that optimizes, where it would not choose the best by validation accuracy.

    Raises:
        ConfigError: there are no validation images, and test must not select; or it looks for the smallest accuracy.
    """
    from hydra.core.hydra_config import HydraConfig

    if not config.data.holdout:
        raise ConfigError("a sweep that optimizes needs validation images, and data.holdout=0: say data.holdout=0.1")
    for key, largest in LARGEST.items():
        value = OmegaConf.select(HydraConfig.get().sweeper, key)
        if value is not None and getattr(value, "name", value) != largest:
            raise ConfigError(f"the sweep would look for the smallest accuracy: say hydra.sweeper.{key}={largest}")


class ScriptParser(argparse.ArgumentParser):
    """A script's parser: its docstring is the help, and what is wrong is one line and exit code 2."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def whole_number(at_least: int) -> Callable[[str], int]:
    """Return a type of arguments: a whole number of at least `at_least`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if not at_least <= number <= LARGEST_COUNT:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {at_least} to {LARGEST_COUNT}")
        return number

    return convert


positive = whole_number(1)


def above_zero(text: str) -> float:
    """Convert an argument to a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= LARGEST_FLOAT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most {LARGEST_FLOAT:g}")
    return number


def existing_folder(text: str) -> Path:
    """An argument that is a folder."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return path


def check_target(parser: argparse.ArgumentParser, path: Path | None) -> None:
    """Let the parser refuse a file that is to be written, but into no folder."""
    if path is not None and not path.absolute().parent.is_dir():
        parser.error(f"{path} cannot be written: there is no folder {path.parent}")
    if path is not None and path.is_dir():
        parser.error(f"{path} cannot be written: it is a folder")
