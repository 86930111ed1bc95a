"""From a run folder, or the name of a network in results/weights/, to a trained network."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from attnconv.config import Config, check_limits, flatten
from attnconv.data.dataset import DataSet
from attnconv.data.preprocessing import Preprocessing, read_preprocessing
from attnconv.errors import ConfigError, RunFolderError, nearest
from attnconv.files import in_one_line, near
from attnconv.models.build import build_model
from attnconv.models.match import resolve_node
from attnconv.models.targets import refuse_foreign_targets
from attnconv.models.weight_files import SUFFIXES, load_weights
from attnconv.runs.identity import start_weights
from attnconv.runs.records import Damaged, read_config, read_result
from attnconv.runs.status import collected_folder, collected_weights, find_folders
from attnconv.runs.trained import Trained
from attnconv.settings.types import typed
from attnconv.training.device import choose_device

RESULTS = Path(__file__).resolve().parents[3] / "results"  # whose weights have names


def load(
    run: str | Path,
    root: str | None = None,
    device: str = "cpu",
    weights: Path | None = None,
    trusted: Sequence[str] = (),
) -> Trained:
    """Load a trained network, ready to predict.

    Args:
        run: a run folder, or the name of a network whose weights are in results/weights/: its model, such as
            sa_quadratic, or its run, such as table1/sa_quadratic/mini-modern/frac1/seed0.
        root: where the data is, if not where the run found it; only read when it is asked for.
        device: cpu, cuda, cuda:N or mps.
        weights: a file of weights, if not that of the finished run.
        trusted: packages besides attnconv, torch.nn and timm from which the run's model may be built.

    Raises:
        RunFolderError: there is no such run, or it is not finished; FileError: its weights are damaged, or of another
            network; ConfigError: its configuration is not one of this version.
    """
    folder = find_run(run)
    config = read_run_config(folder, trusted)
    if root is not None:
        config.data.root = root
    weights = weights or find_weights(folder)
    preprocessing = read_preprocessing(folder, config.data)
    if start_weights(flatten(config.model, "model.")):
        config.model["start"] = str(weights)  # which have the heads that it began with, wherever those came from
    model = build_untrained(config, preprocessing)
    load_weights(model, weights, preprocessing.classes)
    return Trained(folder, config, preprocessing, model.to(choose_device(device)).eval())


load_trained = load


def find_run(run: str | Path, results: Path = RESULTS) -> Path:
    """Return the run folder of a path, or of the name of a network in results/weights/.

    Raises:
        RunFolderError: there is neither; the nearest are named.
    """
    folder = Path(run).expanduser()
    if folder.exists() or not _is_name(str(run)):
        return folder
    names = committed_runs(results)
    found = [name for name in names if str(run) in (name, model_of(name))]
    found = [name for name in found if name.endswith("/frac1/seed0")] or found
    if len(found) > 1:
        raise RunFolderError(f"{results}/weights has {len(found)} networks {run}: use {' or '.join(found)}")
    if not found:
        known = (
            nearest(str(run), [*names, *map(model_of, names)], "ls results/weights/*/*")
            if names
            else "; results/weights has none yet"
        )
        raise RunFolderError(
            f"there is no run folder {run}, and no network of that name in results/weights{known}; "
            "python train.py model=NAME scale=mini trains one and prints its run folder"
        )
    return collected_folder(results, found[0])


def committed_runs(results: Path = RESULTS) -> list[str]:
    """Return the names of the runs whose weights are in results/weights/."""
    files = (results / "weights").glob("**/*.safetensors")
    return sorted(file.relative_to(results / "weights").with_suffix("").as_posix() for file in files)


def model_of(name: str) -> str:
    """Return the model in the name of a run."""
    return name.split("/")[1]


def find_weights(folder: Path) -> Path:
    """Return the file of weights of a run, which results/ keeps in a folder of its own.

    Raises:
        RunFolderError: there is none.
    """
    path = folder / "weights.safetensors"
    if path.exists():
        return path
    for results in folder.absolute().parents:
        if results.name == "runs":
            kept = collected_weights(results.parent, folder.absolute().relative_to(results).as_posix())
            if kept.exists():
                return kept
    raise RunFolderError(f"{folder} has no weights.safetensors: the run is not finished, or only its numbers are here")


def _is_name(run: str) -> bool:
    """Whether it may be the name of a model or of a run, rather than a path that leads nowhere."""
    return not run.startswith((".", "/", "~")) and (run.count("/") in (0, 4))


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


def build_untrained(config: Config, data: DataSet | Preprocessing) -> nn.Module:
    """The network as the run began with it, on the CPU."""
    node, _ = resolve_node(config, data.image_shape, data.classes)
    torch.manual_seed(config.seed)
    return build_model(node, data.image_shape, data.classes)
