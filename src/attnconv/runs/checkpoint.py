"""Checkpoints: written completely or not at all, identified by their hash, and read without executing code.

A checkpoint is one file, `step00001234-<hash>.pt`. The name holds the first 16 hex digits of the SHA-256 of its bytes,
so torn and altered files are detected, and the rename that publishes the file also publishes its hash. The last two are
kept; if the newest is damaged, the run continues from the previous one, to the same bytes.

A checkpoint holds everything that a run needs to continue. Data order, augmentation, dropout and the learning rate are
functions of counters and have no state.
"""

import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.errors import RunFolderError
from attnconv.files import in_one_line, write_whole
from attnconv.models.weight_files import read_weights
from attnconv.runs.identity import changes, listed

FORMAT = 2  # 2 added cpu_seconds to the progress
KEPT = 2
NAME = re.compile(r"step(\d{8,})-([0-9a-f]{16})\.pt")


@dataclass
class Progress:
    """How far a run has come in its training.

    The sums (loss, correct, images) and the times belong to the current epoch; between epochs all are 0. `cpu_seconds`
    is None if an older version wrote the checkpoint.
    """

    epochs_done: int = 0
    steps_in_epoch: int = 0
    loss: float = 0.0
    correct: float = 0.0
    images: int = 0
    seconds: float = 0.0
    cpu_seconds: float | None = 0.0


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    step: int,
    run: dict[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps in all, then delete all checkpoints but this one and the previous one.

    Args:
        run: what identifies the run (attnconv.runs.identity.identity); None if nothing does.

    Raises:
        OSError: the file cannot be written; older checkpoints are unchanged.
    """
    buffer = io.BytesIO()
    state = {"format": FORMAT, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"position": vars(progress), "run": run}, buffer)
    content = buffer.getvalue()
    path = folder / f"step{step:08d}-{_digest(content)}.pt"
    write_whole(path, content)
    kept = [path]
    for other in _newest_first(folder):
        # Later checkpoints were damaged, or this step would not be reached again.
        if len(kept) < KEPT and other.name < path.name and is_sound(other):
            kept.append(other)
        elif other not in kept:
            other.unlink()


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any] | None = None
) -> Progress | None:
    """Restore model and optimizer from the newest intact checkpoint, and return its progress, or None if there is none.

    Damaged checkpoints, and those that cannot be read, are reported on stderr and skipped.

    Args:
        run: what identifies the run; None to accept that of any.

    Raises:
        RunFolderError: all are damaged or cannot be read, or the newest intact one has a newer format, or is of another
            run or model.
        FileError: the newest intact one holds more than tensors and plain values.
    """
    candidates = _newest_first(folder)
    unreadable = ""
    for path in candidates:
        try:
            sound, fault = _matches_name(path), "is damaged (its hash does not match its name)"
        except OSError as error:
            sound, fault = False, f"cannot be read ({error.strerror})"
            unreadable = fault
        if sound:
            return _restore(path, model, optimizer, run)
        print(f"warning: {path} {fault}; using the previous checkpoint", file=sys.stderr)
    if unreadable:
        raise RunFolderError(f"no checkpoint in {folder} is intact, and one {unreadable}; rerun once it can be read")
    if candidates:
        raise RunFolderError(
            f"all checkpoints in {folder} are damaged ({', '.join(path.name for path in candidates)}); "
            "delete that folder to start the run again"
        )
    return None


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any] | None) -> Progress:
    state: dict[str, Any] = read_weights(path, in_place=False)
    if state["format"] > FORMAT:
        raise RunFolderError(
            f"{path} was written by a newer version (format {state['format']}, this one reads {FORMAT})"
        )
    recorded = state.get("run")  # older versions did not write it
    different = changes(recorded, run) if recorded and run else {}
    if different:
        raise RunFolderError(f"{path} is a checkpoint of another run ({listed(different)}); delete it, and rerun")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path} is a checkpoint of another model ({in_one_line(error)})") from error
    return Progress(**({"cpu_seconds": None} | state["position"]))


def export_weights(path: Path, model: nn.Module) -> None:
    """Write the trained weights as safetensors, which can be read without pickle and without this package."""
    from safetensors.torch import save

    # Copies, because the format refuses tensors that share memory, as tied parameters do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    write_whole(path, save(tensors))


def check_state(model: nn.Module) -> None:
    """Raise ValueError for a network with state that a file cannot hold or that cannot be loaded again."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} of its state_dict() is a {type(value).__name__}, and only tensors can be saved")
        if value.is_meta:
            raise ValueError(f"{name} is on the meta device, without values; a constructor must build a new network")
        if value.layout != torch.strided or value.dtype in (torch.complex32, torch.complex128):
            kind = str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}, which weights.safetensors cannot hold")
        if any(size > 1 and step == 0 for size, step in zip(value.shape, value.stride(), strict=True)):
            raise ValueError(f"{name} is expanded, so its values could not be loaded again: add .clone()")


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint, or None."""
    return next(filter(is_sound, _newest_first(folder)), None)


def is_sound(path: Path) -> bool:
    """Return whether a checkpoint is readable and its content matches its name."""
    try:
        return _matches_name(path)
    except OSError:  # a failing disk
        return False


def _matches_name(path: Path) -> bool:
    return path.stem.endswith(f"-{_digest(path.read_bytes())}")


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step*.pt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
