"""The data of figures: plain data that loaders read, identified by its digest. This module does not import matplotlib.

Axes: L layers, N heads, E epochs, I images, H W rows and columns of a map, in positions.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


def digest(data: Any) -> str:
    """Return a hash of some data, equal for equal data; for files, their owner must include the contents."""
    return hashlib.sha256(json.dumps(_plain(data), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return None if isinstance(value, Path) else value


def stacked(layers: Sequence[Any]) -> Floats:
    """Return the values of all heads of all layers, (L, N, ...), nan for heads that a layer lacks."""
    most = max(map(len, layers))
    values = [np.array(layer, float) for layer in layers]
    return np.stack([np.concatenate([one, np.full((most - len(one), *one.shape[1:]), np.nan)]) for one in values])


def radius(mass: float) -> float:
    """Return how many standard deviations around the center hold a share `mass` of a Gaussian in the plane."""
    return math.sqrt(-2 * math.log(1 - mass))


@dataclass(frozen=True)
class Gaussians:
    """The Gaussian heads of a network after one epoch.

    Attributes:
        title: names the run.
        grid: (H, W).
        centers: (L, N, 2), rows before columns, in positions; nan for heads that a layer lacks, here and below.
        spreads: (L, N) inverse standard deviations in 1/positions, or (L, N, 2, 2) = S with inverse covariance S S^T.
    """

    title: str
    grid: tuple[int, int]
    centers: Floats
    spreads: Floats

    @classmethod
    def of(cls, title: str, grid: tuple[int, int], heads: Mapping[str, Any]) -> "Gaussians":
        """Return the heads in a line of heads.jsonl."""
        return cls(title, grid, stacked(heads["centers"]), stacked(heads["spreads"]))

    def axes_of(self, layer: int, head: int) -> tuple[Floats, Floats]:
        """Return standard deviations (2,) along the ellipse's axes, in positions, and the axes as columns (2, 2)."""
        spread = self.spreads[layer, head]
        if np.isnan(spread).any():
            return np.full(2, np.nan), np.full((2, 2), np.nan)
        precision = spread**2 * np.eye(2) if spread.ndim == 0 else spread @ spread.T
        values, directions = np.linalg.eigh(precision)
        with np.errstate(divide="ignore"):
            return 1 / np.sqrt(np.clip(values, 0, None)), directions

    def reach(self, layer: int, head: int, mass: float) -> float:
        """Return how far from the query the ellipse of a head extends at most along an axis, in positions."""
        deviations, directions = self.axes_of(layer, head)
        if np.isinf(deviations).any():
            return math.inf
        half = radius(mass) * np.sqrt(directions**2 @ deviations**2)
        return float((np.abs(self.centers[layer, head]) + half).max())


@dataclass(frozen=True)
class CentersInTraining:
    """Centers of one layer's heads after several epochs: (E, N, 2) in positions; `layer` counts from 1."""

    title: str
    grid: tuple[int, int]
    layer: int
    epochs: list[int]
    centers: Floats


@dataclass(frozen=True)
class Maps:
    """Where the central pixel, (H // 2, W // 2), attends: (L, N, H, W), nan for heads that a layer lacks."""

    title: str
    probs: Array


@dataclass(frozen=True)
class ImageMaps:
    """Where one pixel of each image attends.

    Attributes:
        title: names the run.
        images: (I, height, width, C) uint8.
        queries: (I, 2) rows and columns, in positions.
        probs: (I, L, N, H, W), nan for heads that a layer lacks.
    """

    title: str
    images: Array
    queries: Array
    probs: Array


@dataclass(frozen=True)
class Kernel:
    """Weights of a convolution, (outputs, inputs, K, K), K odd."""

    weight: Floats


@dataclass(frozen=True)
class Photo:
    """A color image, (H, W, 3) uint8."""

    pixels: Array


@dataclass(frozen=True)
class Weights:
    """A run's folder and its file of weights; `sha256` is that of the file's content."""

    title: str
    folder: Path
    file: Path
    sha256: str


@dataclass(frozen=True)
class Curve:
    """Test accuracy, 0 to 1, of one run at some of its epochs or minutes of a CPU core (`at`)."""

    model: str
    seed: int
    at: list[float]
    accuracy: list[float]


@dataclass(frozen=True)
class Curves:
    """Runs of one experiment."""

    title: str
    curves: list[Curve]


@dataclass(frozen=True)
class History:
    """One run: (epoch, value) pairs by the name of the metric, such as test/acc."""

    title: str
    model: str
    metrics: Mapping[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class ByImages:
    """Runs of one protocol on increasing numbers of images; `title` says what was equal.

    Attributes:
        accuracies: model -> training images -> seed -> test accuracy, 0 to 1.
    """

    title: str
    accuracies: Mapping[str, Mapping[int, Mapping[Hashable, float]]]


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: seed -> test accuracy, 0 to 1."""

    label: str
    model: str
    accuracies: Mapping[Hashable, float]


@dataclass(frozen=True)
class Groups:
    """Groups to compare, in panels: panel title -> its groups from top to bottom."""

    title: str
    panels: Mapping[str, list[Group]]


@dataclass(frozen=True)
class Share:
    """Share of a layer's output that the best 3 x 3 convolution explains, by layer, before and after training.

    Attributes:
        corrected: for the size of the fit; otherwise the shares are slightly too low.
        initial, trained: by run, then by layer.
    """

    label: str
    model: str
    corrected: bool
    initial: list[list[float]]
    trained: list[list[float]]


@dataclass(frozen=True)
class Level:
    """The same number for attention of a known kind, over all inputs that were measured."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Shares:
    """The networks of one figure."""

    title: str
    networks: list[Share]
    levels: list[Level]


@dataclass(frozen=True)
class Verdict:
    """A claim's `name` and its verdict; `partial` if some deciding parts have not run."""

    name: str
    claim: str
    status: str
    partial: bool


@dataclass(frozen=True)
class Verdicts:
    """All claims, in their order."""

    rows: list[Verdict]


@dataclass(frozen=True)
class Need:
    """The images that a model needs for an accuracy, divided by the control's, with its 95% interval."""

    model: str
    accuracy: float
    ratio: float
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Needs:
    """The ratios of one protocol, named by `title`."""

    title: str
    needs: list[Need]


@dataclass(frozen=True)
class Cost:
    """One model: exponents of its time in the number of pixels, and activations of one image in MB."""

    model: str
    theory: float
    measured: float
    megabytes: float


@dataclass(frozen=True)
class Reach:
    """One model with some layers: test accuracy by distance in pixels, and the distance that limits it.

    Attributes:
        counting: accuracy by distance without seeing two marks together (attnconv.data.synthetic_pairs).
    """

    model: str
    layers: int
    limit: int
    accuracies: Mapping[int, float]
    counting: Mapping[int, float]


@dataclass(frozen=True)
class Overview:
    """The parts of the README's figure."""

    protocol: ByImages
    heads: Gaussians
    layer: int
