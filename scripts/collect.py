"""One table of what runs found: `python scripts/collect.py outputs/ --into results/`.

Keeps what every finished run says of itself in results/runs/, and writes from all that is there

    runs.csv         a row per run: what it was, every setting that varies, accuracies, costs, where it was made;
                     `kept_out` says why a run must not stand in a published table (dirty tree, quickstart)
    curves.parquet   a row per run and epoch

Collecting twice changes nothing. Exit code 1 if a run folder is damaged, or is another run than results/ has.
"""

import sys
from pathlib import Path

from attnconv.command import ScriptParser, existing_folder
from attnconv.errors import one_line_errors
from attnconv.study.collect import check_version, gather, tabulate

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("outputs", type=existing_folder, nargs="+", help="folders of run folders")
    parser.add_argument("--into", type=Path, default=REPOSITORY / "results", help="results/ of this repository")
    parser.add_argument("--replace", action="store_true", help="a run replaces another one of its name in results/")
    parser.add_argument("--heads", action="store_true", help="keep heads.png, 0.4 MB a run")
    arguments = parser.parse_args()
    with one_line_errors([]):
        check_version(arguments.into)
    problems = 0
    for outputs in arguments.outputs:
        gathered = gather(outputs, arguments.into, arguments.replace, arguments.heads)
        found = gathered.added + gathered.known + [*gathered.other, *gathered.unfinished, *gathered.damaged]
        if not found:
            parser.error(f"no run folder below {outputs}")
        print(f"{outputs}: {len(gathered.added)} runs added, {len(gathered.known)} known before")
        for title, runs in (
            ("not finished", gathered.unfinished),
            ("damaged", gathered.damaged),
            ("another run has that name in results; --replace takes this one", gathered.other),
        ):
            for name, detail in runs.items():
                print(f"  {title}: {name}: {detail}")
        problems += len(gathered.damaged) + len(gathered.other)
    damaged = tabulate(arguments.into)
    for name, detail in damaged.items():
        print(f"  damaged: {arguments.into}/runs/{name}: {detail}")
    print(f"{arguments.into}/runs.csv and curves.parquet are made from {arguments.into}/runs/")
    sys.exit(1 if problems or damaged else 0)


if __name__ == "__main__":
    main()
