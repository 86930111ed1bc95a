"""A trained network and its data, from a run folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from attnconv.config import Config
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.errors import RunFolderError
from attnconv.models.build import build_model
from attnconv.models.match import resolve_node
from attnconv.tracking.identity import differences, in_words
from attnconv.tracking.states import Damaged, read_config


@dataclass
class Trained:
    """A network with its trained weights, in evaluation mode, and the data that it was trained and tested on."""

    folder: Path
    config: Config
    data: DataSet
    model: nn.Module


def load_trained(folder: Path, root: str | None = None, device: str = "cpu") -> Trained:
    """Build the network of a finished run and give it its weights.

    Args:
        folder: a run folder with config.yaml and weights.safetensors.
        root: where the data is, if not where the run found it.

    Raises:
        RunFolderError: there is no finished run; DataError, ConfigError: data or model are not as the run needs them.
    """
    config = read_run_config(folder)
    if root is not None:
        config.data.root = root
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
    model.load_state_dict(load_file(weights))
    return Trained(folder, config, data, model.to(device).eval())


def read_run_config(folder: Path) -> Config:
    """The configuration of a run; what is younger than its config.yaml has its default.

    Raises:
        RunFolderError: there is none.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), read_config(folder)))
    except Damaged as damage:
        raise RunFolderError(f"{folder} is no run folder: {damage}") from damage
    assert isinstance(config, Config)
    return config


def build_untrained(config: Config, data: DataSet) -> nn.Module:
    """The network as the run began with it, on the CPU."""
    node, _ = resolve_node(config, data.image_shape, data.classes)
    torch.manual_seed(config.seed)
    return build_model(node, data.image_shape, data.classes)
