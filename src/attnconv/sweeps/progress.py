"""The progress of a sweep, printed before each of its runs by the process of that run."""

import json
from pathlib import Path

from attnconv.config import RESULTS
from attnconv.runs.estimate import Rates, duration, time_left
from attnconv.runs.status import CELLS_FILE, read_state


def progress_line(record: Path, outputs: Path) -> str | None:
    """Return how many runs of a sweep are done and the time left, or None if the sweep recorded no cells.

    Args:
        record: folder of this start of the sweep, with cells.json.
        outputs: the folder of its run folders.
    """
    if not (record / CELLS_FILE).exists():
        return None
    noted = {outputs / cell["folder"]: cell for cell in json.loads((record / CELLS_FILE).read_text("utf-8"))}
    states = {folder: read_state(folder) for folder in noted}
    statuses = [state.status for state in states.values()]
    at_once = statuses.count("running") + 1  # including the one that is about to start
    seconds = time_left(states, noted, Rates.measured([RESULTS / "runs", outputs]), at_once)
    left = f", about {duration(seconds)} left" if seconds else ""
    return f"sweep: {statuses.count('done')} of {len(noted)} runs done{left}"
