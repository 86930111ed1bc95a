"""The task of two marks at a distance (experiment=long_range): results/long_range.csv and its table."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from attnconv.report.tables import markdown, read_table
from attnconv.runs.bounds import COUNT, SHARE


def read_long_range(path: Path, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of long_range.csv and check that they have these columns, too.

    Raises:
        FileError: see `read_table`.
    """
    numbers = {"layers": COUNT, "distance": COUNT, "limit": COUNT, "counting": SHARE, "test_acc": SHARE}
    return read_table(path, numbers, ("model", "precision", *columns), unique=("model", "layers", "distance"))


def long_range_table(rows: list[dict[str, Any]]) -> str:
    """Return accuracies by model, layers and distance. Italics are beyond the theoretical limit."""
    counting = {row["distance"]: row["counting"] for row in rows}
    distances = sorted(counting)
    cells: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["layers"]), {})[row["distance"]] = row
    lines = [["counting baseline", "", "", "", *(f"{counting[distance]:.1%}" for distance in distances)]]
    for (model, layers), by_distance in sorted(cells.items()):
        first = next(iter(by_distance.values()))
        line = [f"`{model}`", first["precision"], str(layers), str(first["limit"])]
        for distance in distances:
            cell = by_distance.get(distance)
            accuracy = "" if cell is None else f"{cell['test_acc']:.1%}"
            beyond = cell is not None and distance > cell["limit"]
            line.append(f"*{accuracy}*" if beyond else accuracy)
        lines.append(line)
    header = ["model", "precision", "layers", "limit, pixels", *(f"{distance} pixels" for distance in distances)]
    return markdown(header, lines)
