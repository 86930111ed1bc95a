"""A trained network and its data, from a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from attnconv.config import Config, check_limits
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.errors import ConfigError, RunFolderError
from attnconv.files import in_one_line, near
from attnconv.models.build import build_model
from attnconv.models.match import resolve_node
from attnconv.models.targets import refuse_foreign_targets
from attnconv.models.weight_files import SUFFIXES, load_weights
from attnconv.runs.identity import differences, in_words
from attnconv.runs.status import Damaged, find_folders, read_config, read_result


@dataclass
class Trained:
    """A network with its trained weights, in evaluation mode, and the data that it was trained and tested on."""

    folder: Path
    config: Config
    data: DataSet
    model: nn.Module


def load_trained(
    folder: Path,
    root: str | None = None,
    device: str = "cpu",
    weights: Path | None = None,
    trusted: Sequence[str] = (),
) -> Trained:
    """Build the network of a run and give it its weights.

    Args:
        folder: a run folder with config.yaml and weights.safetensors.
        root: where the data is, if not where the run found it.
        weights: a file of weights, if not that of the finished run.
        trusted: see `read_run_config`.

    Raises:
        RunFolderError: there is no finished run; FileError: its weights are damaged, or of another network; DataError,
            ConfigError: data or model are not as the run needs them.
    """
    config = read_run_config(folder, trusted)
    if root is not None:
        config.data.root = root
    if weights is None:
        weights = folder / "weights.safetensors"
        if not weights.exists():
            raise RunFolderError(
                f"{folder} has no weights.safetensors: the run is not finished, or only its numbers are here"
            )
    data = load_dataset(config.data, torch.device(device))
    different = differences(folder, config, data_hash=data.source_sha256)
    if different:
        raise RunFolderError(f"{folder} was trained on other data ({in_words(different)})")
    model = build_untrained(config, data)
    load_weights(model, weights, data.classes)
    return Trained(folder, config, data, model.to(device).eval())


def read_run_config(folder: Path, trusted: Sequence[str] = ()) -> Config:
    """The configuration of a run; what is younger than its config.yaml has its default.

    Args:
        trusted: packages besides attnconv, torch.nn and timm from which the run's model may be built.

    Raises:
        RunFolderError: there is none, or a newer version wrote it.
        ConfigError: a value is outside its limits, or the model is code from elsewhere.
    """
    if not folder.is_dir():
        what = "is a file, not a run folder" if folder.exists() else f"does not exist{near(folder)}"
        raise RunFolderError(f"{folder} {what}")
    try:
        plain = read_config(folder)
        read_result(folder)  # says so if a newer version wrote it
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except Damaged as damage:
        raise RunFolderError(f"{folder} is not a run folder: {damage}{_inside(folder)}") from damage
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(
            f"{folder}/config.yaml is not a configuration of this version ({reason}); was it written by a newer one?"
        ) from error
    assert isinstance(config, Config)
    try:
        check_limits(config)
        if "_target_" not in config.model:
            raise ConfigError("model lacks _target_")
        refuse_foreign_targets(config.model, trusted)
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.yaml: {in_one_line(error)}") from error
    return config


def run_folder_of(weights: Path) -> Path | None:
    """The run folder that a file of weights lies in: RUN/weights.safetensors, RUN/checkpoints/step*.pt."""
    return next((parent for parent in weights.parents[:2] if (parent / "config.yaml").exists()), None)


def _inside(folder: Path) -> str:
    """A suffix with what there is in a folder that is not a run: runs, or files of weights."""
    runs = find_folders(folder)
    if runs:
        return f"; runs below it: {runs[0]}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    files = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    return f"; files of weights in it: {', '.join(files[:3])}" if files else ""


def build_untrained(config: Config, data: DataSet) -> nn.Module:
    """The network as the run began with it, on the CPU."""
    node, _ = resolve_node(config, data.image_shape, data.classes)
    torch.manual_seed(config.seed)
    return build_model(node, data.image_shape, data.classes)
