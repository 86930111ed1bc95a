"""One run, from a frozen configuration to a finished run folder."""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from attnconv.config import Config, model_node
from attnconv.data.augmentation import plan_epoch
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.errors import Diverged
from attnconv.models.build import build_model
from attnconv.models.match import Match, match_width
from attnconv.tracking.console import Console
from attnconv.tracking.dashboards import Dashboard
from attnconv.tracking.heads import HeadWatcher
from attnconv.tracking.provenance import commit, describe_device, peak_memory, versions
from attnconv.tracking.run_folder import RunFolder
from attnconv.training.checkpoint import load_checkpoint, save_checkpoint
from attnconv.training.loop import Score, evaluate, train_epoch
from attnconv.training.optimizers import build_optimizer
from attnconv.training.precision import choose_device, choose_precision
from attnconv.training.schedules import lr_factor

# Training images, without augmentation, over which attention to content is averaged for heads.jsonl and heads.png.
HEAD_IMAGES = 50


@dataclass
class Run:
    """What a run consists of, built and checked; nothing is written yet."""

    config: Config
    folder: RunFolder
    device: torch.device
    precision: str
    data: DataSet
    model: nn.Module
    forward: nn.Module  # the same network, compiled if the configuration says so
    optimizer: torch.optim.Optimizer
    match: Match | None  # how the model's width was scaled, if it was


def prepare(config: Config) -> Run:
    """Check everything that can be wrong before anything is written.

    Raises:
        UserError: run folder, device, data or model are not as the configuration needs them.
    """
    folder = RunFolder(config)
    folder.check()
    device = choose_device(config.device)
    data = load_dataset(config.data, device)
    match = None
    if config.match is not None:
        reference = model_node(config.match_model, like=config)
        match = match_width(config.model, reference, config.match, data.image_shape, data.classes)
    torch.manual_seed(config.seed)
    # Built on the CPU, so that equal seeds give equal weights on every device.
    model = build_model(match.node if match else config.model, data.image_shape, data.classes)
    model.to(device).to(memory_format=torch.channels_last)
    forward: Any = torch.compile(model) if config.compile else model
    optimizer = build_optimizer(model, config.recipe)
    precision = choose_precision(config.precision, device)
    return Run(config, folder, device, precision, data, model, forward, optimizer, match)


def run(config: Config) -> dict[str, Any]:
    """Train what `config` describes into its run folder, resuming an unfinished run; returns result.json's content.

    Raises:
        UserError: see `prepare`; Diverged after result.json says so.
        KeyboardInterrupt: after result.json says so.
    """
    this = prepare(config)
    this.folder.create()
    epochs_done = 0
    if this.folder.checkpoint.exists():
        epochs_done = load_checkpoint(this.folder.checkpoint, this.model, this.optimizer, this.device)
    this.folder.forget_after(epochs_done)

    identity = describe(this)
    print(_opening_lines(identity, this.folder, epochs_done), flush=True)
    console = Console(config.epochs, epochs_done, len(this.data.train))
    dashboard = Dashboard(config, this.folder.path)
    outcome: dict[str, Any] = {"status": "failed"}
    try:
        outcome = {"status": "done", **_train(this, epochs_done, console, dashboard)}
    except KeyboardInterrupt:
        outcome = {"status": "interrupted"}
        raise
    except Exception as error:
        outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        raise
    finally:
        console.close()
        result = outcome | identity
        this.folder.write_result(result)
        dashboard.finish(failed=outcome["status"] != "done")
    print(_closing_line(result, this.folder), flush=True)
    return result


def _train(this: Run, epochs_done: int, console: Console, dashboard: Dashboard) -> dict[str, Any]:
    """Train the remaining epochs, each recorded before it is checkpointed; returns the numbers of result.json."""
    config, folder, images = this.config, this.folder, len(this.data.train)
    sample, _ = next(this.data.train.batches(HEAD_IMAGES))
    heads = HeadWatcher(this.model, config.model["name"], sample)
    if epochs_done == 0:
        folder.append("heads.jsonl", heads.record(0))
    for epoch in range(epochs_done + 1, config.epochs + 1):
        train, lr, train_seconds = _train_one(this, epoch, console)
        started = time.perf_counter()
        scores = _evaluate(this, last=epoch == config.epochs)
        eval_seconds = time.perf_counter() - started
        _require_finite(epoch, {"train": train, **scores}, config)

        metrics = {"train/loss": train.loss, "train/acc": train.accuracy, "train/lr": lr}
        for split, score in scores.items():
            metrics |= {f"{split}/loss": score.loss, f"{split}/acc": score.accuracy}
        folder.append("metrics.jsonl", {"epoch": epoch, **metrics})
        folder.append("timing.jsonl", {"epoch": epoch, "train_seconds": train_seconds, "eval_seconds": eval_seconds})
        folder.append("heads.jsonl", heads.record(epoch))
        save_checkpoint(folder.checkpoint, this.model, this.optimizer, epoch)

        console.epoch(epoch, train, scores, images / train_seconds)
        dashboard.log(epoch, metrics | {"images_per_second": images / train_seconds})
        if epoch % config.logger.pictures_every == 0 and epoch < config.epochs:
            _show_heads(heads, epoch, folder, dashboard)
    _show_heads(heads, config.epochs, folder, dashboard)
    return _outcome(folder, images) | {"peak_memory_bytes": peak_memory(this.device)}


def _require_finite(epoch: int, scores: dict[str, Score], config: Config) -> None:
    for split, score in scores.items():
        if not math.isfinite(score.loss):
            raise Diverged(f"the {split} loss of epoch {epoch} is {score.loss}; lower recipe.lr={config.recipe.lr}")


def _outcome(folder: RunFolder, images: int) -> dict[str, Any]:
    """Last-epoch accuracies and times, from the run folder, so that an interrupted run counts all of its sittings."""
    last, timings = folder.read_lines("metrics.jsonl")[-1], folder.read_lines("timing.jsonl")
    train_seconds = sum(timing["train_seconds"] for timing in timings)
    return {
        **{f"{split}_acc": last[f"{split}/acc"] for split in ("val", "test") if f"{split}/acc" in last},
        "seconds": train_seconds + sum(timing["eval_seconds"] for timing in timings),
        "images_per_second": images * len(timings) / train_seconds,
    }


def _train_one(this: Run, epoch: int, console: Console) -> tuple[Score, float, float]:
    """Train epoch `epoch` (from 1): its score, its first learning rate, its seconds."""
    config, images = this.config, len(this.data.train)
    first_step = (epoch - 1) * math.ceil(images / config.recipe.batch_size)
    factor = lr_factor(config.recipe, config.epochs, images)
    started = time.perf_counter()
    score = train_epoch(
        this.forward,
        this.optimizer,
        this.data.train,
        plan_epoch(images, config.seed, epoch - 1, config.data.crop_padding, config.data.flip, this.device),
        first_step=first_step,
        seed=config.seed,
        batch_size=config.recipe.batch_size,
        label_smoothing=config.recipe.label_smoothing,
        factor=factor,
        precision=this.precision,
        on_step=partial(console.step, epoch),
    )
    return score, config.recipe.lr * factor(first_step), time.perf_counter() - started


def _evaluate(this: Run, last: bool) -> dict[str, Score]:
    """With a holdout every epoch is scored on it and test is touched once, at the end; without one, on test."""
    validation, test = this.data.validation, this.data.test
    splits = {"val": validation, "test": test if last or validation is None else None}
    return {
        name: evaluate(this.forward, split, this.config.eval_batch_size, this.precision)
        for name, split in splits.items()
        if split is not None
    }


def _show_heads(heads: HeadWatcher, epoch: int, folder: RunFolder, dashboard: Dashboard) -> None:
    figure = heads.figure(epoch)
    if figure is not None:
        figure.savefig(folder.heads_picture, dpi=110)
        dashboard.picture(epoch, figure)


def describe(this: Run) -> dict[str, Any]:
    """What result.json says of a run whatever its outcome."""
    config, (head, dirty) = this.config, commit()
    return {
        "name": config.name,
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "data": config.data.name,
        "seed": config.seed,
        "fraction": config.data.fraction,
        "subset_seed": config.data.subset_seed,
        "holdout": config.data.holdout,
        "epochs": config.epochs,
        "train_images": len(this.data.train),
        "parameters": sum(parameter.numel() for parameter in this.model.parameters()),
        "precision": this.precision,
        "device": describe_device(this.device),
        "commit": head,
        "dirty": dirty,
        "versions": versions(),
        "data_origin": this.data.origin,
        "data_hash": this.data.source_sha256,
        "subset_hash": this.data.subset_sha256,
        **_matched(this),
    }


def _matched(this: Run) -> dict[str, Any]:
    """What `match` made of the model; nothing without it."""
    match = this.match
    if match is None:
        return {}
    widths = {key: match.node[key] for key in ("width", "hidden") if key in match.node}
    budget = {"budget": match.budget, "model": this.config.match_model, "target": match.target}
    return {"match": {**budget, "achieved": match.achieved, "difference": match.difference, **widths}}


def _opening_lines(identity: dict[str, Any], folder: RunFolder, epochs_done: int) -> str:
    matched = ""
    if "match" in identity:
        matched = (
            "\nmatched to the {target:,} {budget} of {model}: {achieved:,} ({difference:+.2%}), "
            "at width {width:g}".format_map(identity["match"])
        )
    resuming = f", resuming after epoch {epochs_done}" if epochs_done else ""
    return (
        "{model}: {parameters:,} parameters, recipe={recipe}, scale={scale}, {train_images:,} training images "
        "from {data_origin}\n{epochs} epochs in {precision} on {device}".format_map(identity)
        + f"{resuming}, into {folder.path}{matched}"
    )


def _closing_line(result: dict[str, Any], folder: RunFolder) -> str:
    line = "test accuracy {test_acc:.2%} after {epochs} epochs in {seconds:.0f} s".format_map(result)
    if "val_acc" in result:
        line += f" (validation {result['val_acc']:.2%})"
    heads = f"; heads: {folder.heads_picture}" if folder.heads_picture.exists() else ""
    return f"{line}; run folder: {folder.path}{heads}"
