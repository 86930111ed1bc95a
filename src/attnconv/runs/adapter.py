"""The interface of dashboards, and what they share: names and labels of runs, and pictures."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from attnconv.config import Config, flatten, to_plain
from attnconv.runs.folder import run_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = list[tuple[int, dict[str, float]]]  # epochs and their metrics


class Adapter(Protocol):
    """The interface of a dashboard's library. All methods may raise."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None: ...

    def picture(self, epoch: int, figure: "Figure") -> None: ...

    def conclude(self, result: dict[str, Any], truth: np.ndarray, names: tuple[str, ...]) -> None:
        """Show the content of result.json and predictions.npy, given the test images' labels and names of classes."""

    def finish(self, status: str) -> None: ...


def pixels(figure: "Figure") -> Any:
    """Return the figure as an RGB array (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def labels(config: Config) -> dict[str, Any]:
    """Return the labels to group and filter runs by, flat: W&B cannot group by parts of a setting."""
    return {
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "fraction": config.data.fraction,
        "seed": config.seed,
        "name": config.name,
    }


def flat_config(config: Config) -> dict[str, Any]:
    """Return all settings under their dotted keys, and the labels."""
    return flatten(to_plain(config)) | labels(config)


def group(config: Config) -> str:
    """Return the name of the group of runs that differ only in the seed."""
    return run_name(config).rpartition("/")[0]


def display_name(config: Config) -> str:
    """Return the name of a run in dashboards."""
    return displayed(run_name(config))


def displayed(run: str) -> str:
    """Return the parts of a run's name, seed and model first, because dashboards truncate the end of names."""
    study, model, kind, fraction, seed = run.split("/")
    return f"{seed} {model} {fraction} {kind} {study}"
