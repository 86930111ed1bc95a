"""One process at work on a run: where it stands, and what is to be done after every step and every epoch."""

import errno
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attnconv.config import Config
from attnconv.data.augmentation import plan_epoch
from attnconv.data.dataset import DataSet
from attnconv.errors import Diverged, OutOfMemory, RunFolderError
from attnconv.models.match import Match
from attnconv.tracking.console import Console
from attnconv.tracking.dashboards import Dashboard
from attnconv.tracking.heads import HeadWatcher
from attnconv.tracking.provenance import peak_memory
from attnconv.tracking.run_folder import RunFolder, run_name
from attnconv.training.checkpoint import Position, export_weights, load_checkpoint, newest, save_checkpoint
from attnconv.training.distributed import Processes
from attnconv.training.interrupts import Interrupts
from attnconv.training.loop import FiniteGuard, NotFinite, Score, Tally, evaluate, train_epoch
from attnconv.training.schedules import lr_factor
from attnconv.training.share import runs_at_once

# Training images, without augmentation, over which attention to content is averaged for heads.jsonl and heads.png.
HEAD_IMAGES = 50

CHECKPOINT = 1  # a request between processes; larger ones are signals to stop by


@dataclass
class Run:
    """What a run consists of, built and checked; nothing is written yet."""

    config: Config
    folder: RunFolder
    device: torch.device
    processes: Processes
    precision: str
    data: DataSet
    model: nn.Module
    forward: nn.Module  # the same network, compiled or distributed if it is to be
    optimizer: torch.optim.Optimizer
    match: Match | None  # how the model's width was scaled, if it was


class Sitting:
    """One process at work on a run: where it stands, and what is to be done after every step and every epoch."""

    def __init__(self, this: Run, interrupts: Interrupts):
        self.this, self.interrupts, self.config, self.folder = this, interrupts, this.config, this.folder
        self.images, self.writes = this.data.epoch_images, this.processes.writes
        self.steps_per_epoch = math.ceil(self.images / self.config.recipe.batch_size)
        self.guard = FiniteGuard(this.device)
        self.tally = Tally.on(this.device)
        self.doing = "training"
        self.saved = time.perf_counter()

        found = load_checkpoint(self.folder.checkpoints, this.model, this.optimizer, this.device)
        self.position = found or Position()
        sample, _ = next(this.data.train.batches(HEAD_IMAGES))
        self.heads = HeadWatcher(this.model, self.config.model["name"], sample)
        if self.writes:
            self.folder.forget_after(None if found is None else found.epochs_done)
            if found is None:
                self.folder.append("heads.jsonl", self.heads.record(0))
        # Of several runs in one terminal each line says whose it is, and none draws a bar over another's.
        label = run_name(self.config) if runs_at_once() > 1 else None
        self.console = Console(self.config.epochs, self.position, self.images, shown=self.writes, label=label)
        history = self._history() if self.writes else []
        self.dashboard = Dashboard(self.config, self.folder.path, history, shown=self.writes)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.writes:
            print(text, flush=True)

    def train(self) -> dict[str, Any]:
        """Train the remaining epochs, each recorded before it is checkpointed; returns the numbers of result.json."""
        for epoch in range(self.position.epochs_done + 1, self.config.epochs + 1):
            train, lr = self._train_one(epoch)
            train_seconds = self.position.seconds
            self.doing, started = "evaluation", time.perf_counter()
            last = epoch == self.config.epochs
            scores = self._evaluate(last) if last or epoch % self.config.eval_every == 0 else {}
            eval_seconds, self.doing = time.perf_counter() - started, "training"
            _require_finite(epoch, scores, self.config)
            metrics = {"train/loss": train.loss, "train/acc": train.accuracy, "train/lr": lr}
            for split, score in scores.items():
                metrics |= {f"{split}/loss": score.loss, f"{split}/acc": score.accuracy}
            self.console.epoch(epoch, train, scores, self.images / train_seconds)
            if self.writes:
                self._record(epoch, metrics, {"train_seconds": train_seconds, "eval_seconds": eval_seconds})
            self.position = Position(epochs_done=epoch)
            self._save()
        if not self.writes:
            return {}
        self._show_heads(self.config.epochs)
        export_weights(self.folder.weights, self.this.model)
        return _outcome(self.folder, self.images) | {"peak_memory_bytes": peak_memory(self.this.device)}

    def close(self, result: dict[str, Any]) -> None:
        """Write result.json and let go of terminal and dashboard, whatever the outcome."""
        self.console.close()
        if self.writes:
            try:
                self.folder.write_result(result)
            except OSError as error:
                if result["status"] == "done":  # a run without a result is none
                    raise explain(error, self.this, self.doing) from error
                print(f"warning: result.json cannot be written: {error.strerror}", file=sys.stderr)
        self.dashboard.finish(failed=result["status"] != "done")

    def _train_one(self, epoch: int) -> tuple[Score, float]:
        """Train what is left of epoch `epoch` (from 1): its score and its first learning rate."""
        config, position, this = self.config, self.position, self.this
        steps_before = (epoch - 1) * self.steps_per_epoch
        data, factor = config.data, lr_factor(config.recipe, config.epochs, self.images)
        images = len(this.data.train)
        # Process 0 goes on with the sums of all; the others start theirs anew.
        carried = (position.loss, position.correct, position.images) if self.writes else ()
        self.tally = Tally.on(this.device, *carried)
        self.started, self.seconds_before = time.perf_counter(), position.seconds
        train_epoch(
            this.forward,
            this.optimizer,
            this.data.train,
            plan_epoch(images, config.seed, epoch - 1, data.crop_padding, data.flip, this.device, shown=self.images),
            steps_before=steps_before,
            steps_done=position.steps_in_epoch,
            tally=self.tally,
            guard=self.guard,
            seed=config.seed,
            batch_size=config.recipe.batch_size,
            label_smoothing=config.recipe.label_smoothing,
            factor=factor,
            precision=this.precision,
            processes=this.processes,
            on_step=self._after_step,
        )
        self._note_position(self.steps_per_epoch)
        done = self.position
        return Score(done.loss / done.images, done.correct / done.images), config.recipe.lr * factor(steps_before)

    def _evaluate(self, last: bool) -> dict[str, Score]:
        """With a holdout every epoch is scored on it and test is touched once, at the end; without one, on test."""
        this, validation, test = self.this, self.this.data.validation, self.this.data.test
        splits = {"val": validation, "test": test if last or validation is None else None}
        return {
            name: evaluate(
                this.forward, split, self.config.eval_batch_size, this.precision, this.processes, self._stop_if_asked
            )
            for name, split in splits.items()
            if split is not None
        }

    def _after_step(self, steps_in_epoch: int) -> None:
        self.console.step(self.position.epochs_done + 1, self.tally, self.this.processes.count)
        every = self.config.checkpoint_steps
        late = time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes
        due = late or (every is not None and steps_in_epoch % every == 0)
        request = self.this.processes.agree(self.interrupts.signum or (CHECKPOINT if due else 0))
        if request:
            self._note_position(steps_in_epoch)
            self._save()
        if request > CHECKPOINT:
            self.this.processes.wait()  # for process 0 to have saved: torchrun ends all once the first has left
            self.interrupts.end(request)

    def _stop_if_asked(self) -> None:
        """Between batches of an evaluation, which starts again in the next sitting."""
        request = self.this.processes.agree(self.interrupts.signum or 0)
        if request:
            self._save()
            self.this.processes.wait()
            self.interrupts.end(request)

    def _note_position(self, steps_in_epoch: int) -> None:
        total = self.tally.total(self.this.processes)
        self.position = Position(
            epochs_done=self.position.epochs_done,
            steps_in_epoch=steps_in_epoch,
            loss=total.loss.item(),
            correct=total.correct.item(),
            images=total.images,
            seconds=self.seconds_before + time.perf_counter() - self.started,
        )

    def _save(self) -> None:
        self.guard.check()  # weights that are not finite are no place to go on from
        step = self.position.epochs_done * self.steps_per_epoch + self.position.steps_in_epoch
        if self.writes:
            save_checkpoint(self.folder.checkpoints, self.this.model, self.this.optimizer, self.position, step)
        self.saved = time.perf_counter()

    def _record(self, epoch: int, metrics: dict[str, float], timing: dict[str, float]) -> None:
        self.folder.append("metrics.jsonl", {"epoch": epoch, **metrics})
        self.folder.append("timing.jsonl", {"epoch": epoch, **timing})
        self.folder.append("heads.jsonl", self.heads.record(epoch))
        if epoch % self.config.logger.pictures_every == 0 and epoch < self.config.epochs:
            self._show_heads(epoch)
        self.dashboard.log(epoch, metrics | {"images_per_second": self.images / timing["train_seconds"]})

    def _history(self) -> list[tuple[int, dict[str, float]]]:
        """What earlier sittings recorded, for a dashboard that must not miss it."""
        timings = {record["epoch"]: record["train_seconds"] for record in self.folder.read_lines("timing.jsonl")}
        history = []
        for record in self.folder.read_lines("metrics.jsonl"):
            epoch = record.pop("epoch")
            history.append((epoch, record | {"images_per_second": self.images / timings[epoch]}))
        return history

    def _show_heads(self, epoch: int) -> None:
        figure = self.heads.figure(epoch)
        if figure is not None:
            figure.savefig(self.folder.heads_picture, dpi=110)
            self.dashboard.picture(epoch, figure)


def explain(error: Exception, this: Run, doing: str) -> Exception:
    """An error met while `doing` (training or evaluation) in the user's terms, where it has some; else itself."""
    config, folder = this.config, this.folder
    if isinstance(error, NotFinite):
        steps = math.ceil(this.data.epoch_images / config.recipe.batch_size)
        epoch, batch = divmod(error.step, steps)
        return Diverged(
            f"the {error.what} of step {error.step + 1} (epoch {epoch + 1}, batch {batch + 1} of {steps}) is not "
            f"finite; lower recipe.lr={config.recipe.lr:g} under another name=. "
            f"The last good checkpoint: {newest(folder.checkpoints) or 'none'}"
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


def _require_finite(epoch: int, scores: dict[str, Score], config: Config) -> None:
    for split, score in scores.items():
        if not math.isfinite(score.loss):
            raise Diverged(
                f"the {split} loss after epoch {epoch} is {score.loss}; lower recipe.lr={config.recipe.lr:g}"
            )


def _outcome(folder: RunFolder, images: int) -> dict[str, Any]:
    """Last-epoch accuracies and times, from the run folder, so that an interrupted run counts all of its sittings."""
    last, timings = folder.read_lines("metrics.jsonl")[-1], folder.read_lines("timing.jsonl")
    train_seconds = sum(timing["train_seconds"] for timing in timings)
    return {
        **{f"{split}_acc": last[f"{split}/acc"] for split in ("val", "test") if f"{split}/acc" in last},
        "seconds": train_seconds + sum(timing["eval_seconds"] for timing in timings),
        "images_per_second": images * len(timings) / train_seconds,
    }
