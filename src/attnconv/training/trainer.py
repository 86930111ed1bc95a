"""The trainer: train one run epoch by epoch, and record it so that it can stop and resume at any step."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from attnconv.analysis.heads import HeadWatcher
from attnconv.data.augmentation import image_size, plan_epoch
from attnconv.errors import first_few
from attnconv.runs.checkpoint import Progress, export_weights, load_checkpoint, save_checkpoint
from attnconv.runs.dashboards import Dashboard
from attnconv.runs.folder import run_name
from attnconv.runs.identity import identity
from attnconv.runs.provenance import changed_code, describe, forget_peak_memory, over_starts, peak_memory, start_of
from attnconv.runs.records import PREDICTIONS, final_numbers, recorded_epochs
from attnconv.training.console import Console, closing_line, opening_lines
from attnconv.training.device import runs_at_once
from attnconv.training.failures import diverged, explain, outcome_of
from attnconv.training.interrupts import Interrupts
from attnconv.training.loop import EpochSettings, cutmix, evaluate, train_epoch
from attnconv.training.metrics import FiniteGuard, Score, Stopwatch, Tally
from attnconv.training.optimizers import lr_factor
from attnconv.training.precompile import precompile
from attnconv.training.setup import Setup

CHECKPOINT = 1  # a request between processes; CHECKPOINT + N stops them because of signal N


class Trainer:
    """Train the run that `setup` describes. Nothing is read or written before `fit`.

    Args:
        setup: the parts of the run; its folder must be claimed.
        interrupts: says whether to stop.

    Attributes:
        result: the content of result.json, set on leaving `recorded`.
    """

    def __init__(self, setup: Setup, interrupts: Interrupts):
        self.setup, self.interrupts, self.config, self.folder = setup, interrupts, setup.config, setup.folder
        self.model, self.data, self.processes = setup.model, setup.data, setup.processes
        self.images, self.writes = self.data.epoch_images, self.processes.writes
        self.description = describe(setup)
        self.identity = identity(setup.config, setup.folder.data_hash, setup.folder.heads)
        recipe, epochs = self.config.recipe, self.config.epochs
        self.steps_per_epoch = math.ceil(self.images / recipe.batch_size)
        self.settings = EpochSettings(
            seed=self.config.seed,
            batch_size=recipe.batch_size,
            label_smoothing=recipe.label_smoothing,
            lr_factor=lr_factor(recipe, epochs, self.images),
            image_size=image_size(recipe, self.data.image_shape[1], epochs, self.images),
            cutmix=cutmix(recipe.cutmix, self.data.classes, self.config.seed) if recipe.cutmix else None,
            precision=setup.precision,
            processes=self.processes,
            finite_guard=FiniteGuard(setup.device),
            on_step=self._after_step,
        )
        self.heads = HeadWatcher(self.model, self.config.model["name"])
        self.phase = "training"
        self.progress, self.saved_at = Progress(), time.perf_counter()
        # Both show nothing until `_resume` knows where the run continues.
        self.console = Console(epochs, self.progress, self.images, shown=False)
        self.dashboard = Dashboard(self.config, self.folder.path, history=[], shown=False)
        self.result: dict[str, Any] = {}
        self.numbers: dict[str, Any] = {}  # the numbers in result.json that come from training

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write result.json on leaving, whatever happens, and raise errors with messages for the user."""
        try:
            yield
            self._close({"status": "done", **self.numbers})
        except BaseException as error:
            explained = error
            if isinstance(error, Exception):
                explained = explain(error, self.config, self.folder, self.images, self.phase)
            self._close(outcome_of(explained))
            if explained is error:
                raise
            raise explained from error
        if self.writes:
            self._say(closing_line(self.result, self.folder))

    def fit(self) -> None:
        """Train the remaining epochs, record each one before its checkpoint, and save the results."""
        forget_peak_memory(self.setup.device)
        self._resume()
        self._precompile()
        for epoch in range(self.progress.epochs_done + 1, self.config.epochs + 1):
            self._train(epoch)
            watch = Stopwatch()
            scores = self._evaluate(epoch)
            self._record(epoch, scores, watch)
            self.progress = Progress(epochs_done=epoch)
            self._save()
        if self.writes:
            self._conclude()

    def _resume(self) -> None:
        """Load the last checkpoint, if any, and show where the run resumes."""
        found = load_checkpoint(self.folder.checkpoints, self.model, self.setup.optimizer, self.identity)
        self.progress, self.saved_at = found or Progress(), time.perf_counter()
        if self.writes:
            heads = self.heads.record(0)
            if found is None:
                self.folder.forget_all()
                self.folder.append("heads.jsonl", heads)
            else:
                self.folder.forget_after(found.epochs_done, heads is not None, self.data.test.labels.cpu().numpy())
            starts = self.folder.note_start(start_of(self.description), resumed=found is not None)
            if len(starts) > 1:
                self._compare(starts)
        history = recorded_epochs(self.folder.path, self.images) if self.writes and found else []
        self.dashboard = Dashboard(self.config, self.folder.path, history, shown=self.writes)
        self._say(opening_lines(self.description, self.folder, self.progress))
        # With several runs in one terminal, each line names its run, and no run draws a bar.
        label = run_name(self.config) if runs_at_once() > 1 else None
        self.console = Console(self.config.epochs, self.progress, self.images, shown=self.writes, label=label)

    def _compare(self, starts: list[dict[str, Any]]) -> None:
        """Note what changed between the starts of a run, and warn if it is the user's code."""
        self.description |= over_starts(starts)
        if changed := changed_code(starts):
            print(
                f"warning: the code of {first_few(changed)} has changed since this run began, so its result counts as "
                "one with uncommitted changes",
                file=sys.stderr,
            )

    def _precompile(self) -> None:
        if self.config.warm_up:
            watch = Stopwatch()
            precompile(self.setup, self.settings.image_size)
            self.numbers["warm_up_seconds"] = watch.seconds()
            self._say(f"warmed up in {watch.seconds():.1f} s, not included in the times below")

    def _train(self, epoch: int) -> None:
        """Train the rest of `epoch`, counted from 1."""
        setup, data, progress = self.setup, self.config.data, self.progress
        self.watch, self.epoch_start = Stopwatch(), progress
        plan = plan_epoch(
            len(self.data.train),
            self.config.seed,
            epoch - 1,
            data.crop_padding,
            data.flip,
            setup.device,
            shown=self.images,
            alternating=data.alternating_flip,
        )
        # Process 0 continues with the sums of all processes; the others restart theirs.
        carried = (progress.loss, progress.correct, progress.images) if self.writes else ()
        self.tally = Tally.on(setup.device, *carried)
        train_epoch(setup.forward, setup.optimizer, self.data.train, plan, self.settings, progress, self.tally)
        self._note_progress(self.steps_per_epoch)

    def _evaluate(self, epoch: int) -> dict[str, Score]:
        """Score the splits that are due after `epoch`, counted from 1.

        With a validation set, each epoch is scored on it, and test is scored once at the end; without one, on test.
        """
        setup, data, last = self.setup, self.data, epoch == self.config.epochs
        if not last and epoch % self.config.eval_every:
            return {}
        splits = {} if data.validation is None else {"val": data.validation}
        if last or not splits:
            splits["test"] = data.test
        self.phase = "evaluation"
        scores = {
            name: evaluate(
                setup.forward,
                split,
                self.config.eval_batch_size,
                setup.precision,
                self.processes,
                on_batch=self._stop_if_asked,
                mirrored=setup.mirrored,
                seed=self.config.seed,
            )
            for name, split in splits.items()
        }
        self.phase = "training"
        return scores

    def _record(self, epoch: int, scores: dict[str, Score], evaluation: Stopwatch) -> None:
        """Write the lines of an epoch that has been trained, and evaluated if due.

        Args:
            evaluation: a stopwatch started together with the evaluation.
        """
        done = self.progress
        timing = {
            "train_seconds": done.seconds,
            "eval_seconds": evaluation.seconds(),
            "train_cpu_seconds": done.cpu_seconds,
            "eval_cpu_seconds": evaluation.cpu_seconds(self.processes),
        }
        train = Score(done.loss / done.images, done.correct / done.images)
        for split, score in scores.items():
            if not math.isfinite(score.loss):
                raise diverged(epoch, split, score, self.config)
        lr = self.config.recipe.lr * self.settings.lr_factor((epoch - 1) * self.steps_per_epoch)
        metrics = {"train/loss": train.loss, "train/acc": train.accuracy, "train/lr": lr}
        for split, score in scores.items():
            metrics |= score.metrics(split)
        self.console.epoch(epoch, train, scores, self.images / done.seconds)
        if not self.writes:
            return
        self.folder.append("metrics.jsonl", {"epoch": epoch, **metrics})
        self.folder.append("timing.jsonl", {"epoch": epoch, **timing})
        self.folder.append("heads.jsonl", self.heads.record(epoch))
        last = epoch == self.config.epochs
        if self.dashboard.shown and epoch % self.config.logger.pictures_every == 0 and not last:
            self.dashboard.picture(epoch, self.heads.figure(epoch, self.heads.maps(self.data.train)))
        self.dashboard.log(epoch, metrics | {"images_per_second": self.images / done.seconds})
        if last:  # before the checkpoint: a run that resumes after it does not evaluate again
            predictions = scores["test"].predictions
            assert predictions is not None
            kind = np.min_scalar_type(self.data.classes - 1)
            self.folder.write_array(PREDICTIONS, predictions.cpu().numpy().astype(kind))

    def _conclude(self) -> None:
        """Save weights, maps and numbers after the last epoch."""
        export_weights(self.folder.weights, self.model)
        maps = self.heads.maps(self.data.test)
        if maps is not None:
            self.folder.write_array("attention_maps.npy", maps)
        figure = self.heads.figure(self.config.epochs, maps)
        if figure is not None:
            self.folder.write_picture("heads.png", figure)
        peak = {"peak_memory_bytes": peak_memory(self.setup.device)}
        self.numbers = final_numbers(self.folder.path, self.images) | self.numbers | peak
        self.dashboard.picture(self.config.epochs, figure)
        self.dashboard.conclude(self.numbers | self.description, self.data)

    def _close(self, outcome: dict[str, Any]) -> None:
        """Write result.json, and release terminal and dashboard, whatever the outcome."""
        self.result = outcome | self.description
        done = self.result["status"] == "done"
        self.console.close()
        try:
            if self.writes:
                self.folder.write_result(self.result)
        except OSError as full:
            if done:  # a run without a result is not done
                raise
            print(f"warning: result.json cannot be written: {full.strerror}", file=sys.stderr)
        self.dashboard.finish(self.result["status"])

    def _say(self, text: str) -> None:
        """Print text, from one of the processes."""
        if self.writes:
            print(text, flush=True)

    def _after_step(self, steps_in_epoch: int) -> None:
        """Show progress after a step, and write a checkpoint or stop if due."""
        start = self.epoch_start.images  # of all processes, as process 0 carries them on
        seen = start + self.processes.count * (self.tally.images - start)
        self.console.step(self.progress.epochs_done + 1, self.tally, seen)
        every = self.config.checkpoint_steps
        late = time.perf_counter() - self.saved_at > 60 * self.config.checkpoint_minutes
        due = late or (every is not None and steps_in_epoch % every == 0)
        signum = self.interrupts.signum
        request = self.processes.agree(CHECKPOINT + signum if signum else CHECKPOINT * due)
        if request:
            self._note_progress(steps_in_epoch)
            self._save()
        if request > CHECKPOINT:
            self._stop(request - CHECKPOINT)

    def _stop_if_asked(self) -> None:
        """Stop between batches of an evaluation if asked; the evaluation restarts when the run resumes."""
        request = self.processes.agree(self.interrupts.signum or 0)
        if request:
            self._save()
            self._stop(request)

    def _stop(self, signum: int) -> None:
        self.processes.wait()  # wait until process 0 has saved: torchrun ends all processes once one has left
        self.interrupts.end(signum)

    def _note_progress(self, steps_in_epoch: int) -> None:
        """Record the progress of training. Waits for the device."""
        total, start = self.tally.total(self.processes), self.epoch_start
        spent = self.watch.cpu_seconds(self.processes)
        self.progress = Progress(
            epochs_done=self.progress.epochs_done,
            steps_in_epoch=steps_in_epoch,
            loss=total.loss.item(),
            correct=total.correct.item(),
            images=total.images,
            seconds=start.seconds + self.watch.seconds(),
            cpu_seconds=None if start.cpu_seconds is None else start.cpu_seconds + spent,
        )

    def _save(self) -> None:
        self.settings.finite_guard.check()  # a checkpoint with weights that are not finite would be useless
        step = self.progress.epochs_done * self.steps_per_epoch + self.progress.steps_in_epoch
        if self.writes:
            folder, optimizer = self.folder.checkpoints, self.setup.optimizer
            save_checkpoint(folder, self.model, optimizer, self.progress, step, self.identity)
        self.saved_at = time.perf_counter()
