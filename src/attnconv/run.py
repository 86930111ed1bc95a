"""One run, from a frozen configuration to a finished run folder, in as many sittings as it takes.

A sitting is one process at work on the run. It goes on where the last checkpoint stands, and whatever ends it, the next
one continues to the same bytes.
"""

import json
import math
import sys
import traceback
from typing import Any

import torch

from attnconv.config import Config
from attnconv.errors import AlreadyDone, AtWork, CellFailed, Stopped, UserError
from attnconv.models.cost import build_unfilled, flops_full, flops_paper, parameters
from attnconv.runs.checkpoint import Position
from attnconv.runs.folder import FORMAT, RunFolder, run_folder_path
from attnconv.runs.provenance import commit, describe_cpu, describe_device, versions
from attnconv.training.device import pool
from attnconv.training.failures import explain
from attnconv.training.interrupts import Interrupts
from attnconv.training.setup import Run, prepare
from attnconv.training.trainer import Sitting


def run(config: Config) -> dict[str, Any]:
    """Train what `config` describes into its run folder, resuming an unfinished run; returns result.json's content.

    Raises:
        UserError: see `prepare`; Diverged, OutOfMemory and RunFolderError (a full disk) after result.json says so.
        Stopped: a signal asked for it, and there is a checkpoint; result.json says so.
    """
    this = prepare(config)
    try:
        if this.processes.writes:
            this.folder.open()
        this.processes.wait()
        result = _run_in_folder(this)
    finally:
        this.folder.close()
    this.processes.leave()
    return result


def run_in_sweep(config: Config) -> None:
    """One cell of a sweep: nothing to do if it is done or seen to, and a complaint at once if it fails.

    Raises:
        CellFailed: it failed; the reason has been printed.
        Stopped: see `run`.
    """
    failure = None
    try:
        run(config)
    except (AlreadyDone, AtWork) as seen_to:  # by another process, since the sweep began
        print(f"skipped: {seen_to}".partition(";")[0], flush=True)
    except UserError as error:
        failure = str(error)
        print(f"error: {failure}", file=sys.stderr, flush=True)
    except Exception as error:
        failure = in_one_line(error)
        traceback.print_exc()
    if failure is not None:
        # Not the error itself: its traceback would hold model and data in memory while the other cells run.
        raise CellFailed(failure)


def run_trial(config: Config) -> float:
    """One trial of a sweeper that optimizes: its validation accuracy, which a finished run has said already.

    Raises:
        UserError, Stopped: see `run`.
    """
    try:
        result = run(config)
    except AlreadyDone:
        result = json.loads((run_folder_path(config) / "result.json").read_text())
    accuracy: float = result["val_acc"]
    return accuracy


def _run_in_folder(this: Run) -> dict[str, Any]:
    identity = describe(this)
    with Interrupts(several=this.processes.count > 1, parent=pool()) as interrupts:
        sitting = begin_sitting(this, interrupts, identity)
        try:
            outcome = {"status": "done", **sitting.train()}
        except BaseException as error:
            outcome, explained = how_it_ended(error, sitting)
            sitting.close(outcome | identity)
            if explained is error:
                raise
            raise explained from error
        result = outcome | identity
        finish_sitting(sitting, result)
        if interrupts.signum is not None and not interrupts.has_owner:
            # It came too late for this run, which is done, but not for a sweep's next one.
            raise Stopped(interrupts.signum, done=True)
    return result


def begin_sitting(this: Run, interrupts: Interrupts, identity: dict[str, Any]) -> Sitting:
    """Sit down to a run, whose folder is open, and say so.

    Args:
        identity: see `describe`.

    Raises:
        UserError: it could not even begin, which result.json says.
    """
    try:
        sitting = Sitting(this, interrupts)
    except Exception as error:
        explained = explain(error, this.config, this.folder, this.data.epoch_images, "training")
        _write_failure(this, explained, identity)
        if explained is error:
            raise
        raise explained from error
    sitting.say(_opening_lines(identity, this.folder, sitting.position))
    return sitting


def how_it_ended(error: BaseException, sitting: Sitting) -> tuple[dict[str, Any], BaseException]:
    """What result.json is to say of a sitting that an error or a signal ended; and the error in the user's terms."""
    if isinstance(error, KeyboardInterrupt | Stopped | SystemExit):
        reason = error.reason if isinstance(error, Stopped) else None
        return {"status": "interrupted"} | ({"reason": reason} if reason else {}), error
    if not isinstance(error, Exception):
        return {"status": "failed"}, error
    explained = sitting.explain(error)
    return {"status": "failed", "reason": in_one_line(explained)}, explained


def finish_sitting(sitting: Sitting, result: dict[str, Any]) -> None:
    """Write the result of a run that is done, and say so."""
    sitting.close(result)
    if sitting.writes:
        sitting.say(_closing_line(result, sitting.folder))


def _write_failure(this: Run, error: Exception, identity: dict[str, Any]) -> None:
    """Let result.json say why a sitting could not even begin."""
    try:
        if this.processes.writes:
            this.folder.write_result({"status": "failed", "reason": in_one_line(error)} | identity)
    except OSError as full:
        print(f"warning: result.json cannot be written: {full.strerror}", file=sys.stderr)


def in_one_line(error: Exception) -> str:
    """An error's kind and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def describe(this: Run) -> dict[str, Any]:
    """What result.json says of a run whatever its outcome."""
    config, (head, dirty) = this.config, commit()
    return {
        "format": FORMAT,
        "name": config.name,
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "data": config.data.name,
        "seed": config.seed,
        "fraction": config.data.fraction,
        "equal": config.data.equal,
        "subset_seed": config.data.subset_seed,
        "holdout": config.data.holdout,
        "epochs": config.epochs,
        "train_images": len(this.data.train),
        "steps": config.epochs * math.ceil(this.data.epoch_images / config.recipe.batch_size),
        **_costs(this),
        "precision": this.precision,
        "device": describe_device(this.device),
        "cpu": describe_cpu(),
        "processes": this.processes.count,
        "commit": head,
        "dirty": dirty,
        "versions": versions(),
        "data_origin": this.data.origin,
        "data_hash": this.data.source_sha256,
        "subset_hash": this.data.subset_sha256,
        **_matched(this),
    }


def _costs(this: Run) -> dict[str, int]:
    """Parameters, and FLOPs per image in both countings (attnconv.models.cost)."""
    node = this.match.node if this.match else this.config.model
    model = build_unfilled(node, this.data.image_shape, this.data.classes)
    image = torch.zeros(1, *this.data.image_shape, device="meta")
    return {
        "parameters": parameters(model),
        "flops_paper": flops_paper(model, image),
        "flops_full": flops_full(model, image),
    }


def _matched(this: Run) -> dict[str, Any]:
    """What `match` made of the model; nothing without it."""
    match = this.match
    if match is None:
        return {}
    widths = {key: match.node[key] for key in ("width", "hidden") if key in match.node}
    budget = {"budget": match.budget, "model": this.config.match_model, "target": match.target}
    return {"match": {**budget, "achieved": match.achieved, "difference": match.difference, **widths}}


def _opening_lines(identity: dict[str, Any], folder: RunFolder, position: Position) -> str:
    matched = ""
    if "match" in identity:
        matched = (
            "\nmatched to the {target:,} {budget} of {model}: {achieved:,} ({difference:+.2%}), "
            "at width {width:g}".format_map(identity["match"])
        )
    resuming = ""
    if position != Position():
        resuming = f", resuming after epoch {position.epochs_done}"
        if position.steps_in_epoch:
            resuming += f" and {position.steps_in_epoch} steps"
    return (
        "{model}: {parameters:,} parameters, recipe={recipe}, scale={scale}, {train_images:,} training images "
        "from {data_origin}\n{epochs} epochs in {precision} on {device}".format_map(identity)
        + f"{resuming}, into {folder.path}{matched}"
    )


def _closing_line(result: dict[str, Any], folder: RunFolder) -> str:
    line = f"test accuracy {_accuracy(result, 'test')} after {result['epochs']} epochs in {result['seconds']:.0f} s"
    if "val_acc" in result:
        line += f"; validation accuracy {_accuracy(result, 'val')}"
    heads = f"; heads: {folder.heads_picture}" if folder.heads_picture.exists() else ""
    return f"{line}; run folder: {folder.path}{heads}"


def _accuracy(result: dict[str, Any], split: str) -> str:
    mirrored = result.get(f"{split}_acc_mirrored")
    return f"{result[f'{split}_acc']:.2%}" + ("" if mirrored is None else f" ({mirrored:.2%} with mirror images)")
