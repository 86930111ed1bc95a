"""From run folders to one table of runs and one of curves.

results/runs/<run>/ keeps what a finished run says of itself, under the run's own name; runs.csv and curves.parquet are
made from all of them, in one order, so that runs of several machines and several days add up and collecting twice
changes nothing.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
from omegaconf import MISSING, DictConfig, OmegaConf

from attnconv.config import CONFIGS, Config, flatten
from attnconv.errors import RunFolderError
from attnconv.files import read_json, reading, write_whole
from attnconv.runs.folder import FORMAT, name_of
from attnconv.runs.identity import free_to_change, with_defaults
from attnconv.runs.status import (
    Damaged,
    collected_folder,
    collected_weights,
    find_folders,
    look,
    read_config,
    read_finished,
    read_lines,
)

KEPT = ("config.yaml", "metrics.jsonl", "timing.jsonl", "result.json")
WHERE_THERE = ("predictions.npy", "attention_maps.npy", "heads.jsonl")  # runs before format 3 lack the first two
PICTURE = "heads.png"
PLACES = ("output", "collected")
EXAMINED = ("probe.json", "conversion.json")  # by scripts/probe.py and scripts/conv_to_attention.py, if at all

# Columns of runs.csv that result.json holds, in this order; between them and the last come the settings that vary.
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
# The name of a setting where result.json, and so a column above, has it already.
NAMED = {
    "name", "seed", "epochs", "precision", "data.name", "data.fraction", "data.equal", "data.subset_seed",
    "data.holdout", "model.name", "recipe.name", "scale.name",
}  # fmt: skip


@dataclass
class Gathered:
    """What became of every run folder: finished ones by the run's name, others by their place; and what is wrong."""

    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    other: dict[str, str] = field(default_factory=dict)  # results/ has another run of that name
    unfinished: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


def gather(outputs: Path, results: Path, replace: bool = False, heads: bool = False) -> Gathered:
    """Copy what is to be kept of every finished run below `outputs` into results/runs/, under its name.

    Args:
        replace: take the run of `outputs` where results/ has another one of its name.
        heads: keep the picture of where the heads look, too.
    """
    gathered = Gathered()
    for folder in find_folders(outputs):
        place, state = folder.relative_to(outputs).as_posix(), look(folder)
        if state.status == "damaged":
            gathered.damaged[place] = state.detail
            continue
        if state.status != "done":
            gathered.unfinished[place] = f"{state.status} {state.detail}".strip()
            continue
        name = name_of(read_config(folder))
        kept = collected_folder(results, name)
        content = {file: (folder / file).read_bytes() for file in KEPT}
        content["config.yaml"] = _placeless(content["config.yaml"])
        more = (*WHERE_THERE, *EXAMINED, *((PICTURE,) if heads else ()))
        content |= {file: (folder / file).read_bytes() for file in more if (folder / file).exists()}
        before = {file: (kept / file).read_bytes() for file in content if (kept / file).exists()}
        for file in EXAMINED:  # what a dirty tree found, does not replace what a clean one did
            if file in before and _dirty(folder / file) and not _dirty(kept / file):
                content[file] = before[file]
        if before == content:
            gathered.known.append(name)
            continue
        another = "result.json" in before and before["result.json"] != content["result.json"]
        if another and not replace:
            gathered.other[name] = f"{_in_short(content['result.json'])} is not {_in_short(before['result.json'])}"
        else:
            kept.mkdir(parents=True, exist_ok=True)
            if before.get("result.json") != content["result.json"]:
                collected_weights(results, name).unlink(missing_ok=True)  # of another run
            for file in (*WHERE_THERE, *EXAMINED, PICTURE) if another else ():  # of the run that is replaced
                (kept / file).unlink(missing_ok=True)
            for file, data in content.items():
                write_whole(kept / file, data)
            gathered.added.append(name)
    return gathered


def tabulate(results: Path) -> dict[str, str]:
    """Write results/runs.csv and results/curves.parquet from results/runs/; returns damaged runs there, and why.

    Raises:
        RunFolderError: a newer version wrote some of them.
    """
    rows, curves, damaged = [], [], {}
    for folder in find_folders(results / "runs"):
        name = folder.relative_to(results / "runs").as_posix()
        try:
            config, result, metrics = read_finished(folder)
        except Damaged as damage:
            damaged[name] = str(damage)
            continue
        rows.append(_Row(name, config, result, metrics))
        curves.append((name, metrics, read_lines(folder / "timing.jsonl")))
    results.mkdir(parents=True, exist_ok=True)
    rows.sort(key=_Row.place)
    order = {row.run: index for index, row in enumerate(rows)}
    curves.sort(key=lambda curve: order[curve[0]])
    _write_csv(results / "runs.csv", rows)
    _write_curves(results / "curves.parquet", curves)
    return damaged


def check_version(results: Path) -> None:
    """Refuse a results/ that a newer version wrote, before anything in it is changed.

    Raises:
        RunFolderError: naming a run and both formats.
    """
    for path in sorted((results / "runs").glob("**/result.json")):
        try:
            written = json.loads(path.read_text()).get("format", 1)
        except (ValueError, AttributeError, RecursionError):
            continue  # damaged, which is for `tabulate` to tell
        if isinstance(written, int) and written > FORMAT:
            raise RunFolderError(
                f"{path} has format {written}, of a newer version; this one knows {FORMAT}: update this checkout"
            )


def kept_out(result: dict[str, Any]) -> str:
    """Why a run must not stand in a published table; empty if it may."""
    if result["name"] == "quickstart":
        return "quickstart"
    if result.get("commit") is None:
        return "unknown commit"
    return "dirty tree" if result["dirty"] else ""


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The rows of a runs.csv that may stand in a published table; an empty cell is None.

    Raises:
        RunFolderError: a newer version wrote it; FileError: it is missing or no such table.
    """
    with reading(path):
        table = pandas.read_csv(path, keep_default_na=False, na_values=[""])
        publishable, newer = table["kept_out"].isna(), table["format"] > FORMAT
    if newer.any():
        raise RunFolderError(
            f"{path} has runs of format {table['format'].max()}, of a newer version; this one knows {FORMAT}: "
            "update this checkout"
        )
    rows = table[publishable].astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in rows.where(rows.notna(), None).to_dict("records")
    ]


@dataclass(frozen=True)
class _Row:
    run: str
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    def place(self) -> tuple[Any, ...]:
        """Where it stands in the table: fractions and seeds by their size."""
        result = self.result
        keys = ("name", "data", "scale", "recipe", "model", "fraction", "seed")
        return (*(result[key] for key in keys), self.run)

    @property
    def settings(self) -> dict[str, Any]:
        return with_defaults(flatten(self.config))

    def cells(self, varying: Iterable[str]) -> dict[str, Any]:
        values = {"equal": "epochs", "train_acc": self.metrics[-1]["train/acc"], "format": 1}
        values |= self.result | self.result["versions"]
        if "cpu" in self.result:
            cpu = self.result["cpu"]
            values |= {"cpu_family": cpu["family"], "cpu_flags": " ".join(cpu["flags"]), "cpu_threads": cpu["threads"]}
        row: dict[str, Any] = {"run": self.run, "kept_out": kept_out(self.result)}
        row |= {key: values.get(key) for key in IDENTITY}
        row |= {key: self.settings.get(key) for key in varying}
        match = self.result.get("match", {})
        row |= {f"matched_{key}": match.get(key) for key in ("width", "hidden")}
        return row | {key: values.get(key) for key in PROVENANCE}


def varying_settings(configs: list[tuple[tuple[str, ...], dict[str, Any]]]) -> list[str]:
    """Settings that differ between two runs of one kind: the same model, scale, recipe and data.

    What differs between two models or two recipes is said by their names, and by their files in configs/.

    Args:
        configs: for every run its kind and its flattened configuration.
    """
    varying: set[str] = set()
    first: dict[tuple[str, ...], dict[str, Any]] = {}
    for kind, settings in configs:
        other = first.setdefault(kind, settings)
        varying |= {key for key in settings.keys() | other.keys() if settings.get(key) != other.get(key)}
    return sorted(key for key in varying - NAMED if not free_to_change(key))


def _write_csv(path: Path, rows: list[_Row]) -> None:
    kinds = [tuple(row.result[key] for key in ("model", "scale", "recipe", "data")) for row in rows]
    varying = varying_settings([(kind, row.settings) for kind, row in zip(kinds, rows, strict=True)])
    with path.open("w", newline="") as file:
        columns = ["run", "kept_out", *IDENTITY, *varying, "matched_width", "matched_hidden", *PROVENANCE]
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.cells(varying) for row in rows)


def _write_curves(path: Path, curves: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]) -> None:
    """A row per run and epoch; what was not measured in an epoch is null."""
    columns = ["run", "epoch", "train/loss", "train/acc", "train/lr", "val/loss", "val/acc", "val/acc_mirrored",
               "test/loss", "test/acc", "test/acc_mirrored", "train_seconds", "eval_seconds",
               "train_cpu_seconds", "eval_cpu_seconds"]  # fmt: skip
    records = []
    for run, metrics, timings in curves:
        clock = {timing["epoch"]: timing for timing in timings}
        records += [{"run": run, **clock.get(record["epoch"], {}), **record} for record in metrics]
    table = pandas.DataFrame.from_records(records, columns=columns)
    table = table.astype(dict.fromkeys(columns, "float64") | {"run": "string", "epoch": "int32"})
    table.to_parquet(path, index=False)


def _placeless(config: bytes) -> bytes:
    """A config.yaml without the folders of the machine it ran on, which say nothing of the run: as if by default."""
    plain = OmegaConf.create(config.decode())
    assert isinstance(plain, DictConfig)
    for key in PLACES:
        if key in plain:
            plain[key] = getattr(Config, key)
    plain.data.root = _usual_root(plain.data.name)
    return OmegaConf.to_yaml(plain).encode()


def _usual_root(data: str) -> str:
    """data.root of configs/data/<data>.yaml; empty if it names none."""
    path = CONFIGS / f"data/{data}.yaml"
    file = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    root = file.get("root", MISSING) if isinstance(file, dict) else MISSING
    return "" if root == MISSING else root


def _dirty(examined: Path) -> bool:
    return bool(read_json(examined, ["dirty"])["dirty"])


def _in_short(result: bytes) -> str:
    run = json.loads(result)
    return f"the run of commit {str(run['commit'])[:7]} with test accuracy {run['test_acc']}"
