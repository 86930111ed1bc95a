"""The runs and images on the page: those of results/, or a user's own."""

import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attnconv.config import DataConfig
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.data.root import move_root
from attnconv.errors import RunFolderError
from attnconv.files import FileError, reading
from attnconv.report.collect import IMAGES, LABELS
from attnconv.report.colors import BLACK, HEADS, style_of
from attnconv.report.complaints import noting
from attnconv.report.page.curves import data_size, points
from attnconv.report.page.images import Images, first_of_each_class, read_images
from attnconv.report.page.runs import Shown, describe
from attnconv.report.page.study import calibration, claims, probe_of
from attnconv.report.runs_table import read_runs
from attnconv.runs.identity import differences, listed
from attnconv.runs.load import read_run_config
from attnconv.runs.records import read_config, read_finished
from attnconv.runs.status import collected_folder, collected_weights, read_state

# Networks whose weights are in the page, so that it can run them: position-only heads, and content heads.
LIVE = ("sa_quadratic", "sa_learned_content")
RECORDED = ("attention_maps.npy", "heads.jsonl")  # records of where heads looked


def _check_labels(images: Images, results: Path) -> None:
    """Raise FileError if the classes of the page's images are not those of the test set."""
    path = results / LABELS
    if not path.exists():
        return
    with reading(path):
        labels = np.load(path, allow_pickle=False)
        wrong = max(images.places) >= len(labels) or (labels[images.places] != images.labels).any()
    if wrong:
        raise FileError(f"{results / IMAGES} and {path} give an image two classes: restore them")


def from_results(results: Path, page: Path, errors: list[str]) -> dict[str, Any]:
    """Return the data of the page for results/: the best documented runs of each model with heads.

    Args:
        errors: receives problems with runs and files that the page leaves out.

    Raises:
        UserError: the table of runs or the images are missing or damaged.
    """
    images = read_images(results / IMAGES)
    _check_labels(images, results)
    table = read_runs(results / "runs.csv")
    if table and all(row["data_hash"] != images.data_hash for row in table):
        errors.append(f"no run in {results}/runs.csv has the data_hash of {results / IMAGES}, so the page shows none")
    rows = sound_runs(table, results, errors)
    of_images = [row for row in rows if row["data_hash"] == images.data_hash]
    runs: list[dict[str, Any]] = []
    for row in best_documented(of_images, results):
        folder, weights = collected_folder(results, row["run"]), collected_weights(results, row["run"])
        live = row["model"] in LIVE and row["scale"] == "mini"
        shown = Shown(folder, weights if weights.exists() else None, live, _between(page, folder))
        with noting(errors):
            runs.append(describe(shown, images.shape))
    probed: list[dict[str, Any] | None] = []
    for row in of_images:
        folder = collected_folder(results, row["run"])
        with noting(errors):
            probed.append(probe_of(folder, _between(page, folder), images.shape))
    found: dict[str, Any] = {
        "made": "make page",
        "images": {images.data_hash: images.describe()},
        "runs": runs,
        "probes": corrected_first([one for one in probed if one is not None]),
        "calibration": None,
        "claims": None,
        "points": points(of_images, results, lambda run: _between(page, collected_folder(results, run))),
        "protocols": data_size(rows),
        "colors": colors(row["model"] for row in rows),
    }
    tell_apart(runs, found["probes"])
    with noting(errors):
        found["calibration"] = calibration(results)
    with noting(errors):
        claimed = {"page": _between(page, results / "claims.md"), "rows": claims(results, rows, errors)}
        found["claims"] = claimed
    return found


def corrected_first(probed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort probed runs: first those with current measures, then those with only some of them."""
    return sorted(probed, key=lambda one: any(layer["joint_residual"][1] is None for layer in one["layers"]))


def sound_runs(rows: Iterable[dict[str, Any]], results: Path, errors: list[str]) -> list[dict[str, Any]]:
    """Return the rows of runs.csv with a complete run folder, and record errors for the others."""
    sound = []
    for row in rows:
        with noting(errors):
            read_finished(collected_folder(results, row["run"]))
            sound.append(row)
    return sound


def from_runs(
    folders: Sequence[Path], root: str | None, page: Path, results: Path, trusted: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the data of a page for these finished runs, with all of their weights.

    Args:
        root: folder of the data, if it has moved.
        results: folder with the calibration of probes.
        trusted: see `read_run_config`.

    Raises:
        UserError: a folder is not a finished run, or its data is missing.
    """
    images: dict[str, Images] = {}
    runs = []
    for folder in folders:
        config, data = _data_of(folder, root, trusted)
        images.setdefault(data.source_sha256, first_of_each_class(data, config.source, config.task))
        weights = folder / "weights.safetensors"
        shown = Shown(folder, weights if weights.exists() else None, True, _between(page, folder))
        runs.append(describe(shown, data.image_shape, (data.test.mean.tolist(), data.test.std.tolist())))
    shipped = {digest: each.describe() for digest, each in images.items()}
    probed = [probe_of(folder, run["link"], run["image"]) for folder, run in zip(folders, runs, strict=True)]
    shown_probes = [one for one in probed if one is not None]
    found = {
        "images": shipped,
        "runs": runs,
        "probes": shown_probes,
        "calibration": calibration(results),
        "colors": colors(run["model"] for run in runs),
    }
    tell_apart(runs, shown_probes)
    return {"made": f"python scripts/make_page.py {shlex.join(map(str, folders))}"} | found


def tell_apart(*listed: list[dict[str, Any]]) -> None:
    """Add the folder to the names of runs that share a name: the page finds runs by their names."""
    folders: dict[str, set[str]] = {}
    for about in itertools.chain(*listed):
        folders.setdefault(about["run"], set()).add(about["link"])
    for about in itertools.chain(*listed):
        if len(folders[about["run"]]) > 1:
            about["run"] += f" in {about['link'].removesuffix('/' + about['run'])}"


def _data_of(folder: Path, root: str | None, trusted: Sequence[str]) -> tuple[DataConfig, DataSet]:
    """Return the data of a finished run, with its configuration."""
    config, state = read_run_config(folder, trusted), read_state(folder)
    if state.status != "done":
        why = f" ({state.detail})" if state.detail else ""
        raise RunFolderError(f"{folder} is {state.status}{why}: a page needs a finished run")
    if root is not None:
        move_root(config.data, root)
    data = load_dataset(config.data, torch.device("cpu"))
    different = differences(folder, config, data_hash=data.source_sha256)
    if different:
        raise RunFolderError(f"{folder} was trained on other data ({listed(different)}); set --data to its folder")
    return config.data, data


def colors(models: Iterable[str]) -> dict[str, Any]:
    """Return the colors of heads, and color and marker of models.

    Black stands for the color of text, which is light on dark screens.
    """
    of_models = {model: style_of(model) for model in models}
    return {
        "heads": list(HEADS),
        "models": {
            model: ["currentColor" if color == BLACK else color, marker] for model, (color, marker) in of_models.items()
        },
    }


def best_documented(rows: Iterable[dict[str, Any]], results: Path) -> list[dict[str, Any]]:
    """For each model and scale, return the run with most images that recorded its heads, and the one with weights.

    Our own runs come before those of others. Ties are resolved by maps, then by most epochs, then by the lowest seed.
    Models without heads are left out.
    """
    best: dict[tuple[str, str, bool], tuple[tuple[Any, ...], dict[str, Any]]] = {}
    for row in rows:
        folder = collected_folder(results, row["run"])
        if "mixer" not in read_config(folder)["model"]:
            continue
        recorded = [(folder / file).exists() for file in RECORDED]
        rank = (row["source"] is None, row["train_images"], *recorded, row["epochs"], -row["seed"])
        for live, known in ((True, collected_weights(results, row["run"]).exists()), (False, any(recorded))):
            key = (row["model"], row["scale"], live)
            if known and (key not in best or rank > best[key][0]):
                best[key] = (rank, row)
    chosen = {row["run"]: row for _, row in best.values()}
    order = {model: place for place, model in enumerate(LIVE)}
    return sorted(chosen.values(), key=lambda row: (
        order.get(row["model"], len(order)), row["model"], row["scale"], -row["train_images"]))  # fmt: skip


def _between(page: Path, folder: Path) -> str:
    """Return the relative path from the page to a folder."""
    return Path(os.path.relpath(folder.absolute(), page.absolute().parent)).as_posix()
