"""results/weights/: the trained weights of chosen runs in float16, few enough for a repository."""

import hashlib
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from attnconv.errors import RunFolderError
from attnconv.files import write_whole
from attnconv.models.weight_files import read_weights
from attnconv.report.collect import kept_out
from attnconv.runs.records import name_of, read_config
from attnconv.runs.status import collected_folder, collected_weights, find_folders, look

LIMIT = 16_000_000  # bytes of all files together


def choose_weights(outputs: Iterable[Path], results: Path, patterns: Iterable[str]) -> dict[Path, str]:
    """The folders of finished runs whose weights are wanted, and the runs' names. Nothing is written.

    Args:
        outputs: folders of run folders.
        patterns: names of runs, in which * stands for any characters.

    Raises:
        RunFolderError: a pattern matches no finished run, a run must not be published or its weights cannot be kept,
            or there would be more than LIMIT bytes.
    """
    finished = [folder for place in outputs for folder in find_folders(place) if look(folder).status == "done"]
    names = {folder: name_of(read_config(folder)) for folder in finished}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise RunFolderError(f"--weights {pattern}: no finished run of that name; names are STUDY/MODEL/.../seed0")
    chosen = {folder: name for folder, name in names.items() if any(fnmatchcase(name, each) for each in patterns)}
    for folder, name in chosen.items():
        reason = kept_out(look(folder).result)
        if reason:
            raise RunFolderError(f"the weights of {name} are not kept ({reason}); choose other runs")
    _check_room(chosen, results)
    return chosen


def keep_weights(chosen: dict[Path, str], results: Path) -> list[str]:
    """Write the weights of those chosen runs that results/ has; returns the runs' names.

    Args:
        chosen: see `choose_weights`.
    """
    kept = []
    for folder, name in chosen.items():
        collected = collected_folder(results, name) / "result.json"
        if not collected.exists() or collected.read_bytes() != (folder / "result.json").read_bytes():
            continue  # results/ has another run of that name, which the command says
        path, metadata = collected_weights(results, name), _metadata(folder, name)
        # A safetensors header has its metadata in any order, so that equal files may differ in their bytes.
        if not path.exists() or _read_metadata(path) != metadata:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, _in_half(folder, metadata))
        kept.append(name)
    return kept


def _check_room(chosen: dict[Path, str], results: Path) -> None:
    """Raise RunFolderError if results/weights would hold more than LIMIT bytes."""
    sizes = {name: len(_in_half(folder, _metadata(folder, name))) for folder, name in chosen.items()}
    replaced = {collected_weights(results, name) for name in sizes}
    there = sum(path.stat().st_size for path in (results / "weights").rglob("*.safetensors") if path not in replaced)
    if there + sum(sizes.values()) > LIMIT:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RunFolderError(
            f"the weights of {len(sizes)} runs take {_megabytes(sum(sizes.values()))} (most: {largest}, "
            f"{_megabytes(sizes[largest])}), and {results}/weights has {_megabytes(there)} of others; "
            f"{_megabytes(LIMIT)} may be there: choose fewer, or delete some"
        )


def _in_half(folder: Path, metadata: dict[str, str]) -> bytes:
    """A safetensors file with the weights of a run, those that are floating point in float16.

    Raises:
        FileError: they are damaged; RunFolderError: they are too large for float16.
    """
    path = folder / "weights.safetensors"
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in read_weights(path).items()
    }
    for name, tensor in halves.items():
        if not torch.isfinite(tensor).all():
            raise RunFolderError(f"{path}: {name} has values that float16 cannot hold")
    return save(halves, metadata)


def _metadata(folder: Path, name: str) -> dict[str, str]:
    """What the file says of the run.

    Raises:
        RunFolderError: the run has no weights.
    """
    result, path = json.loads((folder / "result.json").read_text()), folder / "weights.safetensors"
    if not path.exists():
        raise RunFolderError(f"{folder} has no weights.safetensors")
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"run": name, "commit": result["commit"], "data_hash": result["data_hash"], "weights_sha256": source}


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except SafetensorError as error:
        raise RunFolderError(f"{path} is damaged ({error}); delete it, to have it written anew") from error


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
