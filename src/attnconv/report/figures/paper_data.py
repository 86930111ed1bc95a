"""The data of the paper's figures: each loader returns its figure's data, or None if runs are missing.

A figure of one run uses the first study in STUDIES that has such a run, with the most images, then the lowest seed.
This module does not import matplotlib.
"""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from attnconv.files import reading
from attnconv.report.figures.data import CentersInTraining, Curve, Curves, Gaussians, Maps, Weights
from attnconv.report.figures.results import Results, Row, grid_of, read_heads, read_maps, title_of
from attnconv.runs.records import read_config
from attnconv.runs.status import collected_weights

STUDIES = {"mini": ("table1", "default", "frozen_heads", "data_size_epochs_20"), "small": ("small",),
           "paper": ("default",)}  # fmt: skip
TABLE1 = {"mini": "table1", "small": "small", "paper": "default"}
RECIPES = {"mini": "modern", "small": "modern", "paper": "paper"}
GENERALIZED = {"mini": "encodings", "small": "small", "paper": "default"}
CONTINUED = {"mini": 7, "small": 4, "paper": 100}  # epochs after pruning: a third of training
LAYER = 4  # of Figure 3
PANELS = 8  # number of epochs in Figure 3


def accuracy_by_epoch(results: Results, scale: str) -> Curves | None:
    """Return Figure 2: the models of Table 1 on all images."""
    runs = results.of_study(TABLE1[scale], scale=scale, recipe=RECIPES[scale], data="cifar10", fraction=1.0)
    if len({run["model"] for run in runs}) < 2:
        return None
    title = f"CIFAR-10, scale={scale}, recipe={RECIPES[scale]}, {runs[0]['precision']}"
    return Curves(title, [curve for run in runs for curve in curve_of(run, results.epochs(run), "epoch")])


def curve_of(run: Row, epochs: list[Row], axis: str) -> list[Curve]:
    """Return the test accuracy of a run by `epoch` or by CPU `minutes`; empty if none was measured.

    Args:
        epochs: the result of `Results.epochs`.
    """
    points, seconds = [], 0.0
    for record in epochs:
        spent = record.get("train_cpu_seconds")
        seconds += math.nan if spent is None else spent
        at = float(record["epoch"]) if axis == "epoch" else seconds / 60
        if not math.isnan(at) and record.get("test/acc") is not None:
            points.append((at, float(record["test/acc"])))
    return [Curve(run["model"], int(run["seed"]), *map(list, zip(*points, strict=True)))] if points else []


def gaussians(
    results: Results, scale: str, model: str = "sa_quadratic", study: dict[str, str] | None = None
) -> Gaussians | None:
    """Return Figures 4, 12 and 14: centers and spreads after the last epoch.

    Args:
        study: by scale, the study with the run, if it is not in STUDIES.
    """
    run = _run(results, model, scale, "heads.jsonl", (study[scale],) if study else ())
    return None if run is None else gaussians_of(results.folder(run), title_of(run))


def gaussians_of(folder: Path, title: str) -> Gaussians:
    """Return the heads of a run after its last recorded epoch."""
    last = read_heads(folder)[-1]
    with reading(folder / "heads.jsonl"):
        return Gaussians.of(title, grid_of(folder, read_config(folder)), last)


def centers_in_training(results: Results, scale: str) -> CentersInTraining | None:
    """Return Figure 3: centers of layer 4."""
    run = _run(results, "sa_quadratic", scale, "heads.jsonl")
    return None if run is None else centers_in_training_of(results.folder(run), title_of(run))


def centers_in_training_of(folder: Path, title: str) -> CentersInTraining:
    """Return the centers of one layer's heads after up to PANELS epochs, mostly early ones, where most moves."""
    lines = read_heads(folder)
    last = len(lines) - 1
    chosen = [lines[index] for index in sorted({round(last * (step / (PANELS - 1)) ** 1.5) for step in range(PANELS)})]
    with reading(folder / "heads.jsonl"):
        layer = min(LAYER, len(lines[-1]["centers"]))
        centers = np.array([line["centers"][layer - 1] for line in chosen], float)
    return CentersInTraining(
        title, grid_of(folder, read_config(folder)), layer, [line["epoch"] for line in chosen], centers
    )


def pruned(results: Results, scale: str) -> Curves | None:
    """Return Figure 13: a network with heads of any covariance, and its pruned version, trained further."""
    wanted = {"scale": scale, "recipe": RECIPES[scale], "data": "cifar10", "fraction": 1.0}
    whole = results.of_study(GENERALIZED[scale], model="sa_quadratic_generalized", **wanted)
    later = results.of_study("pruned", model="sa_quadratic_pruned", **wanted)
    pairs = [(first, second) for first in whole for second in later if first["seed"] == second["seed"]]
    if not pairs:
        return None
    found = []
    for first, second in pairs:
        found += curve_of(first, results.epochs(first), "epoch")
        for curve in curve_of(second, results.epochs(second), "epoch"):
            found.append(replace(curve, at=[epoch + first["epochs"] for epoch in curve.at]))
    return Curves(f"CIFAR-10, scale={scale}, {whole[0]['precision']}: pruned and trained further", found)


def maps(results: Results, scale: str, model: str) -> Maps | None:
    """Return Figures 5 and 6: where the central pixel attends."""
    run = _run(results, model, scale, "attention_maps.npy")
    return None if run is None else Maps(title_of(run), read_maps(results.folder(run)))


def weights(results: Results, scale: str) -> Weights | None:
    """Return Figures 7 to 10: a network with content attention whose weights are in results/weights/."""
    runs = [run for study in STUDIES[scale] for run in results.of_study(study, model="sa_learned_content", scale=scale)]
    for run in runs:
        file = collected_weights(results.path, run["run"])
        if file.exists():
            return weights_of(results.folder(run), file, title_of(run))
    return None


def weights_of(folder: Path, file: Path, title: str) -> Weights:
    """Return a run with its weight file."""
    return Weights(title, folder, file, hashlib.sha256(file.read_bytes()).hexdigest())


def _run(results: Results, model: str, scale: str, file: str, studies: tuple[str, ...] = ()) -> Row | None:
    wanted = {"model": model, "scale": scale, "recipe": RECIPES[scale], "data": "cifar10"}
    return results.best_run(studies or STUDIES[scale], file, **wanted)
