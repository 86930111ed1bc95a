"""One table of what runs found: `python scripts/collect.py outputs/ --into results/`.

Keeps what every finished run says of itself in results/runs/ (with --external NAME in results/external/NAME/), and
writes runs.csv from all that is there, a row per run: what it was, every setting that varies, accuracies, costs, where
it was made. `kept_out` says why a run must not stand in a published table (dirty tree, quickstart).

`--weights` also keeps the weights of chosen runs, in float16, in results/weights/: at most 16 MB in all.

Collecting twice changes nothing. Exit code 1 if a run folder is damaged, or is another run than results/ has.
"""

import argparse
import re
import sys
from pathlib import Path

from attnconv.errors import RunFolderError, one_line_errors
from attnconv.report.collect import Gathered, check_version, gather, tabulate
from attnconv.report.weights import choose_weights, keep_weights
from attnconv.runs.status import collected_weights
from attnconv.settings.arguments import ScriptParser, existing_folder

REPOSITORY = Path(__file__).resolve().parents[1]


def report(outputs: Path, gathered: Gathered) -> int:
    """Print what became of the runs below `outputs`; returns the number of problems."""
    print(f"{outputs}: {len(gathered.added)} runs added, {len(gathered.known)} known before")
    for title, runs in (
        ("not finished", gathered.unfinished),
        ("damaged", gathered.damaged),
        ("another run has that name in results; --replace takes this one", gathered.other),
    ):
        for name, detail in runs.items():
            print(f"  {title}: {name}: {detail}")
    return len(gathered.damaged) + len(gathered.other)


def collect(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; returns the number of problems, which are printed.

    Raises:
        UserError: see `choose_weights`, `check_version`, `tabulate`; or a folder has no run.
    """
    into, problems = arguments.into, 0
    check_version(into)
    chosen = choose_weights(arguments.outputs, into, arguments.weights) if arguments.weights else {}
    for outputs in arguments.outputs:
        gathered = gather(outputs, into, arguments.replace, arguments.heads, arguments.external or "")
        if not (gathered.added + gathered.known + [*gathered.other, *gathered.unfinished, *gathered.damaged]):
            raise RunFolderError(f"no run folder below {outputs}")
        problems += report(outputs, gathered)
    for name in keep_weights(chosen, into):
        print(f"{collected_weights(into, name)} has the weights of {name}")
    damaged = tabulate(into)
    for name, detail in damaged.items():
        print(f"  damaged: {into}/{name}: {detail}")
    print(f"{into}/runs.csv has every run that is kept in {into}")
    return problems + len(damaged)


def person(text: str) -> str:
    """An argument that names a person or a machine, and a folder."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: use letters, digits, - and .")
    return text


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("outputs", type=existing_folder, nargs="+", help="folders of run folders")
    parser.add_argument("--into", type=Path, default=REPOSITORY / "results", help="results/ of this repository")
    parser.add_argument("--replace", action="store_true", help="a run replaces another one of its name in results/")
    parser.add_argument("--heads", action="store_true", help="keep heads.png, 0.4 MB a run")
    parser.add_argument(
        "--external", metavar="NAME", type=person, help="the runs are another person's: keep them apart"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], metavar="RUN",
        help="keep the weights of these runs; * stands for any characters, as in 'study/*/seed0'",
    )  # fmt: skip
    arguments = parser.parse_args()
    problems = collect(arguments)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
