"""Load a trained network from a run folder, or by its name in results/weights/."""

import math
import os
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnconv.config import REPOSITORY, RESULTS, Config, DataConfig, check_limits, flatten
from attnconv.data.dataset import CIFAR10, DataSet, Preprocessing, load_dataset
from attnconv.data.root import holds_data, move_root
from attnconv.errors import ConfigError, RunFolderError, nearest
from attnconv.files import in_one_line, near, read_json, reading
from attnconv.models.build import build_seeded_model, refuse_foreign_targets
from attnconv.models.match import match_model
from attnconv.models.process_state import default_settings, kept_generators
from attnconv.models.pruned import PRUNED, PRUNED_BEFORE
from attnconv.models.weight_files import SUFFIXES, load_weights
from attnconv.runs.folder import PREPROCESSING_FILE
from attnconv.runs.identity import start_weights
from attnconv.runs.records import Damaged, read_config, read_data, read_result
from attnconv.runs.status import collected_folder, collected_weights, is_run_place
from attnconv.runs.trained import Trained
from attnconv.settings.types import plain_value, typed
from attnconv.training.device import choose_device, full_float32

PREPROCESSING_KEYS = ("image_shape", "class_names", "mean", "std")  # of preprocessing.json

LOOKED_INTO = 2_000  # folders, for a hint


@default_settings()
def load(
    run: str | Path,
    root: str | None = None,
    device: str = "cpu",
    weights: str | Path | None = None,
    trusted: Sequence[str] = (),
) -> Trained:
    """Load a trained network, ready to predict.

    Args:
        run: a run folder, or the name of a network whose weights are in results/weights/: its model, such as
            sa_quadratic, or its run, such as table1/sa_quadratic/mini-modern/frac1/seed0.
        root: folder of the data, if it has moved; read only when needed.
        device: cpu, cuda, cuda:N or mps.
        weights: a file of weights, if not that of the finished run.
        trusted: packages, besides attnconv, torch.nn and timm, that may define the run's model.

    Raises:
        RunFolderError: the run does not exist or is not finished.
        FileError: its weights are damaged or belong to another network.
        ConfigError: its configuration does not fit this version.
    """
    if not isinstance(run, str | os.PathLike):
        raise RunFolderError(f"a run is given by its folder or its name, not by a {type(run).__name__}")
    for name, value in (("root", root), ("weights", weights)):
        if not isinstance(value, str | os.PathLike | None):
            raise RunFolderError(f"{name} must be a path, not {value!r}")
        if value == "":  # the path of nothing is the working folder
            raise RunFolderError(f"{name} is empty (an unset variable?): leave it out")
    trusted = [trusted] if isinstance(trusted, str) else trusted or ()
    if not isinstance(trusted, Collection) or not all(isinstance(module, str) for module in trusted):
        raise ConfigError(f"trusted must be a list of names of modules, not {trusted!r}")
    folder = find_run(run)
    config = read_run_config(folder, tuple(trusted))
    if root is not None:
        move_root(config.data, root)
    else:
        config.data.root = _find_root(folder, config.data)
    weights = Path(os.path.expanduser(weights)) if weights else find_weights(folder)
    preprocessing = read_preprocessing(folder, config.data)
    if config.model["_target_"] != PRUNED and start_weights(flatten(config.model, "model.")):
        config.model["start"] = str(weights)  # they include the heads that the run started with
    model = build_untrained(config, preprocessing, recorded_widths(folder), weights)
    load_weights(model, weights, preprocessing.classes)
    full_float32()
    model.to(choose_device(device)).eval()
    return Trained(folder, config, preprocessing, model)


def _find_root(folder: Path, data: DataConfig) -> str:
    """Return the folder of a run's data: where it was, or where data.root leads from here or from the repository."""
    places = [read_data(folder).get("root", data.root), data.root, str(REPOSITORY / data.root)]
    return next((place for place in places if holds_data(Path(os.path.expanduser(place)), data.source)), data.root)


def find_run(run: str | Path, results: Path = RESULTS) -> Path:
    """Return the run folder for a path, or for the name of a network in results/weights/.

    Raises:
        RunFolderError: neither exists; the message lists similar names.
    """
    if not str(run):
        raise RunFolderError("the path of the run is empty (an unset variable?)")
    folder = Path(os.path.expanduser(run))
    try:
        exists = folder.exists()
    except OSError as error:
        raise RunFolderError(f"{str(run)[:80]} cannot be the path of a run: {error.strerror}") from error
    if exists or not _is_name(str(run).rstrip("/")):
        return folder
    run, names = str(run).rstrip("/"), committed_runs(results)
    found = [name for name in names if str(run) in (name, model_of(name))]
    found = [name for name in found if name.endswith("/frac1/seed0")] or found
    if len(found) > 1:
        raise RunFolderError(f"{results}/weights has {len(found)} networks named {run}: use {' or '.join(found)}")
    if not found:
        known = (
            nearest(str(run), [*names, *map(model_of, names)], "ls results/weights/*/*")
            if names
            else "; results/weights is empty"
        )
        raise RunFolderError(
            f"{run} is neither a run folder nor a network in results/weights{known}"
            f"{' To' if known.endswith('?') else '; to'} train one: python train.py model=NAME scale=mini"
        )
    return collected_folder(results, found[0])


def committed_runs(results: Path = RESULTS) -> list[str]:
    """Return the names of the runs whose weights are in results/weights/."""
    files = (results / "weights").glob("*/*/*/*/*.safetensors")
    return sorted(file.relative_to(results / "weights").with_suffix("").as_posix() for file in files)


def model_of(name: str) -> str:
    """Return the model in the name of a run."""
    return name.split("/")[1]


def find_weights(folder: Path) -> Path:
    """Return the weight file of a run; results/ keeps weights in a separate folder.

    Raises:
        RunFolderError: the run has no weights.
    """
    path = folder / "weights.safetensors"
    if path.exists():
        return path
    for results in folder.absolute().parents:
        if results.name == "runs":
            kept = collected_weights(results.parent, folder.absolute().relative_to(results).as_posix())
            if kept.exists():
                return kept
    raise RunFolderError(
        f"{folder} has no weights.safetensors: the run is not finished, or only its results were kept; "
        "rerun its command, or use a network in results/weights/, such as sa_quadratic"
    )


def _is_name(run: str) -> bool:
    """Return whether it can be the name of a model or a run, and not the path of a missing folder."""
    return not run.startswith((".", "/", "~")) and (run.count("/") in (0, 4))


def read_run_config(folder: Path, trusted: Sequence[str] = ()) -> Config:
    """Return the configuration of a run; settings that are newer than its config.yaml have their defaults.

    Args:
        trusted: packages, besides attnconv, torch.nn and timm, that may define the run's model.

    Raises:
        RunFolderError: the folder has no configuration, or a newer version wrote it.
        ConfigError: a value is outside its limits, or other packages define the model.
    """
    if not folder.is_dir():
        what = "is a file, not a run folder" if folder.exists() else f"does not exist{near(folder)}"
        if not folder.exists() and any(str(folder) in (name, model_of(name)) for name in committed_runs()):
            what = "is a network in results/weights/, and this command needs a run folder"
        raise RunFolderError(f"{folder} {what}")
    try:
        plain = read_config(folder)
        read_result(folder)  # raises if a newer version wrote it
        config = typed(Config, plain)
    except Damaged as damage:
        raise RunFolderError(f"{folder} is not a run folder: {damage.detail}{_inside(folder)}") from damage
    except ConfigError as error:
        raise RunFolderError(
            f"{folder}/config.yaml is not a configuration of this version ({error}); was it written by a newer one?"
        ) from error
    try:
        check_limits(config)
        if "_target_" not in config.model:
            raise ConfigError("model lacks _target_")
        config.model = plain_value(config.model, "model")  # a YAML file can hold tuples, and hide a target in them
        refuse_foreign_targets(config.model, trusted)
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.yaml: {in_one_line(error)}") from error
    return config


def read_preprocessing(folder: Path, config: DataConfig) -> Preprocessing:
    """Return the preprocessing of the run in `folder`.

    Without preprocessing.json, as in results/ and in older runs, mean and std of CIFAR-10 come from config.yaml. Other
    data sets must be read again.

    Raises:
        FileError: the file is damaged; DataError: neither the file nor the data set exists.
    """
    path = folder / PREPROCESSING_FILE
    if path.exists():
        found = read_json(path, PREPROCESSING_KEYS)
        with reading(path):
            _check_preprocessing(found)
            channels, height, width = found["image_shape"]
            names, mean, std = (tuple(found[key]) for key in PREPROCESSING_KEYS[1:])
        return Preprocessing((channels, height, width), names, mean, std)
    if config.source == "cifar10" and config.mean is not None and config.std is not None:
        return Preprocessing((3, 32, 32), CIFAR10, tuple(config.mean), tuple(config.std))
    return Preprocessing.of(config, load_dataset(config, torch.device("cpu")))


def _check_preprocessing(found: dict[str, Any]) -> None:
    """Raise one of UNREADABLE for the content of a preprocessing.json that no data set has."""
    shape, names, mean, std = (found[key] for key in PREPROCESSING_KEYS)
    good = {
        "image_shape": len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape),
        "class_names": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "mean": len(mean) == shape[0] and all(map(math.isfinite, mean)),
        "std": len(std) == shape[0] and all(math.isfinite(value) and value > 0 for value in std),
    }
    for key in PREPROCESSING_KEYS:
        if not good[key]:
            raise ValueError(f"{key}: {found[key]}")


def run_folder_of(weights: Path) -> Path | None:
    """Return the run folder of a weight file: RUN/weights.safetensors or RUN/checkpoints/step*.pt."""
    return next((parent for parent in weights.parents[:2] if (parent / "config.yaml").exists()), None)


def _inside(folder: Path) -> str:
    """Return a suffix that lists runs or weight files inside a folder that is not a run."""
    runs = _nearby_runs(folder)
    if runs:
        return f"; it contains the runs {runs[0]}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    files = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    return f"; it contains the weight files {', '.join(files[:3])}" if files else ""


def _nearby_runs(folder: Path) -> list[Path]:
    """Return the run folders below one, sorted by name; of very many folders only the nearest are looked into."""
    found, waiting = [], deque([folder.absolute()])
    for _ in range(LOOKED_INTO):
        if not waiting:
            break
        place = waiting.popleft()
        if is_run_place(place.parts) and place != folder.absolute():
            found.append(folder / place.relative_to(folder.absolute()))
            continue
        try:
            waiting += sorted(Path(entry.path) for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue  # no permission
    return sorted(found)


def recorded_widths(folder: Path) -> dict[str, Any]:
    """Return the widths that `match` found for a run, which do not change when configs/ does; empty if unknown."""
    match = (read_result(folder) or {}).get("match", {})
    return {key: match[key] for key in ("width", "hidden") if key in match}


def build_untrained(
    config: Config, data: DataSet | Preprocessing, widths: dict[str, Any] | None = None, weights: Path | None = None
) -> nn.Module:
    """Return the network with its random initial weights, on the CPU, before any whitening of its stem.

    Args:
        widths: see `recorded_widths`; without them, `match` searches again.
        weights: of the run, which will be loaded; a network that was pruned gets their number of heads, so that the
            weights that it was pruned from are not needed.
    """
    node = config.model
    if config.match:
        node = node | widths if widths else match_model(config, data.image_shape, data.classes).node
    if weights is not None and node["_target_"] == PRUNED:
        node = node | {"_target_": PRUNED_BEFORE, "start": str(weights)}
    with kept_generators():
        return build_seeded_model(node, data.image_shape, data.classes, config.seed)
