"""The table of runs: results/runs.csv, one row per run in results/runs/ and results/external/.

The order is fixed and the table is made from all runs, so runs from several machines and days add up.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attnconv.config import flatten
from attnconv.errors import RunFolderError, counted, first_few
from attnconv.files import FileError, csv_text, read_csv, reading, write_whole
from attnconv.runs.bounds import SHARE, check_numbers
from attnconv.runs.identity import free_to_change, with_defaults
from attnconv.runs.records import (
    FORMAT,
    RESULT_KEYS,
    RESULT_NUMBERS,
    Damaged,
    name_of,
    read_finished,
    require_whole_arrays,
)
from attnconv.runs.status import find_folders

# Columns of runs.csv that come from result.json, in this order; the varying settings come before the last one.
IDENTITY = (
    "name", "model", "recipe", "scale", "data", "fraction", "equal", "train_images", "subset_seed", "holdout", "seed",
    "epochs", "steps", "test_acc", "test_acc_mirrored", "val_acc", "val_acc_mirrored",
    "train_acc", "parameters", "flops_paper", "flops_full", "seconds",
    "train_seconds", "cpu_seconds", "images_per_second", "peak_memory_bytes",
)  # fmt: skip
PROVENANCE = (
    "precision", "device", "cpu_family", "cpu_flags", "cpu_threads", "processes", "commit", "dirty", "python",
    "torch", "cuda", "numpy", "timm", "platform", "data_hash", "subset_hash", "format",
)  # fmt: skip
# Columns that stay text even if they look like a number, as a commit may.
TEXT = {
    "run", "source", "kept_out", "name", "model", "recipe", "scale", "data", "equal", "precision", "device",
    "cpu_family", "cpu_flags", "commit", "python", "torch", "cuda", "numpy", "timm", "platform", "data_hash",
    "subset_hash",
}  # fmt: skip
# All columns but those of settings.
OF_RESULTS = {"run", "source", "kept_out", "matched_width", "matched_hidden", *IDENTITY, *PROVENANCE}
BOUNDS = RESULT_NUMBERS | {"train_acc": SHARE}
NUMBERS = {*IDENTITY, *PROVENANCE} - TEXT  # True and False count as numbers
NEVER_EMPTY = {*RESULT_KEYS} & {*IDENTITY}
# Names of settings that result.json, and so a column above, has already.
NAMED = {
    "name", "seed", "epochs", "precision", "data.name", "data.fraction", "data.equal", "data.subset_seed",
    "data.holdout", "model.name", "recipe.name", "scale.name",
}  # fmt: skip


def runs_folder(results: Path, source: str = "") -> Path:
    """Return the folder for runs of `source`; without one, for those of this project."""
    return results / "external" / source if source else results / "runs"


def sources(results: Path) -> list[str]:
    """Return the sources of the runs in results/: "" for this project, then others by name."""
    external = results / "external"
    return ["", *sorted(folder.name for folder in external.glob("*") if folder.is_dir())]


def tabulate(results: Path) -> dict[str, str]:
    """Write results/runs.csv from results/runs/ and results/external/; return damaged runs with the reasons.

    Raises:
        RunFolderError: the table would lose a run whose folder does not exist.
    """
    text, damaged = runs_csv(results)
    if (results / "runs.csv").exists():
        try:
            listed = [row["run"] for row in read_csv(results / "runs.csv", ("run",))]
        except FileError as error:
            raise FileError(f"{error}; delete it to make it anew from the run folders") from error
        lost = [run for run in listed if not (runs_folder(results) / run).is_dir()]
        if lost:
            raise RunFolderError(
                f"{results}/runs.csv would lose {counted(len(lost), 'run')} without a folder: {first_few(lost)}; "
                "restore the folders, or delete these lines"
            )
    results.mkdir(parents=True, exist_ok=True)
    write_whole(results / "runs.csv", text.encode())
    return damaged


def runs_csv(results: Path) -> tuple[str, dict[str, str]]:
    """Return the text of results/runs.csv, and the damaged runs that it leaves out, with the reasons."""
    rows, damaged = [], {}
    for source in sources(results):
        for folder in find_folders(runs_folder(results, source)):
            name = folder.relative_to(runs_folder(results, source)).as_posix()
            try:
                config, result, metrics = read_finished(folder)
                if name_of(config) != name:
                    raise Damaged(folder, f"this is the run {name_of(config)} in another folder")
                require_whole_arrays(folder)
                rows.append(_Row(name, source, config, result, metrics))
            except Damaged as damage:
                damaged[folder.relative_to(results).as_posix()] = damage.detail
    rows.sort(key=_Row.place)
    return _text(rows), damaged


def kept_out(result: dict[str, Any]) -> str:
    """Return why published tables leave out a run; empty if they do not."""
    if result["name"] == "quickstart":
        return "quickstart"
    if result.get("commit") is None or result["dirty"] is None:
        return "unknown commit"
    return "dirty tree" if result["dirty"] else ""


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a runs.csv that may be published; empty cells are None.

    Raises:
        RunFolderError: a newer version wrote it; FileError: it is missing or is not such a table.
    """
    with reading(path):
        rows = read_csv(path, ("run", "kept_out", "format"))
        newest = max(int(row["format"]) for row in rows)
        if newest > FORMAT:
            raise RunFolderError(
                f"{path} has runs of format {newest}, of a newer version; this one knows {FORMAT}: update this checkout"
            )
        for column in ("source", *IDENTITY, *PROVENANCE):
            rows[0][column]  # a missing column is a KeyError
        table = [{column: _value(column, cell) for column, cell in row.items()} for row in rows]
        found: set[str] = set()
        for number, row in enumerate(table, 1):
            if row["run"] in found:
                raise ValueError(f"row {number} repeats the run {row['run']}")
            found.add(row["run"])
            check_numbers(f"row {number}", row, BOUNDS)
    return [row for row in table if row["kept_out"] is None]


def _value(column: str, cell: str) -> Any:
    """Return the value of a cell of runs.csv: a number, True or False, text, or None.

    Raises:
        ValueError: such a column does not hold this.
    """
    if cell and column in TEXT:
        return cell
    if not cell and column in NEVER_EMPTY:
        raise ValueError(f"an empty cell in column {column}")
    if cell in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[cell]
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    if column in NUMBERS:
        raise ValueError(f"{cell!r} in column {column}, which holds numbers")
    return cell


@dataclass(frozen=True)
class _Row:
    name: str
    source: str
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    def place(self) -> tuple[Any, ...]:
        """Return the sort key of the run in the table: our own runs come first, fractions and seeds sort by value."""
        result = self.result
        keys = ("name", "data", "scale", "recipe", "model", "fraction", "seed")
        return (self.source, *(result[key] for key in keys), self.run)

    @property
    def run(self) -> str:
        """Return the folder of the run, relative to results/runs."""
        return f"../external/{self.source}/{self.name}" if self.source else self.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        return with_defaults(flatten(self.config))

    def cells(self, varying: Iterable[str]) -> dict[str, Any]:
        values = {"equal": "epochs", "train_acc": self.metrics[-1]["train/acc"], "format": 1}
        values |= self.result | self.result["versions"]
        if "cpu" in self.result:
            cpu = self.result["cpu"]
            values |= {"cpu_family": cpu["family"], "cpu_flags": " ".join(cpu["flags"]), "cpu_threads": cpu["threads"]}
        values["device"] = str(values.get("device") or "").replace(", 1 threads", ", 1 thread")  # of older runs
        row: dict[str, Any] = {"run": self.run, "source": self.source, "kept_out": kept_out(self.result)}
        row |= {key: values.get(key) for key in IDENTITY}
        row |= {key: self.settings.get(key) for key in varying}
        match = self.result.get("match", {})
        row |= {f"matched_{key}": match.get(key) for key in ("width", "hidden")}
        return row | {key: values.get(key) for key in PROVENANCE}


def varying_settings(configs: list[tuple[tuple[str, ...], dict[str, Any]]]) -> list[str]:
    """Return the settings that differ between two runs of one kind: the same model, scale, recipe and data.

    Differences between two models or two recipes are in their names and in their files in configs/.

    Args:
        configs: for each run, its kind and its flattened configuration.
    """
    varying: set[str] = set()
    first: dict[tuple[str, ...], dict[str, Any]] = {}
    for kind, settings in configs:
        other = first.setdefault(kind, settings)
        varying |= {key for key in settings.keys() | other.keys() if settings.get(key) != other.get(key)}
    return sorted(key for key in varying - NAMED if not free_to_change(key))


def _text(rows: list[_Row]) -> str:
    kinds = [tuple(row.result[key] for key in ("model", "scale", "recipe", "data")) for row in rows]
    varying = varying_settings([(kind, row.settings) for kind, row in zip(kinds, rows, strict=True)])
    columns = ["run", "source", "kept_out", *IDENTITY, *varying, "matched_width", "matched_hidden", *PROVENANCE]
    return csv_text(columns, (row.cells(varying) for row in rows))
