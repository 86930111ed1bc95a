"""Show recorded runs in a local dashboard in the browser, without an account or a network: `make dashboard`.

Reads results/runs and outputs/, adds new runs to the Trackio project `attnconv`, and serves it until Ctrl-C. Runs that
train with `logger=trackio` appear in the same project, live. Names start with the seed and the model; runs that differ
only in the seed form a group.
"""

import sqlite3
import sys
from pathlib import Path

from attnconv.config import REPOSITORY
from attnconv.errors import UserError, counted, one_line_errors
from attnconv.runs.records import Damaged
from attnconv.runs.status import find_folders
from attnconv.runs.trackio_run import PROJECT, import_run
from attnconv.settings.arguments import ScriptParser, existing_folder
from attnconv.settings.limits import check_folder_name

PLACES = [place for place in (REPOSITORY / "results/runs", Path("outputs")) if place.is_dir()]


def add_runs(places: list[Path], project: str) -> tuple[int, int]:
    """Add the recorded runs in some folders to a project, print which cannot be read, and count both kinds."""
    added = skipped = 0
    for folder in (folder for place in places for folder in find_folders(place)):
        if not (folder / "metrics.jsonl").exists():
            continue
        try:
            import_run(folder, project)
            added += 1
        except Damaged as damage:
            print(f"skipped: {folder}: {damage.detail}")
            skipped += 1
        except sqlite3.DatabaseError as error:
            raise UserError(f"Trackio's database of the project {project} cannot be used: {error}") from error
    return added, skipped


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("places", type=existing_folder, nargs="*", default=PLACES, help="folders of runs")
    parser.add_argument("--project", default=PROJECT, help="name of the Trackio project")
    parser.add_argument("--no-show", action="store_true", help="add the runs without opening the dashboard")
    arguments = parser.parse_args()
    try:
        import trackio
    except ImportError as error:
        raise UserError("Trackio is not installed: pip install trackio") from error
    check_folder_name("--project", arguments.project)
    added, skipped = add_runs(arguments.places, arguments.project)
    if not added:
        places = ", ".join(map(str, arguments.places)) or "results/runs and outputs"
        parser.error(f"no readable runs in {places}; train one with python train.py")
    print(f"{counted(added, 'run')} in the project {arguments.project}", flush=True)
    if not arguments.no_show:
        trackio.show(project=arguments.project, block_thread=True)
    sys.exit(1 if skipped else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
