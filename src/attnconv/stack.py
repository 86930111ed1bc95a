"""Several runs in one process, step by step together: what a small network leaves of a device, its siblings take.

Runs that differ in seed, subset or name alone have networks of one shape and batches of one size; their parameters are
stacked (attnconv.training.stacked), and each keeps a run folder, checkpoints and a result of its own, as if it had been
alone: equal to float tolerance. A run that fails is left behind, and the others go on from their last checkpoint.
"""

import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from attnconv.config import Config, flatten, to_plain
from attnconv.errors import AlreadyDone, AtWork, CellFailed, OutOfMemory, Stopped, UserError
from attnconv.prepared import Run, prepare
from attnconv.run import begin_sitting, describe, finish_sitting, how_it_ended, in_one_line, run_in_sweep
from attnconv.sitting import Sitting
from attnconv.together import train_together
from attnconv.tracking.run_folder import RunFolder
from attnconv.training.checkpoint import NAME, newest
from attnconv.training.interrupts import Interrupts
from attnconv.training.share import pool
from attnconv.training.stacked import CannotStack, Lost, check_stackable

# Settings in which stacked runs may differ: none of them changes a shape, a step or what is done when.
MAY_DIFFER = ("name", "seed", "data.subset_seed", "output", "collected", "retry_failed")


@dataclass
class Round:
    """What came of an attempt at some runs, by their places.

    Attributes:
        failed: why, of those that did.
        again: those that have nothing the matter and are to go on.
        at_most: how many may be stacked, if it turned out to be fewer.
    """

    failed: dict[int, str] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    at_most: int | None = None


def run_stacked(configs: Sequence[Config], at_most: int) -> list[str | None]:
    """Train several runs into their folders, together where they are alike; for each, why it failed, or None.

    Args:
        at_most: how many to stack; memory grows with it.

    Raises:
        Stopped: a signal asked for it; the runs in hand have checkpoints.
    """
    reasons: list[str | None] = [None] * len(configs)
    left = list(range(len(configs)))
    while left:
        group = _alike(configs, left)[:at_most]
        outcome = _train_group([configs[index] for index in group])
        for place, reason in outcome.failed.items():
            reasons[group[place]] = reason
        at_most = outcome.at_most or at_most
        left = [index for index in left if index not in group] + [group[place] for place in outcome.again]
    return reasons


def _alike(configs: Sequence[Config], left: Sequence[int]) -> list[int]:
    """Those among `left` that can train in step with the first of them."""
    likeness = {index: _likeness(configs[index]) for index in left}
    return [index for index in left if likeness[index] == likeness[left[0]]]


def _likeness(config: Config) -> str:
    """Equal for runs of equal steps on equal shapes whose last checkpoints are of the same step."""
    may_differ = (*MAY_DIFFER, *(["data.fraction"] if config.data.equal == "steps" else []))
    flat = flatten(to_plain(config))
    kept = {key: value for key, value in flat.items() if key not in may_differ and not key.startswith("logger.")}
    checkpoint = newest(RunFolder(config).checkpoints)
    found = NAME.fullmatch(checkpoint.name) if checkpoint else None
    return json.dumps([kept, int(found.group(1)) if found else 0], sort_keys=True, default=str)


def _train_group(configs: Sequence[Config]) -> Round:
    if len(configs) == 1:
        return Round(failed=_train_alone(configs, [0]))
    outcome = Round()
    with ExitStack() as folders:
        try:
            runs = _prepare(configs, outcome, folders)
            if len(runs) > 1:
                return _train_stacked(runs, outcome)
            places = list(runs)
        except CannotStack as refusal:
            model = configs[0].model["name"]
            print(f"warning: {model} trains one run at a time: {refusal}", file=sys.stderr, flush=True)
            places = [place for place in range(len(configs)) if place not in outcome.failed]
        runs = {}  # let go of the networks, before there is another
    outcome.failed |= _train_alone(configs, places)
    return outcome


def _prepare(configs: Sequence[Config], outcome: Round, folders: ExitStack) -> dict[int, Run]:
    """Build every run, by its place, and open its folder.

    Raises:
        CannotStack: they cannot be stacked.
    """
    _check_config(configs[0])
    runs: dict[int, Run] = {}
    for place, config in enumerate(configs):
        with _failing(place, outcome):
            this = prepare(config)
            if not runs:
                images, _ = next(this.data.test.batches(2))
                check_stackable(this.model, images, this.precision)
            this.folder.open()
            folders.callback(this.folder.close)
            runs[place] = this
    return runs


def _train_alone(configs: Sequence[Config], places: Sequence[int]) -> dict[int, str]:
    """Train some of the runs one after the other: why some failed, by place."""
    failed = {}
    for place in places:
        try:
            run_in_sweep(configs[place])
        except CellFailed as failure:
            failed[place] = str(failure)
    return failed


@contextmanager
def _failing(place: int, outcome: Round) -> Iterator[None]:
    """Let a run fail by itself, and say why."""
    try:
        yield
    except CannotStack:
        raise
    except (AlreadyDone, AtWork) as seen_to:  # by another process, since the sweep began
        print(f"skipped: {seen_to}".partition(";")[0], flush=True)
    except Exception as error:
        outcome.failed[place] = _complain(error)


def _complain(error: Exception) -> str:
    """Print an error; returns it in one line."""
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        return str(error)
    traceback.print_exception(error)
    return in_one_line(error)


def _check_config(config: Config) -> None:
    """Raise CannotStack for runs that cannot be stacked whatever their network is."""
    if config.recipe.dropout or config.recipe.attention_dropout:
        raise CannotStack("dropout would draw other masks (recipe.dropout=0 recipe.attention_dropout=0 goes without)")
    if config.warm_up:
        raise CannotStack("warm_up=true times runs one by one")


def _train_stacked(runs: dict[int, Run], outcome: Round) -> Round:
    """Train runs whose folders are open."""
    identities = {place: describe(this) for place, this in runs.items()}
    with Interrupts(parent=pool()) as interrupts:
        sittings: dict[int, Sitting] = {}
        for place, this in runs.items():
            with _failing(place, outcome):
                sittings[place] = begin_sitting(this, interrupts, identities[place], stacked=len(runs))
        # Checkpoints of one step may stand before and after the end of an epoch.
        first = next(iter(sittings.values()), None)
        for place in [place for place, sitting in sittings.items() if first and not _in_step(sitting, first)]:
            _set_aside(sittings.pop(place), identities[place], "it is not in step with the others")
            outcome.again.append(place)
        for sitting in sittings.values():
            sitting.stacked = len(sittings)
        try:
            numbers = train_together(list(sittings.values()), interrupts) if sittings else []
        except BaseException as error:
            _conclude_failure(error, sittings, identities, outcome)
            if not isinstance(error, Exception):
                raise
            return outcome
        for (place, sitting), found in zip(sittings.items(), numbers, strict=True):
            with _failing(place, outcome):
                finish_sitting(sitting, {"status": "done"} | found | identities[place])
        if interrupts.signum is not None and not interrupts.has_owner:
            raise Stopped(interrupts.signum, done=True)
    return outcome


def _in_step(one: Sitting, other: Sitting) -> bool:
    places = [(sitting.position.epochs_done, sitting.position.steps_in_epoch) for sitting in (one, other)]
    return places[0] == places[1] and one.images == other.images


def _set_aside(sitting: Sitting, identity: dict[str, Any], reason: str) -> None:
    sitting.close({"status": "interrupted", "reason": reason} | identity)


def _conclude_failure(
    error: BaseException, sittings: dict[int, Sitting], identities: dict[int, dict[str, Any]], outcome: Round
) -> None:
    """Write what an error or a signal makes of every run: of one that is lost alone, and of the others."""
    lost = [*sittings][error.index] if isinstance(error, Lost) else None
    cause = error.cause if isinstance(error, Lost) else error
    for place, sitting in sittings.items():
        ended, explained = how_it_ended(cause, sitting)
        if lost not in (None, place):
            _set_aside(sitting, identities[place], "a run beside it failed")
            outcome.again.append(place)
        elif isinstance(explained, OutOfMemory) and len(sittings) > 1:
            _set_aside(sitting, identities[place], f"out of memory with {len(sittings)} runs at once")
            outcome.again.append(place)
            outcome.at_most = len(sittings) // 2
        else:
            sitting.close(ended | identities[place])
            if isinstance(explained, Exception):
                outcome.failed[place] = _complain(explained)
    if outcome.at_most:
        warning = f"out of memory with {len(sittings)} runs at once; going on with {outcome.at_most}"
        print(f"warning: {warning}", file=sys.stderr, flush=True)
