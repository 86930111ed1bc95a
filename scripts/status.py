"""How the runs below a folder stand, at any time: `python scripts/status.py outputs/`.

A line per run, those of every sweep that was started there included, whether anybody has begun them or not:

    done, running (and who), interrupted (it stopped itself), unfinished (it was killed), failed (and why),
    damaged (and how), waiting (nobody has begun)

At the end the time that is left, if runs of a sweep are not done: from how long finished runs took.
"""

from collections import Counter
from pathlib import Path

from attnconv.errors import one_line_errors
from attnconv.runs.estimate import AT_ONCE, Rates, duration, time_left
from attnconv.runs.status import STATUSES, State, noted_cells, survey
from attnconv.settings.arguments import ScriptParser, existing_folder

RESULTS = Path(__file__).resolve().parents[1] / "results"


def line(name: str, state: State, width: int) -> str:
    """One run in words."""
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
    noted = noted_cells(outputs)
    folders = survey(outputs, noted)
    states = {folder.relative_to(outputs).as_posix(): state for folder, state in folders.items()}
    if not states:
        parser.error(f"no run and no sweep below {outputs}")
    width = max(len(name) for name in states)
    print(f"{'':<11}  {'run':<{width}}     epochs  test acc")
    for name, state in states.items():
        print(line(name, state, width))
    counts = Counter(state.status for state in states.values())
    print(f"{len(states)} runs: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status]))
    at_once = counts["running"] or AT_ONCE
    seconds = time_left(folders, noted, Rates.measured([RESULTS / "runs", outputs]), at_once)
    if seconds is not None:
        print(f"about {duration(seconds)} left with {at_once} at once")


if __name__ == "__main__":
    with one_line_errors():
        main()
