"""What can befall a run, in the user's terms."""

import errno
import math

import torch

from attnconv.config import Config
from attnconv.errors import Diverged, OutOfMemory, RunFolderError
from attnconv.runs.checkpoint import newest
from attnconv.runs.folder import RunFolder
from attnconv.training.loop import NotFinite, Score


def explain(error: Exception, config: Config, folder: RunFolder, images: int, doing: str) -> Exception:
    """An error that a run met, in the user's terms where it has some; else itself.

    Args:
        images: shown in an epoch.
        doing: training or evaluation.
    """
    if isinstance(error, NotFinite):
        steps = math.ceil(images / config.recipe.batch_size)
        epoch, batch = divmod(error.step, steps)
        good = newest(folder.checkpoints)
        go_on = f" under another name=. The last good checkpoint: {good}" if good else ""
        return Diverged(
            f"the {error.what} of step {error.step + 1} (epoch {epoch + 1}, batch {batch + 1} of {steps}) is not "
            f"finite; lower recipe.lr={config.recipe.lr:g}{go_on}"
        )
    if is_out_of_memory(error):
        setting = "recipe.batch_size" if doing == "training" else "eval_batch_size"
        value = config.recipe.batch_size if doing == "training" else config.eval_batch_size
        return OutOfMemory(f"out of memory in {doing}; lower {setting}={value}, or the scale")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return RunFolderError(
            f"{folder.path} cannot be written: {error.strerror}; "
            "once it can, the same command goes on from the last checkpoint"
        )
    return error


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory left."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)


def require_finite(epoch: int, scores: dict[str, Score], config: Config) -> None:
    """Raise Diverged for an evaluation whose loss is no finite number."""
    for split, score in scores.items():
        if not math.isfinite(score.loss):
            raise Diverged(
                f"the {split} loss after epoch {epoch} is {score.loss}; lower recipe.lr={config.recipe.lr:g}"
            )
