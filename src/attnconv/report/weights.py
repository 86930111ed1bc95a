"""results/weights/: the trained weights of chosen runs in float16, small enough for a repository."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from attnconv.errors import RunFolderError, counted
from attnconv.files import write_whole
from attnconv.report.runs_table import kept_out
from attnconv.runs.records import name_of, read_config
from attnconv.runs.status import collected_folder, collected_weights, find_folders, read_state

LIMIT = 16_000_000  # of all files together


def choose_weights(outputs: Iterable[Path], results: Path, patterns: Iterable[str]) -> dict[Path, str]:
    """Return the folders and names of the finished runs whose weights are requested, without writing anything.

    Args:
        outputs: folders of run folders.
        patterns: names of runs, in which * matches any characters.

    Raises:
        RunFolderError: a pattern matches no finished run, a run must not be published, its weights cannot be kept, or
            there would be more than LIMIT bytes.
    """
    finished = [folder for place in outputs for folder in find_folders(place) if read_state(folder).status == "done"]
    names = {folder: name_of(read_config(folder)) for folder in finished}
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names.values()):
            raise RunFolderError(
                f"--weights {pattern}: no finished run has that name; names look like STUDY/MODEL/.../seed0"
            )
    chosen = {folder: name for folder, name in names.items() if any(_matches(name, each) for each in patterns)}
    for folder, name in chosen.items():
        reason = kept_out(read_state(folder).result)
        if reason:
            raise RunFolderError(f"the weights of {name} cannot be kept ({reason}); choose other runs")
    _check_room(chosen, results)
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern, in which only * has a meaning, matches a name."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def keep_weights(chosen: dict[Path, str], results: Path) -> list[str]:
    """Write the weights of the chosen runs that results/ has, and return the runs' names.

    Args:
        chosen: see `choose_weights`.
    """
    kept = []
    for folder, name in chosen.items():
        collected = collected_folder(results, name) / "result.json"
        if not collected.exists() or collected.read_bytes() != (folder / "result.json").read_bytes():
            continue  # results/ has a different run of that name; the command reports it
        path, metadata = collected_weights(results, name), _metadata(folder, name)
        # A safetensors header stores its metadata in any order, so equal files may differ in their bytes.
        if not path.exists() or _read_metadata(path) != metadata:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, _in_half(folder, metadata))
        kept.append(name)
    return kept


def _check_room(chosen: dict[Path, str], results: Path) -> None:
    """Raise RunFolderError if results/weights would exceed LIMIT bytes."""
    sizes = {name: len(_in_half(folder, _metadata(folder, name))) for folder, name in chosen.items()}
    replaced = {collected_weights(results, name) for name in sizes}
    there = sum(path.stat().st_size for path in (results / "weights").rglob("*.safetensors") if path not in replaced)
    if there + sum(sizes.values()) > LIMIT:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RunFolderError(
            f"the weights of {counted(len(sizes), 'run')} need {_megabytes(sum(sizes.values()))} (largest: {largest}, "
            f"{_megabytes(sizes[largest])}), and {results}/weights already has {_megabytes(there)}; "
            f"the limit is {_megabytes(LIMIT)}: choose fewer runs, or delete some files"
        )


def _in_half(folder: Path, metadata: dict[str, str]) -> bytes:
    """Return a safetensors file with the weights of a run, with floating-point weights in float16.

    Raises:
        FileError: they are damaged; RunFolderError: they are too large for float16.
    """
    import torch  # collect.py without --weights does not need it
    from safetensors.torch import save

    from attnconv.models.weight_files import read_weights

    path = folder / "weights.safetensors"
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in read_weights(path).items()
    }
    for name, tensor in halves.items():
        if not torch.isfinite(tensor).all():
            raise RunFolderError(f"{path}: {name} has values that float16 cannot hold")
    return save(halves, metadata)


def _metadata(folder: Path, name: str) -> dict[str, str]:
    """Return the metadata about the run for the file.

    Raises:
        RunFolderError: the run has no weights.
    """
    result, path = json.loads((folder / "result.json").read_text("utf-8")), folder / "weights.safetensors"
    if not path.exists():
        raise RunFolderError(f"{folder} has no weights.safetensors")
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"run": name, "commit": result["commit"], "data_hash": result["data_hash"], "weights_sha256": source}


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except SafetensorError as error:
        raise RunFolderError(f"{path} is damaged ({error}); delete it and collect again") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
