"""Command lines: train.py's arguments in the order that Hydra needs, its --help, and the parser of the scripts."""

import argparse
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterable
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from attnconv.config import RESULTS, Config
from attnconv.errors import ConfigError, UserError
from attnconv.files import require_targets
from attnconv.settings.limits import LARGEST_COUNT, LARGEST_FLOAT

# Settings that are paths: the shell does not expand the ~ of an argument such as output=~/runs.
PATHS = ("output", "data.root", "collected", "model.start")

# Values of --shell-completion.
COMPLETION = ("install", "uninstall", "query")

# The most important settings, in the order of --help. src/attnconv/config.py lists the rest.
COMMON = ("model", "scale", "recipe", "seed", "epochs", "data.fraction", "match", "name")
# Hidden from --help: model and recipe together choose the first; the second holds files for `wandb sweep`.
HIDDEN = ("recipe_for_model", "wandb")
WIDTH = 118  # of --help


def train_arguments(arguments: list[str]) -> list[str]:
    """Return train.py's arguments for Hydra: overrides first, then flags, with ~ expanded and text kept as typed.

    Raises:
        UserError: a flag is unknown or does not fit the others; see `check_overrides`.
    """
    from hydra._internal.utils import get_args_parser

    from attnconv.settings.overrides import check_overrides, keep_text  # imports Hydra, which scripts do not need

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    found = parser.parse_intermixed_args(arguments)
    flags = [argument for argument in arguments if argument not in found.overrides]
    if flags:
        _check_flags(found)
    overrides = [keep_text(expand_home(override)) for override in found.overrides]
    if under_agent():
        from attnconv.settings.trial import trial_arguments

        overrides = trial_arguments(overrides, found.config_dir)
    check_overrides(overrides)
    return [*overrides, *flags]


def under_agent() -> bool:
    """Return whether `wandb agent` started this process; the agent then chooses the project and the id of the run."""
    return "WANDB_SWEEP_ID" in os.environ


def expand_home(override: str) -> str:
    """Expand the ~ of `key=~/folder` if the key is a path."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in PATHS:
        return override
    # All paths of a sweep, also inside quotes.
    return key + equals + re.sub(r"(?:^|(?<=[,'\"]))~[^/,'\"]*", lambda home: os.path.expanduser(home.group()), value)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python train.py --help shows how")


def _check_flags(found: argparse.Namespace) -> None:
    """Raise UserError for flags that Hydra ignores or answers with a traceback."""
    if found.help or found.hydra_help:
        return
    modes = {"--run": found.run, "-m": found.multirun, "--cfg": found.cfg, "--info": found.info,
             "--shell-completion": found.shell_completion}  # fmt: skip
    chosen = [flag for flag, value in modes.items() if value]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} cannot be combined: --cfg and --info show one run, -m trains several")
    for flag, value in (("--resolve", found.resolve), ("--package", found.package)):
        if value and not found.cfg:
            raise UserError(f"{flag} needs --cfg: python train.py --cfg job {flag}")
    if found.shell_completion and not any(override.partition("=")[0] in COMPLETION for override in found.overrides):
        raise UserError(f"--shell-completion needs one of {', '.join(f'{name}=SHELL' for name in COMPLETION)}")
    if found.config_dir is not None:
        from attnconv.settings.overrides import check_config_dir

        if not found.config_dir:
            raise UserError("--config-dir is empty (an unset shell variable?)")
        check_config_dir(found.config_dir)
    if found.experimental_rerun is not None:
        raise UserError("--experimental-rerun is not supported; rerun the same command to resume a run")


def register_help() -> None:
    """Register the texts with configs/config.yaml, as `${help_settings:}` and `${help_groups:}`."""
    OmegaConf.register_new_resolver("help_settings", common_settings, replace=True)
    OmegaConf.register_new_resolver("help_groups", group_options, replace=True)


def common_settings() -> str:
    """Return one line for each common setting: name, default, meaning and choices."""
    meanings = {"model": "the token mixer and its network", "scale": "size of the network and of its map",
                "recipe": "optimizer, schedule and regularization"}  # fmt: skip
    lines = []
    for key in COMMON:
        known = _knob(key)
        default = "NAME" if key in meanings else "null" if known.default is None else known.default
        choices = known.metadata.get("choices")
        meaning = meanings.get(key, known.metadata.get("meaning", "")) + (f" ({', '.join(choices)})" if choices else "")
        lines.append(f"  {f'{key}={default}':20} {meaning}")
    return "\n".join(lines)


def group_options() -> str:
    """Return the groups of configs/ and of --config-dir with their options, without the hidden groups."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra" and group not in HIDDEN]
    texts = (f"  {group}: {', '.join(loader.get_group_options(group))}" for group in sorted(groups))
    return "\n".join(textwrap.fill(text, WIDTH, subsequent_indent="    ") for text in texts)


def _knob(key: str) -> "Field[Any]":
    """Return the field of the schema that a dotted key names."""
    schema: Any = Config
    *parts, leaf = key.split(".")
    for part in parts:
        schema = {field.name: field.default_factory for field in fields(schema)}[part]
        assert is_dataclass(schema)
    return {field.name: field for field in fields(schema)}[leaf]


# The option by which each optimizing sweeper maximizes; by default they all minimize.
MAXIMIZING: dict[str, Any] = {"direction": "maximize", "optim.maximize": True, "ax_config.experiment.minimize": False}


def sweeper_optimizes() -> bool:
    """Return whether the sweep of this process chooses its next runs from the results of earlier runs."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().sweeper._target_.rpartition(".")[2] not in ("CellSweeper", "BasicSweeper")


def check_trial(config: Config) -> None:
    """Refuse a trial of an optimizing sweeper that would not maximize validation accuracy.

    Raises:
        ConfigError: there is no validation set, and the test set must not be used for selection; or the sweeper would
            minimize accuracy.
    """
    from hydra.core.hydra_config import HydraConfig

    if not config.data.holdout:
        raise ConfigError("a sweep that optimizes needs a validation set: set data.holdout=0.1")
    for key, largest in MAXIMIZING.items():
        value = OmegaConf.select(HydraConfig.get().sweeper, key)
        if value is not None and getattr(value, "name", value) != largest:
            raise ConfigError(f"the sweep would minimize the accuracy: set hydra.sweeper.{key}={largest}")


class _StoreOnce(argparse._StoreAction):
    """Store the value of an option, which must not be given twice: argparse by itself takes the last value."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string is not None:
            given = vars(namespace).setdefault("_given", set())
            if self.dest in given:
                parser.error(f"argument {option_string}: given twice")
            given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Different(_StoreOnce):
    """Store paths, which must differ."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        places = [os.path.realpath(path) for path in values]
        for path, place in zip(values, places, strict=True):
            if places.count(place) > 1:
                parser.error(f"{path} is given twice")
        super().__call__(parser, namespace, values, option_string)


class ScriptParser(argparse.ArgumentParser):
    """A parser whose help is the script's docstring; it reports errors in one line with exit code 2."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    def add_runs(self) -> None:
        """Add RUN ..., the folders of runs."""
        meaning = "run folders of finished runs"
        self.add_argument("runs", type=a_path, nargs="*", action=_Different, metavar="RUN", help=meaning)

    def add_results(self, may_be_new: bool = False) -> None:
        """Add --results, the folder of collected results."""
        kind = a_path if may_be_new else existing_folder
        self.add_argument(
            "--results", type=kind, default=RESULTS, metavar="FOLDER", help="results folder; results/ by default"
        )

    def add_device(self, default: str = "cpu") -> None:
        """Add --device."""
        self.add_argument("--device", default=default, help="auto, cpu, cuda, cuda:N or mps")

    def add_data(self) -> None:
        """Add --data, the folder of the data set of a run or of a setting."""
        self.add_argument("--data", type=a_place, metavar="FOLDER", help="folder of the data, if it has moved")

    def add_trust(self) -> None:
        """Add --trust, which may be given several times, for runs of a user's own models."""
        self.add_argument(
            "--trust", action="append", default=[], metavar="MODULE", help="your own module that defines a run's model"
        )


def whole_number(at_least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of at least `at_least`."""

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


def a_path(text: str) -> Path:
    """Convert an argument to a path. Shells do not expand the ~ of --results=~/results."""
    if not text:  # the path of nothing is the working folder
        raise argparse.ArgumentTypeError("the path is empty (an unset shell variable?)")
    path = Path(os.path.expanduser(text))
    for part in (path, *path.parents):
        if os.path.islink(part) and not os.path.exists(part):
            raise argparse.ArgumentTypeError(f"{part} is a link that leads nowhere (to {os.readlink(part)})")
    return path


def a_place(text: str) -> str:
    """Convert an argument to the path of data, as settings hold it."""
    return str(a_path(text))


def existing_folder(text: str) -> Path:
    """Convert an argument to the path of an existing folder."""
    path = a_path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text}: you have no permission to read this folder")
    return path


def check_names(parser: argparse.ArgumentParser, option: str, names: Iterable[str], known: Collection[str]) -> None:
    """Exit with an error for an unknown name, as `choices` does; for names that only slow imports know."""
    for name in names:
        if name not in known:
            parser.error(f"argument {option}: invalid choice: {name!r} (choose from {', '.join(known)})")


def check_target(parser: argparse.ArgumentParser, path: Path | None) -> None:
    """Exit with an error if `path` is a folder or its folder does not exist."""
    if path is not None and not path.absolute().parent.is_dir():
        parser.error(f"{path} cannot be written: the folder {path.parent} does not exist")
    if path is not None:
        require_targets(path)
