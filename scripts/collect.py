"""Collect the results of finished runs: `python scripts/collect.py outputs/`.

Copies the results of each finished run to results/runs/ (with --external NAME to results/external/NAME/), and rebuilds
runs.csv from all collected runs. It has one row per run: model, all settings that vary, accuracies, costs, commit and
hardware. `kept_out` says why published tables leave out a run (uncommitted changes, quickstart).

`--weights` also keeps the weights of chosen runs, in float16, in results/weights/: at most 16 MB in all.

Collecting twice changes nothing. Exit code 1 if a run folder is damaged, or differs from the run of the same name.
"""

import argparse
import re
import sys
from pathlib import Path

from attnconv.errors import RunFolderError, counted, one_line_errors
from attnconv.files import require_targets
from attnconv.report.collect import Gathered, changing, check_version, gather
from attnconv.report.runs_table import runs_folder, tabulate
from attnconv.report.weights import choose_weights, keep_weights
from attnconv.runs.status import collected_weights
from attnconv.settings.arguments import ScriptParser, existing_folder


def report(outputs: Path, gathered: Gathered) -> int:
    """Print what happened to the runs below `outputs`, and return the number of problems."""
    print(f"{outputs}: {counted(len(gathered.added), 'run')} added, {len(gathered.known)} already known")
    for title, runs in (
        ("not finished", gathered.unfinished),
        ("damaged", gathered.damaged),
        ("results has another run of that name; --replace replaces it", gathered.other),
    ):
        for name, detail in runs.items():
            print(f"  {title}: {name}: {detail}")
    return len(gathered.damaged) + len(gathered.other)


def collect(arguments: argparse.Namespace) -> int:
    """Do what the command line asks, print the problems, and return their number.

    Raises:
        UserError: see `choose_weights`, `check_version` and `tabulate`; or a folder contains no run.
    """
    results, problems = arguments.results, 0
    places = (runs_folder(results, arguments.external or ""), results / "weights")
    require_targets(results / "runs.csv", *(place / "RUN" for place in places))
    check_version(results)
    chosen = choose_weights(arguments.outputs, results, arguments.weights) if arguments.weights else {}
    for outputs in arguments.outputs:
        gathered = gather(outputs, results, arguments.replace, arguments.heads, arguments.external or "")
        if not (gathered.added + gathered.known + [*gathered.other, *gathered.unfinished, *gathered.damaged]):
            raise RunFolderError(f"no run folder below {outputs}")
        problems += report(outputs, gathered)
    for name in keep_weights(chosen, results):
        print(f"{collected_weights(results, name)} has the weights of {name}")
    damaged = tabulate(results)
    for name, detail in damaged.items():
        print(f"  damaged: {results}/{name}: {detail}")
    print(f"{results}/runs.csv lists all runs in {results}")
    return problems + len(damaged)


def person(text: str) -> str:
    """Check the name of a person or a machine, which becomes a folder name."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: use letters, digits, _, - and .")
    return text


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("outputs", type=existing_folder, nargs="+", help="folders of run folders")
    parser.add_results(may_be_new=True)
    parser.add_argument("--replace", action="store_true", help="replace a different run of the same name")
    parser.add_argument("--heads", action="store_true", help="also keep heads.png, 0.4 MB per run")
    parser.add_argument(
        "--external", metavar="NAME", type=person, help="the runs are another person's; keep them in external/NAME"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="RUN",
        help="also keep the weights of these runs; * matches any characters, as in 'study/*/seed0'",
    )  # fmt: skip
    arguments = parser.parse_args()
    if any(outputs.resolve() == arguments.results.resolve() for outputs in arguments.outputs):
        parser.error(f"--results {arguments.results} is also given as a folder of runs: choose another folder")
    if arguments.external and arguments.weights:
        parser.error("--weights keeps weights of this project's own runs: leave out --external")
    with changing(arguments.results):
        problems = collect(arguments)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
