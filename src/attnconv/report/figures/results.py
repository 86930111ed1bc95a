"""What results/ holds, for loaders: runs that belong together, curves, heads and maps. Imports no matplotlib."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnconv.files import FileError, read_json, read_json_lines, reading
from attnconv.report.collect import read_runs
from attnconv.runs.status import collected_folder

Row = dict[str, Any]


@dataclass
class Results:
    """A results/ folder, each file of which is read once."""

    path: Path

    @cached_property
    def runs(self) -> list[Row]:
        """The rows of runs.csv that may stand in a figure."""
        return read_runs(self.path / "runs.csv")

    def epochs(self, run: Row) -> list[Row]:
        """What a run recorded of every epoch, times included.

        Raises:
            FileError: its records are damaged.
        """
        folder = self.folder(run)
        clock = {line["epoch"]: line for line in read_json_lines(folder / "timing.jsonl", ("epoch",))}
        lines = read_json_lines(folder / "metrics.jsonl", ("epoch",))
        return [{**clock.get(line["epoch"], {}), **line} for line in lines]

    def folder(self, run: Row) -> Path:
        """Where the files of a run are."""
        return collected_folder(self.path, run["run"])

    def of_study(self, study: str, **wanted: Any) -> list[Row]:
        """The runs named study or study_<precision>, of the precision of which there are most.

        Args:
            wanted: columns of runs.csv and the values that they must have.
        """
        named = [run for run in self.runs if run["name"] in (study, f"{study}_bf16", f"{study}_fp32")]
        found = [run for run in named if all(run.get(key) == value for key, value in wanted.items())]
        kinds = {(run["name"], run["precision"]) for run in found}
        if not kinds:
            return []
        counts = {kind: sum((run["name"], run["precision"]) == kind for run in found) for kind in kinds}
        most = min(kinds, key=lambda kind: (-counts[kind], kind))
        return [run for run in found if (run["name"], run["precision"]) == most]

    def best_run(self, studies: tuple[str, ...], file: str, **wanted: Any) -> Row | None:
        """The run with this file in the first study that has one: of most images, then of the lowest seed."""
        for study in studies:
            found = [run for run in self.of_study(study, **wanted) if (self.folder(run) / file).exists()]
            if found:
                return min(found, key=lambda run: (-run["train_images"], run["seed"]))
        return None


def by_seed(runs: list[Row]) -> dict[int, float]:
    """Test accuracy by seed."""
    return {int(run["seed"]): run["test_acc"] for run in sorted(runs, key=lambda run: run["seed"])}


def title_of(run: Row) -> str:
    """A run in the words of a figure's title."""
    return (
        f"{run['model']}, scale={run['scale']}, {run['train_images']:,} images, {run['epochs']} epochs, "
        f"test accuracy {run['test_acc']:.1%}"
    )


def read_heads(folder: Path) -> list[Row]:
    """The lines of a run's heads.jsonl, one an epoch.

    Raises:
        FileError: it is missing or damaged, or holds no Gaussian heads.
    """
    lines = read_json_lines(folder / "heads.jsonl", ("epoch", "centers", "spreads"))
    if not lines:
        raise FileError(f"{folder / 'heads.jsonl'} is empty")
    return lines


def read_maps(folder: Path) -> NDArray[Any]:
    """A run's attention_maps.npy, (L, N, H, W).

    Raises:
        FileError: it is missing or damaged.
    """
    path = folder / "attention_maps.npy"
    with reading(path):
        maps: NDArray[Any] = np.load(path, allow_pickle=False)
        if maps.ndim != 4:
            raise ValueError(f"an array of {maps.ndim} axes stands where one of 4 should")
    return maps


def grid_of(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """The map of a run with Gaussian heads, in positions; before format 3 there are no maps, but images of 32."""
    if (folder / "attention_maps.npy").exists():
        height, width = read_maps(folder).shape[2:]
        return height, width
    return (32 // config["model"]["patch"],) * 2


def read_probe(folder: Path) -> dict[str, Any]:
    """What scripts/probe.py found of a run.

    Raises:
        FileError: it is missing or damaged.
    """
    return read_json(folder / "probe.json", ("layers",))


def layer_shares(probe: dict[str, Any], quantity: str = "conv3") -> dict[str, list[float]]:
    """A number of every layer, of the initial and of the trained weights."""
    found: dict[str, list[float]] = {"initial": [], "trained": []}
    for layer in probe["layers"]:
        found[layer["weights"]].append(layer[quantity])
    return found


def is_corrected(probe: dict[str, Any]) -> bool:
    """Whether shares were corrected for the size of the fit, as they are since the joint residual was defined."""
    return all("joint_residual" in layer for layer in probe["layers"])
