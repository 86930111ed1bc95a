"""The interface of dashboards, and code that they share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = list[tuple[int, dict[str, float]]]  # epochs and their metrics


@dataclass(frozen=True)
class Conclusion:
    """The results of a finished run, besides its predictions.npy.

    Attributes:
        result: the content of result.json.
        labels: of the test images, (N,).
        class_names: one per class.
    """

    result: dict[str, Any]
    labels: np.ndarray
    class_names: tuple[str, ...]


class Adapter(Protocol):
    """The interface of a dashboard's library. All methods may raise."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None: ...

    def picture(self, epoch: int, figure: "Figure") -> None: ...

    def conclude(self, found: Conclusion) -> None: ...

    def finish(self, status: str) -> None: ...


def pixels(figure: "Figure") -> Any:
    """Return the figure as an RGB array (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
