"""Hydra's composition with a cache: each choice of files is composed once, and other overrides apply to a copy.

A command composes all files two or three times, a sixth of a second each, and the tests run a thousand commands. Each
override is parsed once, and each YAML file is read once.
"""

import os
import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from attnconv.config import CONFIGS

HYDRAS_OWN = ConfigLoaderImpl._load_configuration_impl
HYDRAS_PARSER, HYDRAS_YAML = OverridesParser.parse_rule, OmegaConf.load
_found: dict[Any, bytes] = {}
_parsed: dict[tuple[str, str], bytes] = {}
_read: dict[str, bytes] = {}


def load(
    self: ConfigLoaderImpl,
    config_name: str | None,
    overrides: list[str],
    run_mode: RunMode,
    from_shell: bool = True,
    validate_sweep_overrides: bool = True,
) -> DictConfig:
    """Compose like ConfigLoaderImpl._load_configuration_impl, with a cache unless a search path is set."""
    places = [str(place.path).removeprefix("file://") for place in self.get_search_path().get_path()]
    folders = [place for place in places if "://" not in place]
    if str(CONFIGS) not in folders or any("searchpath" in override for override in overrides):
        return HYDRAS_OWN(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
    parsed = OverridesParser.create().parse_overrides(overrides)
    if validate_sweep_overrides:
        self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
    values = [override for override in parsed if not _chooses_files(self, override)]
    files = [str(override.input_line) for override in parsed if override not in values]
    sweeps = any(override.is_sweep_override() for override in parsed)
    others = sorted(path for folder in folders if folder != str(CONFIGS) for path in Path(folder).rglob("*.yaml"))
    more = [(str(path), path.read_bytes()) for path in others]
    key = (config_name, run_mode if sweeps else None, JobRuntime.instance().get("name"), *folders, *more, *files)
    if key not in _found:
        _found[key] = pickle.dumps(HYDRAS_OWN(self, config_name, files, run_mode, from_shell, False))
    config: DictConfig = pickle.loads(_found[key])
    # Hydra leaves values of a sweep to the sweeper.
    self._apply_overrides_to_config([override for override in values if not override.is_sweep_override()], config)
    of_task = [override for override in parsed if not override.is_hydra_override()]
    config.hydra.overrides.task = [override.input_line for override in of_task]
    named = config.hydra.job.config.override_dirname
    config.hydra.job.override_dirname = get_overrides_dirname(of_task, named.exclude_keys, named.item_sep, named.kv_sep)
    config.hydra.runtime.cwd = os.getcwd()
    return config


def parse_rule(self: OverridesParser, text: str, rule: str) -> Any:
    """Parse like OverridesParser.parse_rule, each text once; errors are not kept."""
    if (text, rule) not in _parsed:
        _parsed[text, rule] = pickle.dumps(HYDRAS_PARSER(self, text, rule))
    return pickle.loads(_parsed[text, rule])


def read_yaml(file: Any) -> Any:
    """Read like OmegaConf.load, each content once; errors are not kept."""
    if isinstance(file, str | Path):
        with open(file, encoding="utf-8") as opened:
            return read_yaml(opened)
    place = file.tell()
    text = file.read()
    if text not in _read:
        file.seek(place)
        _read[text] = pickle.dumps(HYDRAS_YAML(file))
    return pickle.loads(_read[text])


def _chooses_files(loader: ConfigLoaderImpl, override: Override) -> bool:
    chosen = override.is_hydra_override() or override.package is not None
    return chosen or loader.repository.group_exists(override.key_or_group)
