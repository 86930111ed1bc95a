"""The page's data about the whole study: probes of how convolutional attention is, and the claims."""

from pathlib import Path
from typing import Any

from attnconv.files import reading
from attnconv.report.complaints import note
from attnconv.report.deciders import judged
from attnconv.report.examined import NUMBERS, PROBE, layer_rows, read_calibration, read_examination
from attnconv.report.page.runs import facts
from attnconv.runs.records import read_finished

DECIMALS = 4


def probe_of(folder: Path, link: str, image: tuple[int, int, int]) -> dict[str, Any] | None:
    """Return how convolutional the layers of a run are: {number: [initial, trained]} for each layer.

    Return None without a probe (see `read_examination`).

    Args:
        link: from the page to the folder.
        image: (C, height, width) of its data.

    Raises:
        Damaged, FileError: the run or its probe.json is damaged.
    """
    probed = read_examination(folder, PROBE)
    if probed is None:
        return None
    config, result, _ = read_finished(folder)
    with reading(folder / PROBE):
        layers = [{name: _rounded(pair) for name, pair in layer.items()} for layer in layer_rows(probed)]
    with reading(folder / "config.yaml"):
        (_, height, width), patch = image, probed.get("patch", config["model"].get("patch", 1))
        about = {"grid": [height // patch, width // patch], "layers": layers}
    return facts(config, result, link) | about


def calibration(results: Path) -> dict[str, Any] | None:
    """Return the probe's numbers for attention of known kinds (attnconv.analysis.calibration), if they exist."""
    found = read_calibration(results)
    if found is None:
        return None
    rows = [
        {"attention": row["attention"]} | {key: round(row[key], DECIMALS) for key in NUMBERS} for row in found["rows"]
    ]
    return {"positions": found["positions"], "rows": rows}


def claims(results: Path, rows: list[dict[str, Any]], errors: list[str]) -> list[dict[str, Any]]:
    """Return all claims with their verdicts, numbers and the commands for their runs.

    Args:
        errors: receives problems with files; the affected claims stay undecided.
    """
    verdicts, wrong = judged(results, rows)
    note(errors, wrong)
    return [
        {"id": one.claim["id"], "claim": one.claim["claim"], "status": one.status + one.caveat}
        | {"number": one.number.replace("<br>", "; ").replace("`", ""), "command": one.claim["command"]}
        for one in verdicts
    ]


def _rounded(pair: tuple[float | None, float | None]) -> list[float | None]:
    return [value if value is None else round(value, DECIMALS) for value in pair]
