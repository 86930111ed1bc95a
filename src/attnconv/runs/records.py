"""Read the files of a run folder and check them against each other. This module does not import torch.

Reports read config.yaml, data.json, result.json and the .jsonl files of runs through it.
"""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnconv.errors import RunFolderError, counted
from attnconv.files import FileError, first_bytes, read_json, read_json_lines, read_yaml, reading
from attnconv.runs.bounds import AMOUNT, COUNT, SHARE, check_numbers

if TYPE_CHECKING:
    import numpy as np

# Format of result.json and the files next to it; without the key, it is 1. Format 2 added FLOPs, steps and data.equal;
# 3 added predictions, maps, CPU seconds and the CPU, and reduced heads.jsonl to centers and spreads.
FORMAT = 3

STATUSES = ("done", "failed", "interrupted")  # in result.json

DATA_FILE = "data.json"
PARTS = ("NAME", "MODEL", "SCALE-RECIPE", "FRACTION", "SEED")  # of the name of a run

PREDICTIONS = "predictions.npy"
ARRAYS = (PREDICTIONS, "attention_maps.npy")  # runs before format 3 lack them
MAGIC = b"\x93NUMPY"  # the first bytes of a .npy file

# Keys in the last line of metrics.jsonl; result.json has them too, with an underscore for the slash.
ACCURACIES = ("val/acc", "val/acc_mirrored", "test/acc", "test/acc_mirrored")

# Types of values in result.json that readers rely on, and of those in its cpu.
TYPES: dict[str, Any] = {
    **dict.fromkeys(("name", "model", "recipe", "scale", "data", "equal", "precision", "device", "reason"), str),
    **dict.fromkeys(("versions", "cpu", "match"), dict),
    **dict.fromkeys(("data_hash", "subset_hash"), str | None),
    "seed": int,
    "commit": str | None,
    "dirty": bool | None,
}
RESULT_NUMBERS = {  # in result.json and runs.csv; those that do not apply to a run are null or absent
    **dict.fromkeys(("test_acc", "test_acc_mirrored", "val_acc", "val_acc_mirrored", "fraction", "holdout"), SHARE),
    **dict.fromkeys(("epochs", "train_images", "steps", "subset_seed", "parameters", "processes", "format"), COUNT),
    **dict.fromkeys(("flops_paper", "flops_full", "peak_memory_bytes"), COUNT),
    **dict.fromkeys(("seconds", "train_seconds", "cpu_seconds", "images_per_second"), AMOUNT),
}
TYPES_OF_CPU = {"family": str, "flags": list, "threads": int}

# Keys in the result.json of all finished runs, of any version.
# Numbers that each line of an unfinished run has, and those that lines of older versions may lack.
NUMBERS = {"metrics.jsonl": ("train/loss", "train/acc"), "timing.jsonl": ("train_seconds", "eval_seconds")}
MAY_LACK = ("train_cpu_seconds", "eval_cpu_seconds")
RESULT_KEYS = ("name", "model", "recipe", "scale", "data", "fraction", "seed", "test_acc", "dirty", "versions")


# Removed settings of older runs, each with the value at which the current schema still describes the run.
RETIRED = {"recipe.ema": None}

# Code that moved: its name in older runs, and its current name.
MOVED = {
    "attnconv.mixers.distance.distance_encoding": "attnconv.mixers.continuous_bias.distance_encoding",
    "attnconv.models.zoo.timm_model": "attnconv.models.timm_models.timm_model",
}


class Damaged(RunFolderError):
    """A run folder that does not hold what a run writes.

    Attributes:
        detail: what is wrong, without the folder.
    """

    def __init__(self, folder: Path, detail: str):
        super().__init__(folder, detail)  # so that it can be pickled
        self.folder, self.detail = folder, detail

    def __str__(self) -> str:
        return f"{self.folder} is damaged: {self.detail}; delete the folder to run it again"


class Unreadable(Damaged):
    """A run folder with a file that cannot be read now, which need not be damaged."""

    def __str__(self) -> str:
        return f"{self.folder}/{self.detail}; rerun once it can be read"


class Newer(Damaged):
    """A run folder that a newer version wrote."""

    def __str__(self) -> str:
        return f"{self.folder}/{self.detail}"


def name_of(plain: dict[str, Any]) -> str:
    """Return the name of the run that a config.yaml describes."""
    cell = "{scale[name]}-{recipe[name]}/frac{data[fraction]:g}/seed{seed}".format_map(plain)
    return "{name}/{model[name]}/{cell}".format_map({**plain, "cell": cell})


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.yaml in the current format.

    Raises:
        Damaged: it is missing, or is not the configuration of a run.
    """
    config = _read(folder, "config.yaml", lambda path: read_yaml(path) or {})
    if config is None:
        raise Damaged(folder, "no config.yaml")
    try:
        parts = name_of(config).split("/")
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(folder, "config.yaml is not the configuration of a run") from error
    if len(parts) != len(PARTS) or {"", ".", ".."} & set(parts):  # it would lead out of results/
        raise Damaged(folder, f"config.yaml has a name that is not {'/'.join(PARTS)}: {'/'.join(parts)}")
    if not isinstance(config.get("epochs"), int) or config["epochs"] < 1:
        detail = f"config.yaml is not the configuration of a run (epochs: {config.get('epochs')})"
        raise Damaged(folder, detail)
    return _up_to_date({str(key): value for key, value in config.items()})


def _up_to_date(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the content of an older run's config.yaml in the current format.

    Drop removed settings that were off, and replace the old names of code that moved.
    """
    for key, off in RETIRED.items():
        part, _, leaf = key.rpartition(".")
        node = plain.get(part)
        if isinstance(node, dict) and node.get(leaf) == off:
            node.pop(leaf, None)
    if "model" in plain:
        plain["model"] = _renamed(plain["model"])
    return plain


def _renamed(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: MOVED.get(value, value) if key == "_target_" else _renamed(value) for key, value in node.items()}
    return [_renamed(item) for item in node] if isinstance(node, list) else node


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the content of result.json, or None without one.

    Raises:
        Damaged: it is not a result.
        Newer: a newer version wrote it.
    """
    result = _read(folder, "result.json", lambda path: read_json(path, ["status"]))
    if result is None:
        return None
    if result["status"] not in STATUSES:
        raise Damaged(folder, f"result.json has the status {result['status']!r}, not one of {', '.join(STATUSES)}")
    try:
        check_numbers("result.json", result, RESULT_NUMBERS)
    except ValueError as error:
        raise Damaged(folder, str(error)) from None
    written = result.get("format", 1)
    for key, kind in TYPES.items():
        if key in result and not isinstance(result[key], kind):
            raise Damaged(folder, f"result.json has {key} {result[key]!r}")
    cpu = result.get("cpu")
    if cpu is not None and not all(isinstance(cpu.get(key), kind) for key, kind in TYPES_OF_CPU.items()):
        raise Damaged(folder, f"result.json has cpu {cpu!r}")
    if written > FORMAT:
        detail = f"result.json has format {written}, of a newer version; this one knows {FORMAT}: update this checkout"
        raise Newer(folder, detail)
    return result


def read_data(folder: Path) -> dict[str, Any]:
    """Return the content of data.json; empty without one, as in folders of older versions and in results/.

    Raises:
        Damaged: it has no path or no hash.
    """
    return _read(folder, DATA_FILE, lambda path: read_json(path, ["root", "sha256"])) or {}


def read_lines(folder: Path, file: str, keys: Collection[str] = ("epoch",)) -> list[dict[str, Any]]:
    """Return the complete lines of a .jsonl file.

    Return an empty list without a file. An incomplete last line is being written, or was torn.

    Raises:
        Damaged: a line is not a record, lacks one of the keys, or has an epoch that is not a whole number.
    """
    records = _read(folder, file, lambda path: read_json_lines(path, keys, torn_end=True)) or []
    for record in records if "epoch" in keys else ():
        if type(record["epoch"]) is not int:
            raise Damaged(folder, f"{file} has the epoch {record['epoch']!r}")
    return records


def read_epochs(folder: Path, file: str, epochs: int, first: int = 1) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, timing.jsonl or heads.jsonl for the epochs from `first` to `epochs`.

    Raises:
        Damaged: lines are missing or belong to other epochs, or one lacks a number.
    """
    records = read_lines(folder, file)
    if [record["epoch"] for record in records] != list(range(first, epochs + 1)):
        raise Damaged(folder, f"{file} has {len(records)} of {counted(epochs - first + 1, 'line')}")
    require_numbers(folder, file, records)
    return records


def require_numbers(folder: Path, file: str, records: list[dict[str, Any]], keys: Collection[str] = ()) -> None:
    """Raise Damaged for lines of metrics.jsonl or timing.jsonl with a missing key, or without a number for one."""
    for record in records if file in NUMBERS else ():
        found = {key: record.get(key) for key in keys} | record
        bad = [key for key, value in found.items() if not _is_number(value) and key not in MAY_LACK]
        if bad:
            raise Damaged(folder, f"{file}: epoch {record['epoch']} has {bad[0]} {found[bad[0]]!r}, which is no number")
        negative = [key for key, value in found.items() if key.endswith("seconds") and (value or 0) < 0]
        if negative:
            raise Damaged(folder, f"{file}: epoch {record['epoch']} has {negative[0]} {found[negative[0]]!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return config.yaml, result.json and the lines of metrics.jsonl of a finished run, checked against each other.

    Raises:
        Damaged: one is missing or unreadable, or they contradict each other.
    """
    config, result = read_config(folder), read_result(folder)
    if result is None or result["status"] != "done":
        raise Damaged(folder, "the run is not done")
    missing = [key for key in RESULT_KEYS if key not in result]
    if missing:
        raise Damaged(folder, f"result.json lacks {', '.join(missing)}")
    metrics, _ = (read_epochs(folder, file, config["epochs"]) for file in ("metrics.jsonl", "timing.jsonl"))
    if result.get("format", 1) >= 3 and not (folder / PREDICTIONS).exists():
        raise Damaged(folder, f"no {PREDICTIONS}")
    _check_kept(folder, config["epochs"] if result.get("format", 1) >= 3 else None)
    for name in ACCURACIES:
        said, recorded = result.get(name.replace("/", "_")), metrics[-1].get(name)
        if said != recorded:
            raise Damaged(folder, f"result.json says {name} {said}, metrics.jsonl {recorded}")
    if "train/acc" not in metrics[-1]:
        raise Damaged(folder, "the last line of metrics.jsonl has no train/acc")
    for key, said in _identity(config).items():
        if (found := result.get(key, said)) != said:
            raise Damaged(folder, f"result.json is of another run: its {key} is {found}, not {said}")
    return config, result, metrics


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return what config.yaml and result.json both say about a run."""
    names = {part: config[part].get("name") for part in ("model", "recipe", "scale", "data")}
    settings = {key: config[key] for key in ("name", "seed", "epochs")}
    return names | settings | {"fraction": config["data"]["fraction"]}


def _check_kept(folder: Path, epochs: int | None) -> None:
    """Raise Damaged if an optional file exists and is not what its name says; this does not need NumPy.

    Args:
        epochs: the last epoch of heads.jsonl; None for older formats, whose lines differ.
    """
    if epochs is None or not (folder / "heads.jsonl").exists():
        read_lines(folder, "heads.jsonl")
    else:
        read_epochs(folder, "heads.jsonl", epochs, first=0)
    for file in ARRAYS:
        if (folder / file).exists() and not _read(folder, file, first_bytes).startswith(MAGIC):
            raise Damaged(folder, f"{file} is not a NumPy array")


def require_whole_arrays(folder: Path) -> None:
    """Check that the .npy files of a run can be read to their end.

    Raises:
        Damaged: one is cut off, or is not what its name says.
    """
    import numpy as np

    def read(path: Path) -> None:
        with reading(path):
            np.load(path, allow_pickle=False)

    for file in ARRAYS:
        _read(folder, file, read)


def right_answers(path: Path, labels: "np.ndarray", accuracy: float) -> "np.ndarray":
    """Return for which test images the predictions in a file are right.

    Raises:
        FileError: it cannot be read, or contradicts the accuracy that the run recorded.
    """
    import numpy as np

    with reading(path):
        right = np.asarray(np.load(path, allow_pickle=False) == labels)
        found = round(float(right.mean()), 6)
    if found != round(accuracy, 6):
        raise FileError(f"{path} has accuracy {found}, and the run recorded {accuracy}")
    return right


def require_right_answers(folder: Path, labels: "np.ndarray", accuracy: float) -> None:
    """Check that a run has predictions, and that they have the accuracy that the run recorded.

    Raises:
        Damaged: they are missing or cannot be read, or have another accuracy.
    """
    if _read(folder, PREDICTIONS, lambda path: right_answers(path, labels, accuracy)) is None:
        raise Damaged(folder, f"no {PREDICTIONS}")


def _read(folder: Path, file: str, read: Callable[[Path], Any]) -> Any:
    """Return the result of `read` on a file of a run folder, or None if the file does not exist."""
    path = folder / file
    try:
        return read(path)
    except FileError as error:
        # checking first would be too early: it could be deleted before it is read
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        broken = not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, IsADirectoryError)
        raise (Damaged if broken else Unreadable)(folder, f"{file}{str(error).removeprefix(str(path))}") from error


def recorded_epochs(folder: Path, images: int) -> list[tuple[int, dict[str, float]]]:
    """Return epochs and their metrics, including those of earlier starts, for a dashboard.

    Args:
        images: number of images shown in an epoch.
    """
    timings = {record["epoch"]: record["train_seconds"] for record in read_lines(folder, "timing.jsonl")}
    history = []
    for record in read_lines(folder, "metrics.jsonl"):
        epoch = record.pop("epoch")
        history.append((epoch, record | {"images_per_second": images / timings[epoch]}))
    return history


def final_numbers(folder: Path, images: int) -> dict[str, Any]:
    """Return the accuracies of the last epoch, and the total times over all starts of the run.

    `cpu_seconds` is missing if an older version trained part of the run without recording it.
    """
    last, timings = read_lines(folder, "metrics.jsonl")[-1], read_lines(folder, "timing.jsonl")
    train_seconds = sum(timing["train_seconds"] for timing in timings)
    cpu = [timing.get(key) for timing in timings for key in ("train_cpu_seconds", "eval_cpu_seconds")]
    return {
        **{name.replace("/", "_"): last[name] for name in ACCURACIES if name in last},
        "train_seconds": train_seconds,
        "seconds": train_seconds + sum(timing["eval_seconds"] for timing in timings),
        **({} if None in cpu else {"cpu_seconds": sum(cpu)}),
        "images_per_second": images * len(timings) / train_seconds,
    }
