"""What the page shows of the whole study: how convolutional attention became, and accuracy against data and time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnconv.files import read_json, reading
from attnconv.report.page.runs import facts
from attnconv.report.theorem_page import NUMBERS, layer_rows
from attnconv.runs.records import read_finished

PROBE = "probe.json"  # by scripts/probe.py
DECIMALS = 4


def probes(folders: Iterable[tuple[Path, str, tuple[int, int, int]]]) -> list[dict[str, Any]]:
    """Return how convolutional the layers of each probed run are: {number: [initial, trained]} of every layer.

    Args:
        folders: of runs, with the link from the page and (C, height, width) of their images; those without a
            probe.json, or with a dirty tree's, are left out.
    """
    found = []
    for folder, link, (_, height, width) in folders:
        if not (folder / PROBE).exists():
            continue
        probed = read_json(folder / PROBE, ("dirty", "heads", "layers"))
        if not probed["dirty"]:
            config, result, _ = read_finished(folder)
            layers = [{name: _rounded(pair) for name, pair in layer.items()} for layer in layer_rows(probed)]
            heads, patch = config["model"]["heads"], config["model"]["patch"]
            about = {"heads": heads, "grid": [height // patch, width // patch], "layers": layers}
            found.append(facts(config, result, link) | about)
    return found


def calibration(results: Path) -> dict[str, Any] | None:
    """Return what a probe says of attention of known nature (attnconv.analysis.calibration), if it is there."""
    path = results / "theorem" / "calibration.json"
    if not path.exists():
        return None
    found = read_json(path, ("positions", "rows"))
    with reading(path):
        rows = [
            {"attention": row["attention"]} | {key: round(row[key], DECIMALS) for key in NUMBERS}
            for row in found["rows"]
        ]
    return {"positions": found["positions"], "rows": rows}


def _rounded(pair: tuple[float | None, float | None]) -> list[float | None]:
    return [value if value is None else round(value, DECIMALS) for value in pair]
