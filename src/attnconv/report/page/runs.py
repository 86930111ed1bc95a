"""The page's data about one run: its configuration, heads during training, maps and weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnconv.files import read_json_lines, reading
from attnconv.models.weight_files import read_weights
from attnconv.report.figures.data import stacked
from attnconv.report.page.command import command_of
from attnconv.report.page.images import packed
from attnconv.runs.records import name_of, read_finished

# Facts from result.json; older runs lack some.
FACTS = (
    "model", "recipe", "scale", "data", "seed", "fraction", "train_images", "epochs", "parameters", "test_acc",
    "seconds", "cpu_seconds", "precision", "device", "commit", "data_hash",
)  # fmt: skip
CURVES = ("train/loss", "train/acc", "val/acc", "test/acc")
POSITIONS = "encoding."  # in the names of the tensors that position-only attention needs


@dataclass(frozen=True)
class Shown:
    """A run to show.

    Attributes:
        folder: the run folder.
        weights: its weights, or None.
        live: whether all weights are in the page, so that it can run the network; else only those of encodings.
        link: from the page to the folder.
    """

    folder: Path
    weights: Path | None
    live: bool
    link: str


def describe(
    shown: Shown, images: tuple[int, int, int], moments: tuple[list[float], list[float]] | None = None
) -> dict[str, Any]:
    """Return the page's data about a run, packed.

    Args:
        images: (C, height, width) of its data.
        moments: mean and standard deviation per channel of the network's input, if its configuration leaves them to the
            data.

    Raises:
        Damaged: it is not a finished run; FileError: one of its files is damaged.
    """
    config, result, metrics = read_finished(shown.folder)
    model = config["model"]
    patch = model.get("patch", 1)
    mean, std = moments or (config["data"].get("mean"), config["data"].get("std"))
    with reading(shown.folder / "config.yaml"):
        grid = [images[1] // patch, images[2] // patch]
        mixer = _plain(model["mixer"]) if "mixer" in model else None
    return {
        **facts(config, result, shown.link),
        "image": images,
        "patch": patch,
        "grid": grid,
        "mean": mean,
        "std": std,
        "layers": model.get("layers"),
        "heads": model.get("heads"),
        "mixer": mixer,
        "tensors": _tensors(shown),
        "history": _history(shown.folder / "heads.jsonl"),
        "maps": _maps(shown.folder / "attention_maps.npy"),
        "curves": {"epoch": [line["epoch"] for line in metrics]}
        | {name: [line.get(name) for line in metrics] for name in CURVES if any(name in line for line in metrics)},
    }


def facts(config: dict[str, Any], result: dict[str, Any], link: str) -> dict[str, Any]:
    """Return the page's facts about any run: name, link, command and results."""
    about = {"run": name_of(config), "link": link, "command": command_of(config)}
    return about | {fact: result.get(fact) for fact in FACTS}


def _plain(node: Any) -> Any:
    """Return a node of the model's configuration with its class by its last name: {target: PositionalAttention}."""
    if not isinstance(node, dict):
        return node
    plain = {key: _plain(value) for key, value in node.items() if not key.startswith("_")}
    return {"target": node["_target_"].rpartition(".")[2], **plain} if "_target_" in node else plain


def _tensors(shown: Shown) -> dict[str, Any] | None:
    """Return the tensors that the page computes with: those of encodings in up to float32, others in float16."""
    if shown.weights is None:
        return None
    found: dict[str, Tensor] = read_weights(shown.weights)
    return {
        name: packed(
            (tensor.half() if POSITIONS not in name or tensor.dtype == torch.float16 else tensor.float()).numpy()
        )
        for name, tensor in found.items()
        if tensor.is_floating_point() and (shown.live or POSITIONS in name)
    }


def _history(path: Path) -> dict[str, Any] | None:
    """Return centers (E, L, N, 2) and spreads (E, L, N[, 2, 2]) of Gaussian heads by epoch.

    They are nan for heads that a layer lacks.
    """
    if not path.exists():
        return None
    lines = read_json_lines(path, ("epoch", "centers", "spreads"))
    with reading(path):
        by_name = {name: [stacked(line[name]) for line in lines] for name in ("centers", "spreads")}
        arrays = {name: np.array(by_epoch, np.float32) for name, by_epoch in by_name.items()}
        if arrays["centers"].shape[3:] != (2,) or arrays["spreads"].shape[:3] != arrays["centers"].shape[:3]:
            raise ValueError(f"centers {arrays['centers'].shape} and spreads {arrays['spreads'].shape}")
    return {"epochs": [line["epoch"] for line in lines], **{name: packed(array) for name, array in arrays.items()}}


def _maps(path: Path) -> dict[str, Any] | None:
    """Return the attention of the central pixel, (L, N, H, W), nan for heads that a layer lacks."""
    if not path.exists():
        return None
    with reading(path):
        maps = np.load(path, allow_pickle=False).astype(np.float16)
        if maps.ndim != 4:
            raise ValueError(f"the shape {maps.shape} is not (layers, heads, height, width)")
        return packed(maps)
