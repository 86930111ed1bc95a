"""Make the table of experiment=long_range: results/long_range.csv and results/long_range.md.

    python train.py experiment=long_range
    python scripts/collect.py outputs               keeps the run folders in results/runs
    python scripts/long_range.py results/runs

The table shows test accuracy by model, layers and distance. `limit` is the theoretical limit: the largest distance at
which some pixel of the last layer sees both marks. `counting` is the accuracy of a baseline that counts marks. Models
without a run in the folder keep the rows that they have in the table.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnconv.config import DataConfig, flatten, to_plain
from attnconv.errors import ConfigError, RunFolderError, counted, one_line_errors
from attnconv.files import csv_text, require_targets, write_whole
from attnconv.report.long_range import long_range_table, read_long_range
from attnconv.report.runs_table import kept_out
from attnconv.runs.identity import free_to_change
from attnconv.runs.status import BROKEN, find_folders, read_state, shown_name
from attnconv.settings.arguments import ScriptParser, existing_folder

SHOWN = ("scale.layers", "model.layers", "data.distance")  # settings of the table's rows and columns


def read_cell(folder: Path, trusted: Sequence[str]) -> dict[str, Any]:
    """Return one run as a row."""
    from attnconv.analysis.receptive_field import widest_pair  # imports torch, as the others do
    from attnconv.data.synthetic_pairs import accuracy_of_counting
    from attnconv.runs.load import read_run_config

    result, config = read_state(folder).result, read_run_config(folder, trusted)
    if config.scale.name != "mini":
        raise RunFolderError(f"{folder}: this table needs runs with scale=mini")
    for name in ("clutter", "task"):
        if getattr(config.data, name) != (wanted := getattr(DataConfig, name)):
            raise RunFolderError(f"{folder}: this table needs runs with data.{name}={wanted}")
    layers, patch = (config.model.get(name, getattr(config.scale, name)) for name in ("layers", "patch"))
    try:
        limit = patch * widest_pair(config.model, layers, (3, 32, 32))
    except ConfigError as error:
        raise RunFolderError(f"{folder}: {error}; remove the folder, or give the run another name") from None
    return {
        "model": result["model"],
        "layers": layers,
        "distance": config.data.distance,
        "limit": limit,
        "counting": round(accuracy_of_counting(config.data.distance, config.data.clutter), 6),
        "seed": result["seed"],
        "train_images": result["train_images"],
        "epochs": result["epochs"],
        "precision": result["precision"],
        "test_acc": result["test_acc"],
        "commit": result["commit"],
        "dirty": result["dirty"],
    }


def settings_of(folder: Path, trusted: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that all runs of the table have in common, and those of its model, with the precision."""
    from attnconv.runs.load import read_run_config

    config = read_run_config(folder, trusted)
    settings = flatten(to_plain(replace(config, name="", seed=0)))
    settings = {key: value for key, value in settings.items() if key not in SHOWN and not free_to_change(key)}
    own = {key: value for key, value in settings.items() if key.partition(".")[0] in ("model", "recipe")}
    common = {key: value for key, value in settings.items() if key not in own and key != "precision"}
    own["precision"] = read_state(folder).result["precision"]
    return common | {"recipe": config.recipe.name}, own


def read_cells(outputs: Path, trusted: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each finished run of the experiment.

    Runs with uncommitted changes are left out.

    Raises:
        RunFolderError: there is no run, one is damaged, two have the same settings, or they differ in what the table
            does not show.
    """
    named = [folder for folder in find_folders(outputs) if shown_name(folder, outputs).startswith("long_range_")]
    states = {folder: read_state(folder) for folder in named if (folder / "result.json").exists()}
    for folder, state in states.items():
        if state.status in BROKEN:
            raise RunFolderError(f"{folder} is {state.status}: {state.detail}")
    done = {folder: state.result for folder, state in states.items() if state.status == "done"}
    folders = [folder for folder, result in done.items() if not kept_out(result)]
    if len(done) < len(states):
        print(f"{counted(len(states) - len(done), 'unfinished run')} skipped")
    for folder in sorted(done.keys() - set(folders)):
        print(f"{folder} skipped: {kept_out(done[folder])}")
    if not folders:
        raise RunFolderError(f"no finished run of experiment=long_range below {outputs}")
    rows = [read_cell(folder, trusted) for folder in folders]
    if len({cell_of(row) for row in rows}) < len(rows):
        raise RunFolderError("several runs have the same settings, and the table shows one: keep one seed per folder")
    settings = [settings_of(folder, trusted) for folder in folders]
    require_equal([common for common, _ in settings])
    for model in {row["model"] for row in rows}:
        require_equal([own for row, (_, own) in zip(rows, settings, strict=True) if row["model"] == model])
    return rows


def require_equal(settings: list[dict[str, Any]]) -> None:
    """Raise RunFolderError if runs differ in a setting."""
    for name in dict.fromkeys(name for one in settings for name in one):
        value = settings[0].get(name)
        if values := {str(other.get(name)) for other in settings} - {str(value)}:
            raise RunFolderError(f"runs with {name}={value} and {values.pop()} cannot be compared: remove some")


def rows_of_other_models(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the present table whose models have no run.

    Raises:
        RunFolderError: a model would lose cells, or the rows differ in images or epochs.
    """
    if not path.exists():
        return []
    now = read_long_range(path, tuple(rows[0]))
    models, cells = {row["model"] for row in rows}, {cell_of(row) for row in rows}
    if lost := [cell_of(row) for row in now if row["model"] in models and cell_of(row) not in cells]:
        model, layers, distance = lost[0]
        raise RunFolderError(
            f"{path} would lose {counted(len(lost), 'cell')}, such as {model} with {counted(layers, 'layer')} at "
            f"{distance} pixels: train {model} at all depths and distances of experiment=long_range, or set "
            "--results FOLDER"
        )
    kept = [row for row in now if row["model"] not in models]
    require_equal([{name: str(row[name]) for name in ("train_images", "epochs")} for row in (*rows, *kept)])
    return kept


def cell_of(row: dict[str, Any]) -> tuple[str, int, int]:
    """Return the place of a row in the table."""
    return row["model"], row["layers"], row["distance"]


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("outputs", type=existing_folder, help="folder of run folders")
    parser.add_results()
    parser.add_trust()
    arguments = parser.parse_args()
    path, page = arguments.results / "long_range.csv", arguments.results / "long_range.md"
    require_targets(path, page)
    rows = read_cells(arguments.outputs, arguments.trust)
    rows = sorted((*rows, *rows_of_other_models(path, rows)), key=cell_of)
    write_whole(path, csv_text(rows[0], rows).encode())
    commits = ", ".join(sorted({f"{row['commit'][:7]} ({row['precision']})" for row in rows}))
    introduction = (
        "Made by `python scripts/long_range.py OUTPUTS` from the runs of `python train.py experiment=long_range` at "
        f"commit {commits}: scale=mini, {int(rows[0]['train_images']):,} training images, {rows[0]['epochs']} epochs, "
        "one seed. Numbers are test accuracies. *Italic*: beyond the limit: for some pairs, no position of the last "
        "layer sees both marks. The first row is a baseline that counts marks by color and position, and never "
        "compares two of them (`attnconv.data.synthetic_pairs.accuracy_of_counting`). `depthwise_global` is circular "
        "here: a shift by d and one by d - 32 pixels are the same to it, and at 16 both look at the same place."
    )
    table = long_range_table(read_long_range(path))
    head = f"# Which models learn a relation over which distance?\n\n{textwrap.fill(introduction, 120)}\n\n"
    write_whole(page, f"{head}<!-- table: long_range -->\n{table}<!-- end table -->\n".encode())


if __name__ == "__main__":
    with one_line_errors():
        main()
