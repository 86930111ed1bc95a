"""Turn errors that end a run into messages for the user."""

import errno
import math
from typing import Any

from attnconv.config import Config
from attnconv.errors import (
    CannotWrite,
    ConfigError,
    Diverged,
    OutOfMemory,
    Stopped,
    UserError,
    counted,
    is_out_of_memory,
    line_of_user,
    reason_of,
)
from attnconv.files import with_line
from attnconv.runs.checkpoint import newest
from attnconv.runs.folder import RunFolder
from attnconv.settings.contradictions import may_have_gaussian_heads
from attnconv.training.metrics import NOT_FINITE, NotFinite, Score

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO, errno.EISDIR)


def explain(error: Exception, config: Config, folder: RunFolder, images: int, doing: str) -> Exception:
    """Return an error with a message for the user if the cause is known, else the error itself.

    Args:
        images: number of images shown in an epoch.
        doing: "training" or "evaluation".
    """
    if isinstance(error, NotFinite):
        steps = math.ceil(images / config.recipe.batch_size)
        epoch, batch = divmod(error.step, steps)
        if error.step == 0:
            return Diverged(
                f"the {error.what} of the first step is not finite, before any weight has changed: "
                f"model={config.model['name']} gives nan, inf or too large numbers"
            )
        good = newest(folder.checkpoints)
        go_on = f" under another name=. The last good checkpoint: {good}" if good else ""
        return Diverged(
            f"the {error.what} of step {error.step + 1} (epoch {epoch + 1}, batch {batch + 1} of {steps}) is not "
            f"finite; {_lower(config)}{go_on}"
        )
    if is_out_of_memory(error):
        setting = "recipe.batch_size" if doing == "training" else "eval_batch_size"
        value = config.recipe.batch_size if doing == "training" else config.eval_batch_size
        return OutOfMemory(f"out of memory in {doing}; lower {setting} (now {value}), or the scale")
    if config.compile and "InvalidCxxCompiler" in str(error):
        return ConfigError("compile=true needs a C++ compiler, which is missing: install g++, or set compile=false")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return CannotWrite(
            f"{folder.path} cannot be written: {error.strerror}; "
            "once it can, rerun the same command to resume from the last checkpoint"
        )
    if line_of_user(error) and not isinstance(error, UserError):
        return ConfigError(f"model={config.model['name']} failed in {doing}: {with_line(error)}")
    return error


def outcome_of(error: BaseException) -> dict[str, Any]:
    """Return the part of result.json about a run that an error or a signal ended."""
    if isinstance(error, KeyboardInterrupt | Stopped | SystemExit | BrokenPipeError | CannotWrite):
        # BrokenPipeError: `| head` has closed stdout
        reason = error.reason if isinstance(error, Stopped) else None
        reason = str(error) if isinstance(error, CannotWrite) else reason
        return {"status": "interrupted"} | ({"reason": reason} if reason else {})
    return {"status": "failed"} | ({"reason": reason_of(error)} if isinstance(error, Exception) else {})


def diverged(epoch: int, split: str, score: Score, config: Config) -> Diverged:
    """Return the error for an evaluation of a split with a loss that is not finite."""
    assert score.predictions is not None
    bad = (score.predictions == NOT_FINITE).nonzero().flatten().tolist()
    reason = _lower(config)
    if 0 < len(bad) < len(score.predictions):  # after training went wrong, all images are affected
        reason = f"model={config.model['name']} gives nan or inf for {counted(len(bad), 'image')}, first for image "
        reason += f"{bad[0]} (from 0)"
    return Diverged(f"the {split} loss after epoch {epoch} is {score.loss}; {reason}")


def _lower(config: Config) -> str:
    """Return which learning rates to lower, with their values."""
    recipe = config.recipe
    if recipe.lr_scale != 1:
        return f"lower recipe.lr_scale (now {recipe.lr_scale:g})"
    of_adamw = {"adamw_lr": recipe.adamw_lr} if recipe.optimizer == "muon" else {}
    of_heads = {"centers_lr": recipe.centers_lr} if may_have_gaussian_heads(config.model) else {}
    rates = {"lr": recipe.lr, **of_adamw, **of_heads}
    known = {f"recipe.{name}": f"{rate:g}" for name, rate in rates.items() if rate is not None}
    return f"lower {' and '.join(known)} (now {' and '.join(known.values())})"
