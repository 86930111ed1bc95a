"""Make the table of experiment=long_range: results/long_range.csv and results/long_range.md.

    python train.py experiment=long_range
    python scripts/collect.py outputs               keeps the run folders in results/runs
    python scripts/long_range.py results/runs

The table shows test accuracy by model, layers and distance. `limit` is the theoretical limit: the largest distance at
which some pixel of the last layer sees both marks. `counting` is the accuracy of a baseline that counts marks.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnconv.config import DataConfig, flatten, to_plain
from attnconv.errors import RunFolderError, counted, one_line_errors
from attnconv.files import csv_text, read_csv, reading, require_targets, write_whole
from attnconv.report.runs_table import kept_out
from attnconv.report.tables import long_range_table
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
    limit = patch * widest_pair(config.model, layers, (3, 32, 32))
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
    """Return the settings that all runs of the table have in common, with the precision, and those of its model."""
    from attnconv.runs.load import read_run_config

    config = read_run_config(folder, trusted)
    settings = flatten(to_plain(replace(config, name="", seed=0, precision=read_state(folder).result["precision"])))
    settings = {key: value for key, value in settings.items() if key not in SHOWN and not free_to_change(key)}
    own = {key: value for key, value in settings.items() if key.partition(".")[0] in ("model", "recipe")}
    common = {key: value for key, value in settings.items() if key not in own}
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
    if len({(row["model"], row["layers"], row["distance"]) for row in rows}) < len(rows):
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


def require_all_cells(path: Path, rows: list[dict[str, Any]]) -> None:
    """Raise RunFolderError if the table would lose cells that it has now."""
    if not path.exists():
        return
    names = ("model", "layers", "distance")
    with reading(path):
        now = [tuple(str(row[name]) for name in names) for row in read_csv(path, names)]
    lost = [cell for cell in now if cell not in {tuple(str(row[name]) for name in names) for row in rows}]
    if lost:
        model, layers, distance = lost[0]
        raise RunFolderError(
            f"{path} would lose {len(lost)} of its {counted(len(now), 'cell')}, such as {model} with "
            f"{counted(int(layers), 'layer')} at {distance} pixels: train all of experiment=long_range, or set "
            "--results FOLDER"
        )


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("outputs", type=existing_folder, help="folder of run folders")
    parser.add_results()
    parser.add_trust()
    arguments = parser.parse_args()
    path, page = arguments.results / "long_range.csv", arguments.results / "long_range.md"
    require_targets(path, page)
    rows = read_cells(arguments.outputs, arguments.trust)
    require_all_cells(path, rows)
    rows.sort(key=lambda row: (row["model"], row["layers"], row["distance"], row["seed"]))
    write_whole(path, csv_text(rows[0], rows).encode())
    commits = ", ".join(sorted({str(row["commit"])[:7] for row in rows}))
    introduction = (
        "# Which models learn a relation over which distance?\n\n"
        "Made by `python scripts/long_range.py OUTPUTS` from the runs of `python train.py experiment=long_range` at "
        f"commit\n{commits} (see results/README.md): scale=mini, {rows[0]['train_images']:,} training images, "
        f"{rows[0]['epochs']} epochs,\none seed, {rows[0]['precision']}. Numbers are test accuracies. *Italic*: beyond "
        "the limit: for some pairs, no position\nof the last layer sees both marks. The first row is a baseline that "
        "counts marks by color and position, and never\ncompares two of them "
        "(`attnconv.data.synthetic_pairs.accuracy_of_counting`). `depthwise_global` is circular here: a shift by d and "
        "one\nby d - 32 pixels are the same to it, and at 16 both look at the same place.\n\n"
    )
    table = long_range_table(read_csv(path))
    write_whole(page, f"{introduction}<!-- table: long_range -->\n{table}<!-- end table -->\n".encode())


if __name__ == "__main__":
    with one_line_errors():
        main()
