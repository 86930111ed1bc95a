"""Sittings of several runs in step: every epoch and every step of all of them at once (attnconv.stack)."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from attnconv.sitting import Sitting
from attnconv.training.interrupts import Interrupts
from attnconv.training.stacked import Lane, Stack, evaluate_together, losing, train_epoch_together


def train_together(sittings: Sequence[Sitting], interrupts: Interrupts) -> list[dict[str, Any]]:
    """Train the remaining epochs of runs that stand at the same step; the numbers of each for its result.json.

    Raises:
        Lost: one of them cannot go on.
        Stopped: a signal asked for it; all have checkpoints.
    """
    first = sittings[0]
    stack = Stack([sitting.this.model for sitting in sittings], compiled=first.config.compile)

    def after_step(steps_in_epoch: int) -> None:
        for sitting in sittings:
            sitting.step_done(steps_in_epoch)
        signum = interrupts.signum
        if signum or first.due(steps_in_epoch):
            for number, sitting in enumerate(sittings):
                with losing(number):
                    sitting.save_at(steps_in_epoch)
        if signum:
            interrupts.end(signum)

    def after_batch() -> None:
        signum = interrupts.signum
        if signum:
            for number, sitting in enumerate(sittings):
                with losing(number):
                    sitting.save_own()
            interrupts.end(signum)

    for epoch in range(first.position.epochs_done + 1, first.config.epochs + 1):
        for sitting in sittings:
            sitting.begin(epoch)
        train_epoch_together(
            stack,
            [_lane(sitting) for sitting in sittings],
            on_step=after_step,
            **first.how_to_train(epoch),
        )
        for sitting in sittings:
            sitting.note_position(sitting.steps_per_epoch)
        started = time.perf_counter()
        with ExitStack() as evaluating:
            for sitting in sittings:
                evaluating.enter_context(sitting.evaluating())
            due = [sitting.splits_due(epoch) for sitting in sittings]
            scores = {
                name: evaluate_together(
                    stack, [splits[name] for splits in due], on_batch=after_batch, **first.how_to_evaluate()
                )
                for name in due[0]
            }
        eval_seconds = time.perf_counter() - started
        for number, sitting in enumerate(sittings):
            with losing(number):
                sitting.finish(epoch, {name: each[number] for name, each in scores.items()}, eval_seconds)
    return [sitting.conclude() for sitting in sittings]


def _lane(sitting: Sitting) -> Lane:
    return Lane(sitting.this.optimizer, sitting.this.data.train, sitting.plan, sitting.tally, sitting.guard)
