"""One process at work on a run: where it stands, and what is to be done after every step and every epoch."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from attnconv.data.augmentation import plan_epoch
from attnconv.data.dataset import Split
from attnconv.runs.checkpoint import Position, export_weights, load_checkpoint, save_checkpoint
from attnconv.runs.dashboards import Dashboard
from attnconv.runs.folder import run_name
from attnconv.runs.heads import HeadWatcher
from attnconv.runs.history import outcome, recorded_epochs
from attnconv.runs.provenance import peak_memory
from attnconv.training.console import Console
from attnconv.training.cutmix import cutmix
from attnconv.training.device import runs_at_once
from attnconv.training.failures import explain, require_finite
from attnconv.training.interrupts import Interrupts
from attnconv.training.loop import FiniteGuard, Score, Tally, evaluate, train_epoch
from attnconv.training.schedules import image_size, lr_factor
from attnconv.training.setup import Run
from attnconv.training.stopwatch import Stopwatch

CHECKPOINT = 1  # a request between processes; larger ones are signals to stop by


class Sitting:
    """One process at work on a run: where it stands, and what is to be done after every step and every epoch.

    Args:
        this: the run.
        interrupts: tells whether to stop.
    """

    def __init__(self, this: Run, interrupts: Interrupts):
        self.this, self.interrupts, self.config, self.folder = this, interrupts, this.config, this.folder
        self.images, self.writes = this.data.epoch_images, this.processes.writes
        self.steps_per_epoch = math.ceil(self.images / self.config.recipe.batch_size)
        self.guard = FiniteGuard(this.device)
        recipe, epochs = self.config.recipe, self.config.epochs
        self.factor = lr_factor(recipe, epochs, self.images)
        self.size = image_size(recipe, this.data.image_shape[1], epochs, self.images)
        self.mix = cutmix(recipe.cutmix, this.data.classes, self.config.seed)
        self.doing = "training"
        self.warm_up_seconds: dict[str, float] = {}
        self.saved = time.perf_counter()

        found = load_checkpoint(self.folder.checkpoints, this.model, this.optimizer)
        self.position = found or Position()
        self.heads = HeadWatcher(this.model, self.config.model["name"])
        if self.writes:
            self.folder.forget_after(None if found is None else found.epochs_done)
            if found is None:
                self.folder.append("heads.jsonl", self.heads.record(0))
        # Of several runs in one terminal each line says whose it is, and none draws a bar over another's.
        label = run_name(self.config) if runs_at_once() > 1 else None
        self.console = Console(self.config.epochs, self.position, self.images, shown=self.writes, label=label)
        history = recorded_epochs(self.folder, self.images) if self.writes else []
        self.dashboard = Dashboard(self.config, self.folder.path, history, shown=self.writes)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.writes:
            print(text, flush=True)

    def train(self) -> dict[str, Any]:
        """Train the remaining epochs, each recorded before it is checkpointed; returns the numbers of result.json."""
        if self.config.warm_up:
            started = time.perf_counter()
            self.this.warm_up(self.size)
            self.warm_up_seconds = {"warm_up_seconds": time.perf_counter() - started}
            self.say(f"warmed up in {self.warm_up_seconds['warm_up_seconds']:.1f} s, which do not count")
        for epoch in range(self.position.epochs_done + 1, self.config.epochs + 1):
            self.begin(epoch)
            self._train_rest(epoch)
            watch = Stopwatch()
            with self.evaluating():
                scores = self._evaluate(self.splits_due(epoch))
            self.finish(epoch, scores, watch)
        return self.conclude()

    def begin(self, epoch: int) -> None:
        """Before what is left of epoch `epoch` (from 1)."""
        config, position, data = self.config, self.position, self.config.data
        self.watch, self.seconds_before, self.cpu_seconds_before = Stopwatch(), position.seconds, position.cpu_seconds
        self.plan = plan_epoch(
            len(self.this.data.train),
            config.seed,
            epoch - 1,
            data.crop_padding,
            data.flip,
            self.this.device,
            shown=self.images,
            alternating=data.alternating_flip,
        )
        # Process 0 goes on with the sums of all; the others start theirs anew.
        carried = (position.loss, position.correct, position.images) if self.writes else ()
        self.tally = Tally.on(self.this.device, *carried)

    def finish(self, epoch: int, scores: dict[str, Score], evaluation: Stopwatch) -> None:
        """Record and checkpoint an epoch that has been trained, and evaluated where that was due.

        Args:
            evaluation: started when the evaluation was.
        """
        done, config = self.position, self.config
        timing = {
            "train_seconds": done.seconds,
            "eval_seconds": evaluation.seconds(),
            "train_cpu_seconds": done.cpu_seconds,
            "eval_cpu_seconds": evaluation.cpu_seconds(self.this.processes),
        }
        train = Score(done.loss / done.images, done.correct / done.images)
        require_finite(epoch, scores, config)
        lr = config.recipe.lr * self.factor((epoch - 1) * self.steps_per_epoch)
        metrics = {"train/loss": train.loss, "train/acc": train.accuracy, "train/lr": lr}
        for split, score in scores.items():
            metrics |= score.metrics(split)
        self.console.epoch(epoch, train, scores, self.images / done.seconds)
        if self.writes:
            self._record(epoch, metrics, timing)
            if epoch == config.epochs:  # before the checkpoint, after which nothing is evaluated again
                self._keep_predictions(scores["test"])
        self.position = Position(epochs_done=epoch)
        self._save()

    def conclude(self) -> dict[str, Any]:
        """After the last epoch: keep maps and weights; returns the numbers of result.json."""
        if not self.writes:
            return {}
        maps = self.heads.maps(self.this.data.test)
        if maps is not None:
            self.folder.write_array("attention_maps.npy", maps)
        self._show_heads(self.config.epochs, self.this.data.test)
        export_weights(self.folder.weights, self.this.model)
        numbers = outcome(self.folder, self.images) | self.warm_up_seconds
        return numbers | {"peak_memory_bytes": peak_memory(self.this.device)}

    def close(self, result: dict[str, Any]) -> None:
        """Write result.json and let go of terminal and dashboard, whatever the outcome."""
        self.console.close()
        if self.writes:
            try:
                self.folder.write_result(result)
            except OSError as error:
                if result["status"] == "done":  # a run without a result is none
                    raise self.explain(error) from error
                print(f"warning: result.json cannot be written: {error.strerror}", file=sys.stderr)
        self.dashboard.finish(failed=result["status"] != "done")

    def explain(self, error: Exception) -> Exception:
        """An error in the user's terms, where it has some; else itself."""
        return explain(error, self.config, self.folder, self.images, self.doing)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """While entered, it is an evaluation that an error or a signal disturbs."""
        self.doing = "evaluation"
        yield
        self.doing = "training"

    def splits_due(self, epoch: int) -> dict[str, Split]:
        """What is to be evaluated after epoch `epoch` (from 1).

        With a holdout every epoch is scored on it and test is touched once, at the end; without one, on test.
        """
        last, data = epoch == self.config.epochs, self.this.data
        if not last and epoch % self.config.eval_every:
            return {}
        splits = {"val": data.validation, "test": data.test if last or data.validation is None else None}
        return {name: split for name, split in splits.items() if split is not None}

    def _train_rest(self, epoch: int) -> None:
        """Train what is left of epoch `epoch` (from 1)."""
        this, recipe = self.this, self.config.recipe
        train_epoch(
            this.forward,
            this.optimizer,
            this.data.train,
            self.plan,
            steps_before=(epoch - 1) * self.steps_per_epoch,
            steps_done=self.position.steps_in_epoch,
            tally=self.tally,
            guard=self.guard,
            seed=self.config.seed,
            batch_size=recipe.batch_size,
            label_smoothing=recipe.label_smoothing,
            factor=self.factor,
            size=self.size,
            mix=self.mix,
            precision=this.precision,
            processes=this.processes,
            on_step=self._after_step,
        )
        self.note_position(self.steps_per_epoch)

    def _evaluate(self, splits: dict[str, Split]) -> dict[str, Score]:
        this = self.this
        return {
            name: evaluate(
                this.forward,
                split,
                self.config.eval_batch_size,
                this.precision,
                this.processes,
                on_batch=self._stop_if_asked,
                mirrored=this.mirrored,
            )
            for name, split in splits.items()
        }

    def step_done(self, steps_in_epoch: int) -> None:
        """After each step, with the number of steps of this epoch taken."""
        self.console.step(self.position.epochs_done + 1, self.tally, self.this.processes.count)

    def due(self, steps_in_epoch: int) -> bool:
        """Whether a checkpoint is, in the middle of an epoch."""
        every = self.config.checkpoint_steps
        late = time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes
        return late or (every is not None and steps_in_epoch % every == 0)

    def save_at(self, steps_in_epoch: int) -> None:
        """Checkpoint in the middle of an epoch."""
        self.note_position(steps_in_epoch)
        self._save()

    def _after_step(self, steps_in_epoch: int) -> None:
        self.step_done(steps_in_epoch)
        due = CHECKPOINT if self.due(steps_in_epoch) else 0
        request = self.this.processes.agree(self.interrupts.signum or due)
        if request:
            self.save_at(steps_in_epoch)
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

    def note_position(self, steps_in_epoch: int) -> None:
        """Know where training stands. Waits for the device."""
        total, before = self.tally.total(self.this.processes), self.cpu_seconds_before
        spent = self.watch.cpu_seconds(self.this.processes)
        self.position = Position(
            epochs_done=self.position.epochs_done,
            steps_in_epoch=steps_in_epoch,
            loss=total.loss.item(),
            correct=total.correct.item(),
            images=total.images,
            seconds=self.seconds_before + self.watch.seconds(),
            cpu_seconds=None if before is None else before + spent,
        )

    def _save(self) -> None:
        self.guard.check()  # weights that are not finite are no place to go on from
        step = self.position.epochs_done * self.steps_per_epoch + self.position.steps_in_epoch
        if self.writes:
            this = self.this
            save_checkpoint(self.folder.checkpoints, this.model, this.optimizer, self.position, step)
        self.saved = time.perf_counter()

    def _record(self, epoch: int, metrics: dict[str, float], timing: dict[str, Any]) -> None:
        self.folder.append("metrics.jsonl", {"epoch": epoch, **metrics})
        self.folder.append("timing.jsonl", {"epoch": epoch, **timing})
        self.folder.append("heads.jsonl", self.heads.record(epoch))
        if epoch % self.config.logger.pictures_every == 0 and epoch < self.config.epochs:
            self._show_heads(epoch, self.this.data.train)
        self.dashboard.log(epoch, metrics | {"images_per_second": self.images / timing["train_seconds"]})

    def _keep_predictions(self, score: Score) -> None:
        assert score.predictions is not None
        kind = np.min_scalar_type(self.this.data.classes - 1)
        self.folder.write_array("predictions.npy", score.predictions.cpu().numpy().astype(kind))

    def _show_heads(self, epoch: int, split: Split) -> None:
        figure = self.heads.figure(epoch, split)
        if figure is not None:
            figure.savefig(self.folder.heads_picture, dpi=110)
            self.dashboard.picture(epoch, figure)
