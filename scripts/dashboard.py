"""Open a local dashboard of recorded runs, in the browser, without an account or a network: `make dashboard`.

Reads results/runs and outputs/, adds what is new to the Trackio project `attnconv`, and serves it until Ctrl-C. Runs
that train with `logger=trackio` are in the same project, live. Names start with the seed and the model; runs that
differ in nothing but the seed are one group.
"""

from pathlib import Path

from attnconv.errors import UserError, one_line_errors
from attnconv.runs.records import Damaged
from attnconv.runs.status import find_folders
from attnconv.runs.trackio_run import PROJECT, import_run
from attnconv.settings.arguments import ScriptParser, existing_folder

REPOSITORY = Path(__file__).resolve().parents[1]
PLACES = [place for place in (REPOSITORY / "results/runs", Path("outputs")) if place.is_dir()]


def add_runs(places: list[Path], project: str) -> int:
    """Add the recorded runs below some folders to a project, and say which cannot be read; returns how many were."""
    added = 0
    for folder in (folder for place in places for folder in find_folders(place)):
        if not (folder / "metrics.jsonl").exists():
            continue
        try:
            import_run(folder, project)
            added += 1
        except Damaged as damage:
            print(f"left out: {folder}: {damage.detail}")
    return added


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("places", type=existing_folder, nargs="*", default=PLACES, help="folders of runs")
    parser.add_argument("--project", default=PROJECT, help="name of the Trackio project")
    parser.add_argument("--no-show", action="store_true", help="add the runs, and open nothing")
    arguments = parser.parse_args()
    try:
        import trackio
    except ImportError as error:
        raise UserError("Trackio is not installed: pip install trackio") from error
    print(f"{add_runs(arguments.places, arguments.project)} runs in the project {arguments.project}", flush=True)
    if not arguments.no_show:
        trackio.show(project=arguments.project, block_thread=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
