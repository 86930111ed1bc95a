"""Show the status of all runs in a folder: `python scripts/status.py outputs/`.

Prints one line per run, including all runs of sweeps that were started there:

    done, running (with its process), interrupted (by a signal or a full disk), unfinished (killed),
        failed, damaged or unreadable (with the reason), waiting (not started)

If runs of a sweep are not done, the last line estimates the time left from finished runs.
"""

from collections import Counter

from attnconv.config import RESULTS
from attnconv.errors import counted, one_line_errors
from attnconv.report.complaints import exit_with
from attnconv.runs.estimate import AT_ONCE, Rates, duration, time_left
from attnconv.runs.status import STATUSES, State, noted_cells, shown_name, survey
from attnconv.settings.arguments import ScriptParser, existing_folder


def line(name: str, state: State, width: int) -> str:
    """Return one run as a line of text."""
    accuracy = state.result.get("test_acc")
    cells = [
        f"{state.status:<11}",
        f"{name:<{width}}",
        f"{state.epoch:>4}/{state.epochs:<4}" if state.epochs else " " * 9,
        f"{accuracy:>7.2%}" if state.status == "done" and accuracy is not None else " " * 7,
        state.detail,
    ]
    return "  ".join(cells).rstrip()


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("outputs", type=existing_folder, nargs="?", default="outputs", help="folder of runs")
    outputs = parser.parse_args().outputs
    errors: list[str] = []
    noted = noted_cells(outputs, errors)
    folders = survey(outputs, noted)
    states = {shown_name(folder, outputs): state for folder, state in folders.items()}
    if not states:
        exit_with(errors)
        parser.error(f"{outputs} contains no runs and no sweeps")
    width = max(len(name) for name in states)
    print(f"{'':<11}  {'run':<{width}}     epochs  test acc")
    for name, state in states.items():
        print(line(name, state, width))
    counts = Counter(state.status for state in states.values())
    print(
        f"{counted(len(states), 'run')}: "
        + ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    )
    at_once = counts["running"] or AT_ONCE
    seconds = time_left(folders, noted, Rates.measured([RESULTS / "runs", outputs]), at_once)
    if seconds is not None:
        print(f"about {duration(seconds)} left with {at_once} at once")
    exit_with(errors)


if __name__ == "__main__":
    with one_line_errors():
        main()
