"""The task of two marks at a distance (experiment=long_range): results/long_range.csv and its table."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from attnconv.files import check_share, read_csv, reading
from attnconv.report.tables import markdown


def read_long_range(path: Path, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of long_range.csv and check that they have these columns, too.

    Layers, distances and limits are int, accuracies float, and all else text.

    Raises:
        FileError: see `reading`.
    """
    rows: list[dict[str, Any]] = []
    with reading(path):
        for number, row in enumerate(read_csv(path, ("model", "precision", *columns)), 1):
            whole = {name: int(row[name]) for name in ("layers", "distance", "limit")}
            shares = {name: float(row[name]) for name in ("counting", "test_acc")}
            for name, value in shares.items():
                check_share(f"row {number} has {name}", value)
            rows.append(row | whole | shares)
    return rows


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
