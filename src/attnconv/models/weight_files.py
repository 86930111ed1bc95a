"""Read weight files without executing code in them, and fit their tensors to a network.

All weights are read here: those of run folders, checkpoints, and published ones. A file's type is detected from its
content, not its name. Two formats are supported: safetensors, and torch.save's with
`weights_only=True`.
"""

import argparse
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attnconv.errors import first_few, physical_memory
from attnconv.files import FileError, first_bytes, in_one_line, kind_of

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
READ = "supported formats are safetensors and files written by torch.save(model.state_dict(), FILE)"

# Where training scripts store weights; if several of these hold a fitting network, the first one is used.
PLACES = (
    "model", "state_dict", "net", "network", "model_state_dict", "module", "params", "weights",
    "ema", "model_ema", "state_dict_ema", "params_ema", "ema_state_dict",
)  # fmt: skip
COUNTER = "num_batches_tracked"  # of batch norm, which needs it only without a momentum
DEPTH = 2  # maximum number of wrappers around a network
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before its zip format


@dataclass(frozen=True)
class Candidate:
    """Tensors by name, found at a place in a file; `same` is how many match the network's names and shapes."""

    place: str
    tensors: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    same: int

    @property
    def fits(self) -> bool:
        return not self.missing + self.unexpected + self.reshaped


def load_weights(model: nn.Module, path: Path, classes: int) -> None:
    """Load the weights in a file into a network; arguments and errors as for `fitting_weights`."""
    model.load_state_dict(fitting_weights(model, path, classes), strict=False)  # only counters may be missing


def fitting_weights(model: nn.Module, path: Path, classes: int) -> dict[str, Tensor]:
    """Return the weights in a file under the network's names and in its precision.

    Weights are found below `model`, `state_dict` and other wrappers, two levels deep, and without a prefix that all
    names share (`module.`, `_orig_mod.`). Batch norm's num_batches_tracked may be missing.

    Args:
        model: the network; it may be on the meta device.
        classes: the network's number of classes, for an error message if the file's head has another number.

    Raises:
        FileError: see `read_weights`; it holds no weights, those of another network, or values that are not finite.
    """
    loaded, state = read_weights(path), _tensors(model.state_dict())
    expected = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    found = [_compare(place, names, expected) for place, names in networks_in(loaded)]
    if not found:
        raise FileError(f"{path} holds {_content(loaded)}, not the weights of a network; {READ}")
    best = max(found, key=lambda candidate: (candidate.fits, candidate.same, -len(candidate.missing)))
    if not best.fits:
        raise FileError(f"{path}{best.place and f' ({best.place})'} {_mismatch(best, expected, classes, loaded)}")
    others = sorted({candidate.place for candidate in found if candidate.fits} - {best.place})
    if others:
        print(f"warning: {path} also has fitting weights in {', '.join(others)}; using {best.place}", file=sys.stderr)
    _check_sums(path)
    return _converted(path, best, state)


def read_weights(path: Path, in_place: bool = True) -> Any:
    """Return the content of a weight file, on the CPU: nested dictionaries, lists, tensors and plain values.

    Args:
        in_place: leave tensors in the file until they are used, so that large files need no memory.

    Raises:
        FileError: the file is missing, unreadable, empty, damaged, of another type, or holds objects that only code
            from the file could create.
    """
    head = first_bytes(path)
    size, memory = path.stat().st_size, physical_memory()
    if size > memory:
        raise FileError(f"{path} has {size / 1e9:,.0f} GB, but this machine has {memory / 1e9:,.0f} GB of memory")
    if head[4:9] == b"\0\0\0\0{":  # the upper half of the header's length, and the header's first character
        return _read_safetensors(path)
    if head.startswith(b"PK\3\4"):
        _check_archive(path)
        return _read_torch(path, in_place)
    if LEGACY in head[:20]:
        return _read_torch(path, False)
    raise FileError(f"{path} is {kind_of(head)}; {READ}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise FileError(f"{path} is damaged or cut off ({in_one_line(error)}); get it again") from error


def _read_torch(path: Path, in_place: bool) -> Any:
    try:
        # timm's training stores its command line, a plain record, next to the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=in_place)
    except Exception as error:  # a damaged pickle can fail in any way
        objects = re.search(r"GLOBAL (\S+)", str(error))
        if objects is None:
            raise FileError(f"{path} is damaged or cut off ({in_one_line(error)}); get it again") from error
        raise FileError(
            f"{path} holds pickled objects ({objects[1]}), which can run any code when they are loaded. Where it was "
            "made, save only the weights: torch.save(model.state_dict(), FILE)"
        ) from error


def _check_archive(path: Path) -> None:
    """Raise FileError for a zip archive that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FileError(f"{path} is damaged or cut off ({in_one_line(error)}); get it again") from error
    names = {entry.filename.partition("/")[2] or entry.filename for entry in entries}
    if "constants.pkl" in names:
        kind = "a TorchScript archive, which is a program"
    elif "archive_format" in names:
        kind = "a program of torch.export"
    elif any(name.endswith(".npy") for name in names):
        kind = "an archive of NumPy arrays"
    elif "model.weights.h5" in names:
        kind = "a Keras model"
    elif "data.pkl" not in names or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        kind = f"a zip archive that torch.save did not write (it holds {entries[0].filename if entries else 'nothing'})"
    else:
        return
    raise FileError(f"{path} is {kind}; {READ}")


def _check_sums(path: Path) -> None:
    """Raise FileError if an entry of torch.save's archive has a wrong checksum, which torch.load does not verify."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise FileError(f"{path} is damaged (the checksum of {damaged} does not match); get it again")


def networks_in(loaded: Any, place: str = "", depth: int = 0) -> list[tuple[str, dict[str, Tensor]]]:
    """Return all dictionaries of tensors in a file with their places, known places first, with and without prefixes."""
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        return []
    names = _tensors(loaded)
    found = [(place, names)] if names else []
    if "n_averaged" in names:  # perhaps the counter of PyTorch's AveragedModel
        names = {name: tensor for name, tensor in names.items() if name != "n_averaged"}
        found.append((place, names))
    while names and len({name.partition(".")[0] for name in names}) == 1 and all("." in name for name in names):
        names = {name.partition(".")[2]: tensor for name, tensor in names.items()}
        found.append((place, names))
    if depth < DEPTH:
        for key in sorted(loaded, key=lambda key: PLACES.index(key) if key in PLACES else len(PLACES)):
            found += networks_in(loaded[key], f"{place}.{key}".strip("."), depth + 1)
    return found


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _compare(place: str, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> Candidate:
    both = [name for name in expected if name in tensors]
    reshaped = [name for name in both if tensors[name].shape != expected[name].shape]
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and not name.endswith(COUNTER)]
    return Candidate(place, tensors, missing, unexpected, reshaped, len(both) - len(reshaped))


def _converted(path: Path, found: Candidate, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a fitting candidate in the network's precision, checking that they are finite.

    Entries may be infinite or nan where the network's own are, as in the mask of causal attention.
    """
    converted = {}
    for name, like in state.items():
        if name not in found.tensors:
            continue
        tensor = found.tensors[name]
        if like.is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise FileError(f"{path}: {name} has type {kind}: quantized weights cannot be read; save them as floats")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise FileError(f"{path}: {name} has no plain values (layout {tensor.layout}, device {tensor.device})")
        converted[name] = tensor.to(like.dtype)
    broken = [name for name, tensor in converted.items() if _breaks(tensor, state[name])]
    if broken:
        raise FileError(
            f"{path} has nan or inf in {len(broken)} of {len(converted)} tensors ({first_few(broken, 2)}): training "
            "diverged, or the precision was too low; use an earlier checkpoint"
        )
    return converted


def _breaks(tensor: Tensor, like: Tensor) -> bool:
    finite = tensor.isfinite()
    return not bool((finite if like.is_meta else finite | ~like.isfinite().cpu()).all())


def _mismatch(found: Candidate, expected: dict[str, Tensor], classes: int, loaded: Any) -> str:
    """Return why a candidate does not fit, in words."""
    theirs = {tuple(found.tensors[name].shape) for name in found.reshaped}
    ours = {tuple(expected[name].shape) for name in found.reshaped}
    if not found.missing + found.unexpected and {shape[:1] for shape in ours} == {(classes,)}:
        heads = {shape[:1] for shape in theirs}
        if (
            len(heads) == 1
            and {shape[1:] for shape in theirs} == {shape[1:] for shape in ours}
            and (head := heads.pop())
        ):
            return f"has other classes: the file's head has {head[0]} classes, and this network has {classes}"
    if not found.same and _holds_optimizer(loaded):
        return "holds the state of an optimizer, not the weights of a network: also save model.state_dict()"
    parts = [f"holds another network: {found.same} of this network's {len(expected)} tensors match"]
    if found.missing:
        parts.append(f"missing {first_few(found.missing, 2)}")
    if found.unexpected:
        parts.append(f"unexpected {first_few(found.unexpected, 2)}")
    if found.reshaped:
        name = found.reshaped[0]
        shapes = f"{tuple(found.tensors[name].shape)} in the file, {tuple(expected[name].shape)} in the network"
        parts.append(f"the shape of {first_few(found.reshaped, 2)} differs: {shapes}")
    return "; ".join(parts) + "; choose the model and the settings of the training"


def _holds_optimizer(loaded: Any) -> bool:
    parts = [loaded, *loaded.values()] if isinstance(loaded, Mapping) else []
    return any(isinstance(part, Mapping) and "param_groups" in part for part in parts)


def _content(loaded: Any) -> str:
    """Return the content of a file without named tensors, in words."""
    if _holds_optimizer(loaded):
        return "the state of an optimizer"
    if isinstance(loaded, Mapping):
        return f"a dictionary of {first_few([str(key) for key in loaded], 2) or 'nothing'}"
    return f"a {type(loaded).__name__}"
