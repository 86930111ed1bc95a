"""Run the missing runs of a sweep and report how each run ended.

Each combination of settings is a cell: one run with its own folder. Hydra composes the cells, and its launchers run
them: one after the other, several at once (joblib), or on a cluster (submitit). The run folders say which cells are
done, before and after. cells.json records only what has no folder yet: the cells, their work, and early failures.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attnconv.config import Config, flatten, to_plain
from attnconv.data.root import check_root
from attnconv.errors import ConfigError, RunFolderError, SweepIncomplete, UserError, counted, reason_of, warn
from attnconv.files import in_one_line, write_whole
from attnconv.runs.estimate import work_of
from attnconv.runs.folder import gives_way, run_folder_path, run_name
from attnconv.runs.identity import differences_read, name_hint, read_recorded, refusal, start_weights
from attnconv.runs.status import BROKEN, CELLS_FILE, collected_folder, read_state
from attnconv.sweeps.seeds import Found, plot, seeds_table

EMPTY = "the sweep is empty: a swept setting has no values (does the glob match anything?)"

# Runs cells, given their overrides; returns for each why it failed, or None.
Launch = Callable[[list[list[str]]], Sequence[str | None]]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    overrides: list[str]
    config: Config

    @cached_property
    def folder(self) -> Path:
        return run_folder_path(self.config)

    @property
    def donor(self) -> Path | None:
        """Return the weights of another run that this one starts from, or None."""
        return start_weights(flatten(self.config.model, "model."))

    @cached_property
    def different(self) -> dict[str, str]:
        """Return the settings in which the run in this cell's folder differs from this cell."""
        return differences_read(self.folder, self.config)

    @cached_property
    def collected(self) -> Path | None:
        """Return the folder of this run among the collected results, or None."""
        if self.config.collected is None:
            return None
        folder = collected_folder(Path(self.config.collected), run_name(self.config))
        state = read_state(folder)
        if state.status in BROKEN:
            warn(f"{folder} is {state.status} ({state.detail}), so it does not count as done")
        done = state.status == "done" and not differences_read(folder, self.config)
        return folder if done else None


@dataclass(frozen=True)
class Outcome:
    """How a cell ended, and why.

    The status is done, skipped, failed, interrupted, unfinished, running, damaged, unreadable or waiting.
    """

    cell: Cell
    status: str
    detail: str

    @property
    def complete(self) -> bool:
        return self.status in ("done", "skipped")


def run_cells(cells: list[Cell], launch: Launch, record: Path, here: bool = True) -> None:
    """Run the cells that are not done, and print how each cell ended, even after an error.

    Args:
        cells: composed and checked one by one.
        launch: runs some of them.
        record: folder for this start of the sweep; cells.json goes there, for scripts/status.py.
        here: whether they run on this machine, so that precision=auto can be compared with earlier runs.

    Raises:
        ConfigError: there are no cells, or two of them have one folder; nothing has run.
        RunFolderError: a folder holds another run, or cells would have two precisions; nothing has run.
        SweepIncomplete: the sweep is over, and some cells are not done.
        UserError: raised by `launch` before it ran anything.
    """
    check_cells(cells)
    before = [settled(cell) for cell in cells]
    missing = [cell for cell, outcome in zip(cells, before, strict=True) if outcome is None]
    if missing and here:
        check_precision(
            [cell for cell, seen in zip(cells, before, strict=True) if seen is None or seen.status not in BROKEN]
        )
    _record(record, cells)
    reasons: Sequence[str | None] = [None] * len(missing)
    try:
        if missing:
            reasons = launch([cell.overrides for cell in missing])
    except UserError:
        raise  # the launcher ran none of them
    except Exception as error:  # of a process pool with a killed process, for example
        print(f"error: the launcher failed: {reason_of(error)}", file=sys.stderr)
        outcomes = _conclude(cells, before, reasons, record)
    except BaseException:
        _conclude(cells, before, reasons, record)
        raise
    else:
        outcomes = _conclude(cells, before, reasons, record)
    incomplete = [outcome for outcome in outcomes if not outcome.complete]
    if incomplete:
        raise SweepIncomplete(_advice(incomplete, len(cells)))


def _conclude(
    cells: list[Cell], before: list[Outcome | None], reasons: Sequence[str | None], record: Path
) -> list[Outcome]:
    """Find out, record and print how each cell ended."""
    left = iter(reasons)
    outcomes = [outcome or _outcome(cell, next(left)) for cell, outcome in zip(cells, before, strict=True)]
    _show_found(outcomes, record)
    print(summary(outcomes), flush=True)
    try:
        _record(record, cells, outcomes)
    except OSError as error:
        print(f"warning: {record} cannot be written: {error.strerror}", file=sys.stderr)
    return outcomes


def _show_found(outcomes: list[Outcome], record: Path) -> None:
    """Print means over seeds, and plot accuracy against the swept setting."""
    done = [outcome.cell for outcome in outcomes if outcome.complete]
    results = [(cell.overrides, read_state(cell.collected or cell.folder).result) for cell in done]
    found = [Found.of(overrides, result) for overrides, result in results if "test_acc" in result]
    table, picture = seeds_table(found), record / "accuracy.png"
    if table:
        print(table, flush=True)
    try:
        if plot(found, picture):
            print(f"drawn: {picture}", flush=True)
    except Exception as error:  # the summary is more important
        print(f"warning: {picture} cannot be drawn: {in_one_line(error)}", file=sys.stderr)


def check_cells(cells: list[Cell]) -> None:
    """Refuse a sweep with a mistake before anything runs.

    Raises:
        ConfigError, RunFolderError: see `run_cells`; DataError: the data is not where a run expects it.
    """
    if not cells:
        raise ConfigError(EMPTY)
    by_folder: dict[Path, Cell] = {}
    for cell in cells:
        other = by_folder.setdefault(cell.folder, cell)
        if other is not cell:
            raise ConfigError(clash(other, cell))
        if cell.config.output != cells[0].config.output:
            raise ConfigError(
                "output cannot be swept, because a sweep is recorded in one folder: start one per output="
            )
        if cell.config.collected is not None and not Path(cell.config.collected).is_dir():
            raise ConfigError(f"collected={cell.config.collected} is not a folder")
        status = read_state(cell.folder).status
        if status in BROKEN:
            continue  # the summary will report it; the others can run
        if status != "done" and cell.collected is None:
            check_root(cell.config.data)
        if cell.different and not gives_way(cell.folder):
            raise RunFolderError(refusal(cell.folder, cell.different, cell.config, status == "done"))


def check_precision(cells: list[Cell]) -> None:
    """Refuse to mix precisions: with precision=auto, finished runs of any precision count as done.

    Raises:
        RunFolderError: a finished run has another precision than auto would choose on this machine.
    """
    from attnconv.training.device import precision_here  # imports torch

    for cell in cells:
        folder = cell.collected or cell.folder
        recorded = read_recorded(folder) if cell.config.precision == "auto" else None
        if recorded is None or recorded.precision is None or gives_way(folder):
            continue
        here = precision_here(cell.config.device)
        if recorded.precision != here:
            raise RunFolderError(
                f"{folder} is in {recorded.precision}, and precision=auto is {here} on this machine: "
                f"add precision={recorded.precision}, or precision={here} and another name="
            )


def summary(outcomes: list[Outcome]) -> str:
    """Return one line per cell, those that need attention last, and the counts."""
    order = ("skipped", "done", "waiting", "running", "interrupted", "unfinished", *BROKEN, "failed")
    lines = [
        f"  {outcome.status:<11} {outcome.cell.folder}{': ' if outcome.detail else ''}{outcome.detail}"
        for outcome in sorted(outcomes, key=lambda outcome: order.index(outcome.status))
    ]
    counts = Counter(outcome.status for outcome in outcomes)
    by_status = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    return "\n".join([*lines, f"sweep of {counted(len(outcomes), 'run')}: {by_status}"])


def settled(cell: Cell) -> Outcome | None:
    """Return the outcome of a cell that will not run, or None."""
    if cell.collected:
        return Outcome(
            cell, "skipped", f"done before, {_accuracy(read_state(cell.collected).result)}, in {cell.collected}"
        )
    state = read_state(cell.folder)
    if state.status == "done":
        return Outcome(cell, "skipped", f"done before, {_accuracy(state.result)}")
    if state.status == "running":
        return Outcome(cell, "running", f"{state.detail} is using it")
    if state.status == "failed" and not cell.config.retry_failed and not cell.different:
        return Outcome(cell, "failed", f"failed before; retry_failed=true retries it: {state.detail}")
    if state.status == "damaged":
        return Outcome(cell, "damaged", f"{state.detail}; delete the folder to run it again")
    if state.status == "unreadable":
        return Outcome(cell, "unreadable", state.detail)
    return None


def _outcome(cell: Cell, reason: str | None) -> Outcome:
    """Return the outcome of a cell that was launched; `reason` is why it failed, if known."""
    state = read_state(cell.folder)
    if state.status == "done":
        return Outcome(cell, "done", _accuracy(state.result))
    if reason is not None and state.status in ("waiting", "failed"):
        return Outcome(cell, "failed", reason)
    progress = f"after {state.epoch} of {counted(state.epochs, 'epoch')}" if state.epochs else ""
    return Outcome(cell, state.status, "; ".join(part for part in (progress, reason or state.detail) if part))


def _accuracy(result: dict[str, Any]) -> str:
    return f"test accuracy {result['test_acc']:.2%}"


def _advice(incomplete: list[Outcome], total: int) -> str:
    statuses = {outcome.status for outcome in incomplete}
    advice = []
    if statuses - {"failed", *BROKEN}:
        advice.append("rerun the same command to run what is missing")
    if any(read_state(outcome.cell.folder).status == "failed" for outcome in incomplete):  # others are retried anyway
        advice.append("retry_failed=true retries failed runs")
    if not advice:
        advice.append("see above")
    are = "is" if len(incomplete) == 1 else "are"
    return f"error: {len(incomplete)} of {counted(total, 'run')} {are} not done; {', '.join(advice)}"


def clash(one: Cell, other: Cell) -> str:
    """Return the error for two different runs in one folder."""
    return f"two runs would share the folder {one.folder}: {_difference(one, other)}"


def _difference(one: Cell, other: Cell) -> str:
    first, second = flatten(to_plain(one.config)), flatten(to_plain(other.config))
    keys = [key for key in first | second if first.get(key) != second.get(key)]
    if not keys:
        return "they are the same run"
    hint = name_hint(keys, one.config) or "another name= for each"
    why = "and the path has only its first six digits" if keys == ["data.fraction"] else "which is not part of the path"
    return f"they differ only in {', '.join(keys)}, {why}; set {hint}"


def _record(record: Path, cells: list[Cell], outcomes: Sequence[Outcome] = ()) -> None:
    """Record the cells, with their folders relative to the outputs, and why some failed."""
    failed = {outcome.cell.folder: outcome.detail for outcome in outcomes if outcome.status == "failed"}
    noted = []
    for cell in cells:
        if cell.collected:
            continue  # its folder will never be here
        folder = run_name(cell.config)
        reason = {"reason": failed[cell.folder]} if cell.folder in failed else {}
        noted.append({"folder": folder, "overrides": cell.overrides, "work": asdict(work_of(cell.config)), **reason})
    record.mkdir(parents=True, exist_ok=True)
    write_whole(record / CELLS_FILE, (json.dumps(noted, indent=1) + "\n").encode())
