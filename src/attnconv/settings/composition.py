"""Compose configs/ as Hydra does. A choice of files takes Hydra a quarter of a second, so it is composed only once."""

import pickle
from collections.abc import Sequence
from functools import cache

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from attnconv.config import CONFIGS, register_schema
from attnconv.files import read_yaml

Stamps = tuple[tuple[str, int], ...]


def composed(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that Hydra composes, with its interpolations unresolved and without Hydra's settings.

    Raises:
        HydraException: an override or a file is invalid.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(override.key_or_group == "hydra.searchpath" for override in parsed):  # files outside of configs/
        return _compose(overrides)
    ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
    files = [override for override in parsed if _chooses_files(override)]
    found = _of_files(tuple(str(override.input_line) for override in files))
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if override not in files], found)
    return found


def swept_by(experiment: str) -> dict[str, str]:
    """Return the values that an experiment file sweeps, by setting."""
    found = read_yaml(CONFIGS / "experiment" / f"{experiment}.yaml")["hydra"]["sweeper"]["params"]
    return {str(key): str(values) for key, values in found.items()}


def _chooses_files(override: Override) -> bool:
    return override.is_hydra_override() or (CONFIGS / override.key_or_group).is_dir()


def _of_files(files: tuple[str, ...]) -> DictConfig:
    copied: DictConfig = pickle.loads(_pickled(files, _stamps()))  # six times as fast as copy.deepcopy
    return copied


@cache
def _pickled(files: tuple[str, ...], _: Stamps) -> bytes:
    return pickle.dumps(_compose(files))


def _compose(overrides: Sequence[str]) -> DictConfig:
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", list(overrides))


def _stamps() -> Stamps:
    """Return when each file in configs/ was changed, so that a notebook sees the change."""
    return tuple((str(path), path.stat().st_mtime_ns) for path in sorted(CONFIGS.rglob("*.yaml")))
