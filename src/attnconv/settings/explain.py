"""Hydra's errors of composition in one line, with what to type instead."""

import re
import shlex
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from attnconv.errors import ConfigError, nearest
from attnconv.settings.types import converted

# The packages of Hydra's plugins, by option.
PLUGINS = {
    "optuna": "hydra-optuna-sweeper",
    "ax": "hydra-ax-sweeper",
    "nevergrad": "hydra-nevergrad-sweeper",
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
}
# What to set settings without a default to.
EXAMPLES = {"model.start": "RUN/weights.safetensors", "model.timm_name": "resnet18, or another model of timm"}


def explain_composition_error(error: Exception, valid_keys: Iterable[str]) -> str:
    """Return Hydra's message in one line, with the nearest valid key or option."""
    argument = _explain_argument(error, valid_keys)
    if argument is not None:
        return argument
    text = str(error)
    where = re.search(r"In '([^']+)'", text)
    # What the two files that every command reads choose exists, so the choice is one of the command line.
    prefix = f"{_file(where.group(1))}: " if where and where.group(1) not in ("config", "hydra/config") else ""

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
        if group == "experiment" or (where and "@" in key.group(1)):
            return f"{prefix}its first line must be # @package _global_, without a byte order mark before it"
        if key.group(1) in valid and group == "model":
            return (
                f"{prefix}the chosen model has no setting '{key.group(1)}'; other models have. If its class takes this "
                f"argument, write +{key.group(1)}=VALUE"
            )
        if key.group(1) in valid:
            return f"{prefix}'{key.group(1)}' cannot be set, because {group} holds no settings"
        return f"{prefix}unknown setting '{key.group(1)}'{nearest(key.group(1), valid)}"

    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        refers = "while resolving interpolation" in text  # the full_key, to the missing one
        name = key.group(1) if key and not refers else missing.group(1)
        return f"{name} has no default: set {name}={EXAMPLES.get(name, 'VALUE')}"

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


def _file(name: str) -> str:
    """Return the file of a configuration, which may also be in the folder of --config-dir."""
    from attnconv.config import CONFIGS

    return f"configs/{name}.yaml" if (CONFIGS / f"{name}.yaml").exists() else f"{name}.yaml"


def _explain_argument(error: Exception, valid_keys: Iterable[str]) -> str | None:
    """Return what is wrong with an argument that Hydra cannot read and how to write it, or None for other errors."""
    from hydra.errors import OverrideParseException

    text = str(error)
    several = re.match(r"Ambiguous value for argument '(.*)'|Sweep parameters '(.*)' requires", text)
    if several:
        return _several_values(several.group(1) or several.group(2))
    if "does not support sweep type" in text:
        return "an interval needs an optimizing sweeper; list the values, KEY=A,B,C, or write KEY=range(START,END,STEP)"
    if not isinstance(error, OverrideParseException):
        return None
    key, equals, value = error.override.partition("=")
    if not re.fullmatch(r"[\w$./:@-]+", key.lstrip("+~"), flags=re.ASCII):
        return f"unknown setting '{key}'{nearest(key, valid_keys) if key else ''}"
    if not equals:
        return f"the argument '{key}' has no value: write {key}=VALUE"
    function = re.match(r"Error parsing override .*\n(.* while evaluating '.*)", text)
    if function:  # of a sweep, such as range(): it could be read, but not evaluated
        return f"{error.override}: {function.group(1)}"
    kind, said = _type_of(key), f"{error.override} cannot be parsed"
    kinds = (kind, *get_args(kind))
    if any(get_origin(one) is list for one in kinds):
        return f"{said}: write {key}=[A,B] for a list"
    if kind is None or str in kinds:
        return f"{said}; quote the value for the shell and for Hydra: {quoted(error.override)}"
    try:
        return f"{said} as {converted(key, value, kind)}"
    except ConfigError as refusal:
        return str(refusal)


def _type_of(key: str) -> Any:
    """Return the type of a setting, None for others."""
    from attnconv.config import Config
    from attnconv.settings.overrides import plain_settings

    return dict(plain_settings(Config)).get(key.lstrip("+"))


def _several_values(override: str) -> str:
    """Return what an override with several values could have meant, by the type of its setting."""
    from attnconv.config import CONFIGS

    key = override.partition("=")[0]
    kind = _type_of(key)
    is_group = (CONFIGS / key.lstrip("+")).is_dir()
    ways = ["add -m for one run per value"]
    if not is_group and (kind is None or get_origin(kind) is list):
        ways.append(f"write {key}=[A,B] for a list")
    if not is_group and (kind is None or str in (kind, *get_args(kind))):
        ways.append(f"write {quoted(override)} for one text")
    return f"{override} has several values: {', or '.join(ways)}"


def quoted(override: str) -> str:
    """Return an override that sets its value as one string, quoted for the shell."""
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}=" + in_quotes(value.strip("\"'")))


def in_quotes(text: str) -> str:
    """Return a text that Hydra reads as one string, in double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
