"""Collect run folders into one table of runs.

results/runs/<run>/ keeps the records of a finished run, under the run's name. results/external/<who>/<run>/ keeps those
of runs from other people. runs.csv is made from all of them, in a fixed order, so runs from several machines and days
add up, and collecting twice changes nothing.
"""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from attnconv.config import CONFIGS, Config, flatten
from attnconv.errors import RunFolderError
from attnconv.files import read_csv, read_json, reading, write_whole
from attnconv.runs.identity import free_to_change, with_defaults
from attnconv.runs.records import FORMAT, Damaged, Newer, name_of, read_config, read_finished, read_result
from attnconv.runs.status import BROKEN, cannot_be_read, collected_weights, find_folders, look

KEPT = ("config.yaml", "metrics.jsonl", "timing.jsonl", "result.json")
WHERE_THERE = ("predictions.npy", "attention_maps.npy", "heads.jsonl")  # runs before format 3 lack the first two
PICTURE = "heads.png"
PLACES = ("output", "collected")
EXAMINED = ("probe.json", "conversion.json")  # written by scripts/probe.py and scripts/conv_to_attention.py, if used

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
# Names of settings that result.json, and so a column above, has already.
NAMED = {
    "name", "seed", "epochs", "precision", "data.name", "data.fraction", "data.equal", "data.subset_seed",
    "data.holdout", "model.name", "recipe.name", "scale.name",
}  # fmt: skip


@dataclass
class Gathered:
    """The outcome for each run folder: finished runs by name, others by path; and the problems."""

    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)  # results/ has a different run of that name
    unfinished: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


def gather(outputs: Path, results: Path, replace: bool = False, heads: bool = False, source: str = "") -> Gathered:
    """Copy the records of all finished runs below `outputs` into results/runs/, under their names.

    Args:
        source: who made the runs, if not this project; they go into results/external/<source>/.
        replace: replace a different run of the same name in results/.
        heads: also keep the figure of where the heads look.
    """
    gathered = Gathered()
    for folder in find_folders(outputs):
        place, state = folder.relative_to(outputs).as_posix(), look(folder)
        if state.status in BROKEN:
            gathered.damaged[place] = state.detail
            continue
        if state.status != "done":
            gathered.unfinished[place] = f"{state.status} {state.detail}".strip()
            continue
        try:
            name, content = _read_finished(folder, heads)
        except OSError as error:
            gathered.damaged[place] = cannot_be_read(error)
        else:
            _keep(folder, name, content, results, gathered, replace, source)
    return gathered


def _read_finished(folder: Path, heads: bool) -> tuple[str, dict[str, bytes]]:
    """Return the name of a finished run, and the content of its records by file."""
    content = {file: (folder / file).read_bytes() for file in KEPT}
    content["config.yaml"] = _placeless(content["config.yaml"])
    more = (*WHERE_THERE, *EXAMINED, *((PICTURE,) if heads else ()))
    content |= {file: (folder / file).read_bytes() for file in more if (folder / file).exists()}
    return name_of(read_config(folder)), content


def _keep(
    folder: Path,
    name: str,
    content: dict[str, bytes],
    results: Path,
    gathered: Gathered,
    replace: bool,
    source: str,
) -> None:
    """Write the records of one finished run into results/, and note the outcome in `gathered`."""
    kept = runs_folder(results, source) / name
    before = {file: (kept / file).read_bytes() for file in content if (kept / file).exists()}
    for file in EXAMINED:  # results with uncommitted changes do not replace clean ones
        if file in before and _dirty(folder / file) and not _dirty(kept / file):
            content[file] = before[file]
    if before == content:
        gathered.known.append(name)
        return
    another = "result.json" in before and before["result.json"] != content["result.json"]
    if another and not replace:
        gathered.other[name] = f"{_in_short(content['result.json'])} is not {_in_short(before['result.json'])}"
    else:
        kept.mkdir(parents=True, exist_ok=True)
        if not source and before.get("result.json") != content["result.json"]:
            collected_weights(results, name).unlink(missing_ok=True)  # of the other run
        for file in (*WHERE_THERE, *EXAMINED, PICTURE) if another else ():  # of the replaced run
            (kept / file).unlink(missing_ok=True)
        for file, data in content.items():
            write_whole(kept / file, data)
        gathered.added.append(name)


def runs_folder(results: Path, source: str = "") -> Path:
    """Return the folder for runs of `source`; without one, for those of this project."""
    return results / "external" / source if source else results / "runs"


def sources(results: Path) -> list[str]:
    """Return the sources of the runs in results/: "" for this project, then others by name."""
    external = results / "external"
    return ["", *sorted(folder.name for folder in external.glob("*") if folder.is_dir())]


def tabulate(results: Path) -> dict[str, str]:
    """Write results/runs.csv from results/runs/ and results/external/; return damaged runs with the reasons."""
    text, damaged = runs_csv(results)
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
                rows.append(_Row(name, source, *read_finished(folder)))
            except Damaged as damage:
                damaged[folder.relative_to(results).as_posix()] = damage.detail
    rows.sort(key=_Row.place)
    return _csv_text(rows), damaged


def check_version(results: Path) -> None:
    """Refuse a results/ folder that a newer version wrote, before changing it.

    Raises:
        Newer: a run has a newer format; the message names the run and both formats.
    """
    for folder in (folder for place in ("runs", "external") for folder in find_folders(results / place)):
        try:
            read_result(folder)
        except Newer:
            raise
        except Damaged:
            continue  # `tabulate` reports it


def kept_out(result: dict[str, Any]) -> str:
    """Return why published tables leave out a run; empty if they do not."""
    if result["name"] == "quickstart":
        return "quickstart"
    if result.get("commit") is None:
        return "unknown commit"
    return "dirty tree" if result["dirty"] else ""


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a runs.csv that may be published; empty cells are None.

    Raises:
        RunFolderError: a newer version wrote it; FileError: it is missing or is not such a table.
    """
    with reading(path):
        rows = [
            {column: _value(column, cell) for column, cell in row.items()}
            for row in read_csv(path, ("run", "kept_out", "format"))
        ]
        newest = max(int(row["format"]) for row in rows)
    if newest > FORMAT:
        raise RunFolderError(
            f"{path} has runs of format {newest}, of a newer version; this one knows {FORMAT}: update this checkout"
        )
    return [row for row in rows if row["kept_out"] is None]


def _value(column: str, cell: str) -> Any:
    """Return the value of a cell of runs.csv: a number, True or False, text, or None."""
    if cell in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[cell]
    if column in TEXT:
        return cell
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


@dataclass(frozen=True)
class _Row:
    name: str
    source: str
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    def place(self) -> tuple[Any, ...]:
        """Return the sort key of the run in the table: fractions and seeds sort by value."""
        result = self.result
        keys = ("name", "data", "scale", "recipe", "model", "fraction", "seed")
        return (*(result[key] for key in keys), self.run)

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


def _csv_text(rows: list[_Row]) -> str:
    kinds = [tuple(row.result[key] for key in ("model", "scale", "recipe", "data")) for row in rows]
    varying = varying_settings([(kind, row.settings) for kind, row in zip(kinds, rows, strict=True)])
    columns = ["run", "source", "kept_out", *IDENTITY, *varying, "matched_width", "matched_hidden", *PROVENANCE]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.cells(varying) for row in rows)
    return text.getvalue()


def _placeless(config: bytes) -> bytes:
    """Return a config.yaml with default folders, because the machine's folders do not matter for the run."""
    plain = OmegaConf.create(config.decode())
    assert isinstance(plain, DictConfig)
    for key in PLACES:
        if key in plain:
            plain[key] = getattr(Config, key)
    plain.data.root = _usual_root(plain.data.name)
    return OmegaConf.to_yaml(plain).encode()


def _usual_root(data: str) -> str:
    """Return data.root of configs/data/<data>.yaml, or an empty string."""
    path = CONFIGS / f"data/{data}.yaml"
    file = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    root = file.get("root", MISSING) if isinstance(file, dict) else MISSING
    return "" if root == MISSING else root


def _dirty(examined: Path) -> bool:
    return bool(read_json(examined, ["dirty"])["dirty"])


def _in_short(result: bytes) -> str:
    run = json.loads(result)
    return f"the run of commit {str(run['commit'])[:7]} with test accuracy {run['test_acc']}"
