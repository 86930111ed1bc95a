"""Checkpoints: written whole or not at all, found again by their hash, read without executing anything.

A checkpoint is one file, `step00001234-<hash>.pt`: its name holds the first 16 hex digits of the SHA-256 of its bytes,
so that a torn or altered file is known as such, and the rename that publishes it publishes its hash too. The last two
are kept; when the newest is damaged, the one before continues the run to the same bytes.

What it holds is all that a continuation depends on. Data order, augmentation, dropout and the learning rate are
functions of counters and need no state of their own.
"""

import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnconv.errors import RunFolderError
from attnconv.files import write_whole
from attnconv.models.weight_files import read_weights

FORMAT = 2  # 2 added the position's cpu_seconds
KEPT = 2
NAME = re.compile(r"step(\d{8,})-([0-9a-f]{16})\.pt")


@dataclass
class Position:
    """Where a run stands.

    The sums (loss, correct, images) and times are those of the epoch that has begun; between two epochs all are 0.
    `cpu_seconds` is None where a checkpoint of an older version does not say.
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
    position: Position,
    step: int,
) -> None:
    """Write the state after `step` steps in all, then forget all but this checkpoint and the one before.

    Raises:
        OSError: it cannot be written; the older ones are untouched.
    """
    buffer = io.BytesIO()
    state = {"format": FORMAT, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"position": vars(position)}, buffer)
    content = buffer.getvalue()
    path = folder / f"step{step:08d}-{_digest(content)}.pt"
    write_whole(path, content)
    kept = [path]
    for other in _newest_first(folder):
        # Later ones than this were damaged, or there would have been no coming here again.
        if len(kept) < KEPT and other.name < path.name and is_sound(other):
            kept.append(other)
        elif other not in kept:
            other.unlink()


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position | None:
    """Restore model and optimizer from the newest sound checkpoint; None if there are no checkpoints.

    Damaged ones are named on stderr and passed over.

    Raises:
        RunFolderError: all are damaged, or the newest sound one is of a newer format or of another model.
        FileError: the newest sound one holds more than tensors and plain values.
    """
    candidates = _newest_first(folder)
    for path in candidates:
        if is_sound(path):
            return _restore(path, model, optimizer)
        print(f"warning: {path} is damaged (its hash is not that of its name); using the one before", file=sys.stderr)
    if candidates:
        raise RunFolderError(
            f"no checkpoint in {folder} is sound: {', '.join(path.name for path in candidates)} are damaged; "
            "delete that folder to start the run again"
        )
    return None


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    state: dict[str, Any] = read_weights(path, in_place=False)
    if state["format"] > FORMAT:
        raise RunFolderError(
            f"{path} was written by a newer version (format {state['format']}, this one reads {FORMAT})"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFolderError(f"{path} is a checkpoint of another model ({reason})") from error
    return Position(**({"cpu_seconds": None} | state["position"]))


def export_weights(path: Path, model: nn.Module) -> None:
    """The trained weights as safetensors, which need neither pickle nor this package to be read."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors))


def newest(folder: Path) -> Path | None:
    """The newest sound checkpoint; None if there is none."""
    return next(filter(is_sound, _newest_first(folder)), None)


def is_sound(path: Path) -> bool:
    """Whether a checkpoint can be read, and its content is what its name says."""
    try:
        return path.stem.endswith(f"-{_digest(path.read_bytes())}")
    except OSError:  # a failing disk
        return False


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step*.pt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
