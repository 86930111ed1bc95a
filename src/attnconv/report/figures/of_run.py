"""All figures of one run: its accuracy, and for attention where its heads look."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from attnconv.analysis.heads import attention_mixers, is_position_only
from attnconv.config import Config
from attnconv.errors import DataError, RunFolderError, counted
from attnconv.files import require_targets
from attnconv.report.examined import PROBE, is_corrected, layer_shares, read_examination
from attnconv.report.figures import curves, gaussians, layers, maps, paper_data
from attnconv.report.figures.content import image_maps
from attnconv.report.figures.data import History, Maps, Share, Shares
from attnconv.report.figures.results import read_maps
from attnconv.report.figures.style import FORMATS, save
from attnconv.runs.folder import run_name
from attnconv.runs.load import load, read_run_config
from attnconv.runs.records import read_config, read_lines


def figures_of_run(
    folder: Path, into: Path | None = None, root: str | None = None, trusted: Sequence[str] = ()
) -> None:
    """Draw all possible figures of a run folder, and print the files and the figures that are skipped.

    Args:
        folder: a run folder with at least one epoch.
        into: folder for the figures; folder/figures if None.
        root: folder of the run's images, if it has moved.
        trusted: modules, besides attnconv, torch.nn and timm, that may define the run's model.

    Raises:
        RunFolderError, ConfigError, FileError: it is not a run folder, has no epoch yet, or is damaged.
    """
    config, into = read_run_config(folder, trusted), into or folder / "figures"
    history = read_history(folder, config)
    figures = list(_figures(folder, history, root, trusted))  # all of them, before the first is written
    require_targets(*(into / f"{name}.{kind}" for name, _ in figures for kind in FORMATS))
    into.mkdir(parents=True, exist_ok=True)
    for name, figure in figures:
        save(figure, into, name)
        print(f"{into / name}.{FORMATS[0]}")


def read_history(folder: Path, config: Config) -> History:
    """Return accuracies and losses of all epochs so far.

    Raises:
        RunFolderError: there are none, or they are damaged.
    """
    lines = read_lines(folder, "metrics.jsonl")
    try:
        metrics = {
            name: [(int(line["epoch"]), float(line[name])) for line in lines if line.get(name) is not None]
            for name in sorted({name for line in lines for name in line} - {"epoch"})
        }
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{folder}/metrics.jsonl is damaged ({error})") from error
    if not lines:
        raise RunFolderError(f"{folder} has no epoch yet, so there is nothing to draw")
    epochs = counted(len(lines), "epoch") if len(lines) == config.epochs else f"epoch {len(lines)} of {config.epochs}"
    return History(f"{run_name(config)}, {epochs}", str(config.model["name"]), metrics)


def _figures(folder: Path, history: History, root: str | None, trusted: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    yield "accuracy", curves.history(history)
    if (folder / "heads.jsonl").exists() and _has_grid(folder) and _is_softmax(folder):
        yield "centers", gaussians.centers(paper_data.gaussians_of(folder, history.title))
        yield "centers_as_printed", gaussians.as_printed(paper_data.gaussians_of(folder, history.title))
        training = paper_data.centers_in_training_of(folder, history.title)
        yield "centers_in_training", gaussians.centers_in_training(training)
    if (folder / "attention_maps.npy").exists():
        probs = Maps(history.title, read_maps(folder))
        yield "attention_maps", maps.whole(probs)
        if max(probs.probs.shape[2:]) > maps.HARDLY_LARGER:
            yield "attention_maps_zoomed", maps.zoomed(probs)
    probe = read_examination(folder, PROBE)
    if probe is not None:
        shares = {when: [values] for when, values in layer_shares(probe).items()}
        share = Share(history.model, history.model, is_corrected(probe), **shares)
        yield "convolution_share", layers.convolution_share(Shares(history.title, [share], []))
    elif (folder / PROBE).exists():
        print(f"convolution_share: skipped: {folder / PROBE} was made with uncommitted changes")
    if (folder / "weights.safetensors").exists() and (folder / "attention_maps.npy").exists():
        yield from _of_images(folder, history.title, root, trusted)


def _has_grid(folder: Path) -> bool:
    """Return whether a run says how large its maps are; a network of a user may have several sizes."""
    return (folder / "attention_maps.npy").exists() or "patch" in read_config(folder)["model"]


def _is_softmax(folder: Path) -> bool:
    """Return whether the scores of a run's heads go through softmax; otherwise the heads are not Gaussian."""
    mixer = read_config(folder)["model"].get("mixer")
    return not isinstance(mixer, dict) or mixer.get("normalizer", "softmax") == "softmax"


def _of_images(folder: Path, title: str, root: str | None, trusted: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """Yield attention in single images, for networks whose attention depends on them."""
    trained = load(folder, root, trusted=trusted)
    if all(map(is_position_only, attention_mixers(trained.model))):
        return
    try:
        found = image_maps(trained, title)
    except DataError as error:
        print(f"attention_in_images: skipped: {error}")
        return
    yield "attention_in_images", maps.of_images(found)
