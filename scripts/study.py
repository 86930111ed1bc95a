"""Train the study that decides the claims: `make study`, or `python scripts/study.py [--only table1]`.

Trains the missing runs of the study, two at once on one thread each, and prints the time left before each run,
estimated from finished runs. When restarted, it skips finished runs, including those in results/, and resumes
unfinished ones. On Ctrl-C or SIGTERM, the runs first save themselves. A failed run is reported at the end and does not
stop the others. Runs use bf16 if the hardware supports it, else fp32, with different run names; in fp32 the essential
rows are smaller, and small runs come first.

Exit code 0 if all runs are done, else 1. `python scripts/status.py outputs` shows the progress at any time.
"""

import time
from datetime import datetime
from pathlib import Path

from attnconv.config import RESULTS, valid_keys
from attnconv.errors import counted, one_line_errors
from attnconv.runs.estimate import AT_ONCE, Rates, duration, work_of
from attnconv.runs.folder import run_name
from attnconv.runs.status import BROKEN, read_state
from attnconv.settings.arguments import ScriptParser, above_zero, expand_home, positive
from attnconv.settings.overrides import keep_text
from attnconv.sweeps.grid import Cell, run_cells, settled
from attnconv.sweeps.study import in_order, plan, rows
from attnconv.sweeps.workers import Workers


class Progress:
    """The progress of a study, printed before each run."""

    def __init__(self, cells: list[Cell], output: Path, at_once: int):
        self._cells, self._output, self._at_once = cells, output, at_once
        self._begun = sum(_done(cell) for cell in cells)

    def started(self, cell: Cell) -> None:
        """Print the number of the run that starts, and the time left."""
        self._begun += 1
        left = duration(self.seconds_left() / self._at_once)
        print(f"run {self._begun} of {len(self._cells)}, about {left} left: {run_name(cell.config)}", flush=True)

    def seconds_left(self) -> float:
        """Return the core seconds left."""
        rates = measured_rates(self._output)
        return sum(seconds_left(cell, rates) for cell in self._cells)


def measured_rates(output: Path) -> Rates:
    """Return the rates measured from the runs in results/ and in the output folder."""
    return Rates.measured([RESULTS / "runs", output])


def seconds_left(cell: Cell, rates: Rates) -> float:
    """Return the core seconds that a cell still needs; 0 if it failed and is not retried."""
    if cell.collected is not None or (state := read_state(cell.folder)).status in ("done", *BROKEN):
        return 0.0
    if state.status == "failed" and settled(cell):
        return 0.0
    return rates.seconds(work_of(cell.config)) * state.share_left


def _done(cell: Cell) -> bool:
    return cell.collected is not None or read_state(cell.folder).status == "done"


def show_rows(cells: dict[str, list[Cell]], rates: Rates) -> None:
    """Print one line per experiment: its runs, the finished runs, and the time left."""
    print(f"{'experiment':<16} {'runs':>5} {'done':>5} {'core-hours left':>16}")
    for name, of_row in cells.items():
        hours = sum(seconds_left(cell, rates) for cell in of_row) / 3600
        print(f"{name:<16} {len(of_row):>5} {sum(map(_done, of_row)):>5} {hours:>16.1f}")


def show_cells(cells: list[Cell], rates: Rates, at_once: int) -> None:
    """Print one line per unfinished run, in order, and the total time."""
    left = [(seconds_left(cell, rates), cell) for cell in cells]
    for seconds, cell in left:
        if seconds:
            print(f"{duration(seconds):>12}  {run_name(cell.config)}")
    total = sum(seconds for seconds, _ in left)
    done = sum(map(_done, cells))
    time_left = f", about {duration(total / at_once)} left with {at_once} at once" if total else ""
    print(f"{counted(len(cells), 'run')}, {done} done{time_left}")


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=f"train only this experiment: {', '.join(rows('bf16'))}",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the experiments, their runs and hours, and run nothing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs in order with their times, and run nothing"
    )
    parser.add_argument("--budget-hours", type=above_zero, metavar="H", help="stop after H hours; runs are saved")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 if the hardware supports it")
    parser.add_argument(
        "--at-once", type=positive, default=AT_ONCE, metavar="N", help="runs at a time (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings for all runs, as for train.py")
    arguments = parser.parse_intermixed_args()
    if (arguments.list or arguments.dry_run) and arguments.budget_hours is not None:
        parser.error("--list and --dry-run train nothing: leave out --budget-hours")
    for word in arguments.overrides:
        if word in rows("bf16"):
            parser.error(f"{word} is an experiment: write --only {word}")
    if arguments.list and arguments.dry_run:
        parser.error("choose one of --list and --dry-run")
    until = None if arguments.budget_hours is None else time.monotonic() + 3600 * arguments.budget_hours
    precision = arguments.precision
    if precision is None:
        from attnconv.training.device import precision_here  # imports torch

        devices = [word.partition("=")[2] for word in arguments.overrides if word.startswith("device=")]
        precision = precision_here([*devices, "auto"][0])
    cells = plan(precision, arguments.only, [keep_text(expand_home(word)) for word in arguments.overrides], RESULTS)
    output = Path(next(iter(cells.values()))[0].config.output)
    rates = measured_rates(output)
    ordered = in_order(cells, precision, rates)
    if arguments.list:
        show_rows(cells, rates)
    elif arguments.dry_run:
        show_cells(ordered, rates, arguments.at_once)
    else:
        record = output / ".sweeps" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        progress = Progress(ordered, output, arguments.at_once)
        launch = Workers(ordered, arguments.at_once, record / "logs", progress.started, until)
        run_cells(ordered, launch, record)


if __name__ == "__main__":
    with one_line_errors(valid_keys()):
        main()
