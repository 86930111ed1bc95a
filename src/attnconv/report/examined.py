"""The files about one network in a run folder: how convolutional it is, and its conversion to attention.

scripts/probe.py writes probe.json, and scripts/conv_to_attention.py writes conversion.json.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from attnconv.files import read_json, reading
from attnconv.runs.status import collected_folder

PROBE, CONVERSION = "probe.json", "conversion.json"
KEYS = {
    PROBE: ("dirty", "images", "fit_images", "heads", "layers"),
    CONVERSION: (
        "dirty", "images", "heads", "layers", "largest_difference", "largest_logit", "predictions_changed",
        *(f"{kind}_{of}" for kind in ("convolution", "attention") for of in ("acc", "parameters", "flops", "seconds")),
    ),
}  # fmt: skip
OF_HEADS = {
    "distance": "distance", "spread": "spread", "entropy": "entropy", "one_pixel": "one pixel",
    "by_shift": "by shift", "by_place": "by place", "by_content": "by content",
}  # fmt: skip
OF_LAYERS = {"joint_residual": "joint residual", "conv1": "1x1", "conv3": "3x3", "conv5": "5x5", "conv7": "7x7"}
NUMBERS = {**OF_HEADS, **OF_LAYERS}


def read_examination(folder: Path, file: str) -> dict[str, Any] | None:
    """Return the PROBE or the CONVERSION of a run; None if there is none, or if the code had uncommitted changes.

    Raises:
        FileError: the file is damaged or incomplete.
    """
    path = folder / file
    if not path.exists():
        return None
    found = read_json(path, KEYS[file])
    if file == PROBE:
        with reading(path):
            layer_shares(found)  # the content that pages and figures need
            for layer in layer_rows(found):
                for name, values in layer.items():
                    if not all(value is None or math.isfinite(value) for value in values):
                        raise ValueError(f"{name} is not finite")
    return None if found["dirty"] else found


def read_examined(results: Path, runs: Iterable[dict[str, Any]], file: str) -> list[tuple[dict[str, Any], Any]]:
    """Return those of some published runs that `read_examination` finds a file for, with its content."""
    found = [(run, read_examination(collected_folder(results, run["run"]), file)) for run in runs]
    return [(run, examined) for run, examined in found if examined is not None]


def layer_rows(probe: dict[str, Any]) -> list[dict[str, tuple[float | None, float | None]]]:
    """Return each number of each layer before and after training; those of heads are averaged over the layer.

    Numbers of layers are None in files that are older than the joint residual, because their definitions differed.
    """
    layers: dict[int, dict[str, dict[str, float | None]]] = {}
    for row in probe["layers"]:
        values = {name: row[name] if "joint_residual" in row else None for name in OF_LAYERS}
        heads = [head for head in probe["heads"] if (head["layer"], head["weights"]) == (row["layer"], row["weights"])]
        values |= {name: fmean(head[name] for head in heads) for name in OF_HEADS}
        layers.setdefault(row["layer"], {})[row["weights"]] = values
    return [
        {name: (both["initial"][name], both["trained"][name]) for name in NUMBERS} for _, both in sorted(layers.items())
    ]


def layer_shares(probe: dict[str, Any]) -> dict[str, list[float]]:
    """Return the 3 x 3 share of every layer, initial and trained; nan where it could not be measured."""
    found: dict[str, list[float]] = {"initial": [], "trained": []}
    for layer in probe["layers"]:
        found[layer["weights"]].append(math.nan if layer["conv3"] is None else layer["conv3"])
    return found


def is_corrected(probe: dict[str, Any]) -> bool:
    """Return whether shares were corrected for the size of the fit; probes before the joint residual were not."""
    return all("joint_residual" in layer for layer in probe["layers"])
