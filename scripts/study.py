"""The study that decides the claims: `make study`, or `python scripts/study.py [--only table1]`.

Trains what is missing of the study's rows, two runs at once on one thread each, and says before each how much time is
left, from how long finished runs took. Started again, it goes on where it stopped: finished runs, those in results/
too, are not run again, and unfinished ones resume. Ctrl-C or SIGTERM lets the runs save themselves first. A run that
fails is reported at the end and stops no other. Runs are in bf16 where this machine computes in it, else in fp32, under
other names; in fp32 the essential rows are smaller, and small runs come first.

Exit code 0 if all runs are done, 1 if not. `python scripts/status.py outputs` shows how it stands at any time.
"""

import time
from datetime import datetime
from pathlib import Path

from attnconv.config import valid_keys
from attnconv.errors import one_line_errors
from attnconv.runs.estimate import AT_ONCE, Rates, duration, work_of
from attnconv.runs.folder import run_name
from attnconv.runs.status import look
from attnconv.settings.arguments import ScriptParser, above_zero, expand_home, positive
from attnconv.sweeps.grid import Cell, run_cells
from attnconv.sweeps.study import in_order, plan, rows
from attnconv.sweeps.workers import Workers
from attnconv.training.device import choose_device, choose_precision

RESULTS = Path(__file__).resolve().parents[1] / "results"


class Progress:
    """Where a study stands, said in words before each run."""

    def __init__(self, cells: list[Cell], output: Path, at_once: int):
        self._cells, self._output, self._at_once = cells, output, at_once
        self._begun = sum(_done(cell) for cell in cells)

    def started(self, cell: Cell) -> None:
        """Say which run of how many begins, and how long all that is left takes."""
        self._begun += 1
        left = duration(self.seconds_left() / self._at_once)
        print(f"run {self._begun} of {len(self._cells)}, about {left} left: {run_name(cell.config)}", flush=True)

    def seconds_left(self) -> float:
        """Core seconds."""
        rates = measured_rates(self._output)
        return sum(seconds_left(cell, rates) for cell in self._cells)


def measured_rates(output: Path) -> Rates:
    """From the runs in results/ and those made here."""
    return Rates.measured([RESULTS / "runs", output])


def seconds_left(cell: Cell, rates: Rates) -> float:
    """Core seconds that a cell still needs; none for one that failed, which is not tried again."""
    if cell.collected is not None or (state := look(cell.folder)).status in ("done", "failed", "damaged"):
        return 0.0
    return rates.seconds(work_of(cell.config)) * state.share_left


def _done(cell: Cell) -> bool:
    return cell.collected is not None or look(cell.folder).status == "done"


def show_rows(cells: dict[str, list[Cell]], rates: Rates) -> None:
    """A line per row: its runs, those that are done, and what is left."""
    print(f"{'row':<16} {'runs':>5} {'done':>5} {'core-hours left':>16}")
    for name, of_row in cells.items():
        hours = sum(seconds_left(cell, rates) for cell in of_row) / 3600
        print(f"{name:<16} {len(of_row):>5} {sum(map(_done, of_row)):>5} {hours:>16.1f}")


def show_cells(cells: list[Cell], rates: Rates, at_once: int) -> None:
    """A line per run that is not done, in order, and the time that all take."""
    left = [(seconds_left(cell, rates), cell) for cell in cells]
    for seconds, cell in left:
        if seconds:
            print(f"{duration(seconds):>12}  {run_name(cell.config)}")
    total = sum(seconds for seconds, _ in left)
    done = sum(not seconds for seconds, _ in left)
    print(f"{len(cells)} runs, {done} done, about {duration(total / at_once)} left with {at_once} at once")


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help=f"of {', '.join(rows('bf16'))}")
    parser.add_argument("--list", action="store_true", help="the rows, their runs and hours; nothing is run")
    parser.add_argument("--dry-run", action="store_true", help="the runs in order, with their times; nothing is run")
    parser.add_argument("--budget-hours", type=above_zero, metavar="H", help="stop after so long; runs are saved")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 where this machine computes in it")
    parser.add_argument(
        "--at-once", type=positive, default=AT_ONCE, metavar="N", help="runs at a time (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run, as train.py takes them")
    arguments = parser.parse_intermixed_args()
    until = None if arguments.budget_hours is None else time.monotonic() + 3600 * arguments.budget_hours
    precision = arguments.precision or choose_precision("auto", choose_device("auto"))
    cells = plan(precision, arguments.only, [*map(expand_home, arguments.overrides)], RESULTS)
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
