"""The files about one network in a run folder: how convolutional it is, and its conversion to attention.

scripts/probe.py writes probe.json, and scripts/conv_to_attention.py writes conversion.json.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from attnconv.files import read_json, reading
from attnconv.runs.bounds import AMOUNT, COUNT, ROUNDED_SHARE, SHARE, Number, check_numbers
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
SOME = Number("a whole number of at least 1", 1, whole=True)
BOUNDS = {
    **dict.fromkeys(("images", "heads", "layers"), SOME),
    **dict.fromkeys(("largest_difference", "largest_logit", "logits_range", "alpha"), AMOUNT),
    "predictions_changed": COUNT,
    **dict.fromkeys(("convolution_acc", "attention_acc"), SHARE),
    **{f"{kind}_{of}": COUNT for kind in ("convolution", "attention") for of in ("parameters", "flops")},
    **dict.fromkeys(("convolution_seconds", "attention_seconds"), AMOUNT),
}
BOUNDS_OF_PROBE = {
    **dict.fromkeys(("distance", "spread", "entropy", "radius_50", "radius_90"), AMOUNT),
    **dict.fromkeys(("one_pixel", "by_shift", "by_place", "by_content", "joint_residual"), ROUNDED_SHARE),
    # A fit may explain less than nothing of images that it has not seen.
    **dict.fromkeys(("conv1", "conv3", "conv5", "conv7"), Number("a number of at most 1", high=ROUNDED_SHARE.high)),
}


def read_examination(folder: Path, file: str) -> dict[str, Any] | None:
    """Return the PROBE or the CONVERSION of a run; None if there is none, or if the code had uncommitted changes.

    Raises:
        FileError: the file is damaged or incomplete.
    """
    path = folder / file
    if not path.exists():
        return None
    found = read_json(path, KEYS[file])
    with reading(path):
        if file == CONVERSION:
            _check_conversion("it", found)
        else:
            for row in (*found["heads"], *found["layers"]):
                check_numbers(f"layer {row['layer']}", row, BOUNDS_OF_PROBE)
            layer_shares(found)  # the content that pages and figures need
            layer_rows(found)
    return None if found["dirty"] else found


def read_sweep(results: Path) -> list[dict[str, Any]]:
    """Return the networks of theorem/sweep.json, of which some were refused; none if there is no published sweep.

    Raises:
        FileError: the file is damaged or incomplete.
    """
    path = results / "theorem/sweep.json"
    if not path.exists():
        return []
    found = read_json(path, ("rows", "dirty"))
    with reading(path):
        for row in found["rows"]:
            if "refused" not in row:
                _check_conversion(row["model"], row)
    return [] if found["dirty"] else list(found["rows"])


def read_calibration(results: Path) -> dict[str, Any] | None:
    """Return theorem/calibration.json, the probe's numbers for attention of known kinds, or None.

    Raises:
        FileError: the file is damaged or incomplete.
    """
    path = results / "theorem/calibration.json"
    if not path.exists():
        return None
    found = read_json(path, ("positions", "rows"))
    with reading(path):
        for row in found["rows"]:
            for key in ("attention", *NUMBERS):
                row[key]  # a missing key is a KeyError
            check_numbers(row["attention"], row, BOUNDS_OF_PROBE)
    return found


def _check_conversion(what: str, found: dict[str, Any]) -> None:
    """Raise ValueError for an impossible number of a conversion."""
    check_numbers(what, found, BOUNDS)
    if found["predictions_changed"] > found["images"]:
        raise ValueError(f"{what} has {found['predictions_changed']} changed predictions of {found['images']}")


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
