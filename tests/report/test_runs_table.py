"""runs.csv is read back with its types, and has a column for each setting that varies."""

import csv
import re

import pytest

from attnconv.files import FileError
from attnconv.report.runs_table import IDENTITY, PROVENANCE, read_runs, tabulate, varying_settings

COLUMNS = ("run", "source", "kept_out", *IDENTITY, *PROVENANCE)
RUN = {"run": "a", "name": "n", "model": "m", "recipe": "r", "scale": "s", "data": "d", "fraction": 0.25, "seed": 1,
       "test_acc": 0.5, "format": 3, "commit": "1234567e8", "dirty": False}  # fmt: skip


def written(path, *rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path


def test_csv_cells_keep_their_types(tmp_path):
    path = written(tmp_path / "runs.csv", RUN, RUN | {"run": "b", "kept_out": "dirty tree", "dirty": True})
    (row,) = read_runs(path)
    assert row == dict.fromkeys(COLUMNS) | RUN


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"test_acc": "88%"}, "has unexpected content ('88%' in column test_acc, which holds numbers)"),
        ({"test_acc": ""}, "has unexpected content (an empty cell in column test_acc)"),
        ({"model": ""}, "has unexpected content (an empty cell in column model)"),
        ({"format": "new"}, "has unexpected content"),
        ({"run": "b", "test_acc": 88.63}, "(row 2 has test_acc 88.63, which is not a share from 0 to 1)"),
        ({"run": "b", "train_acc": -0.1}, "(row 2 has train_acc -0.1, which is not a share"),
        ({"seed": 2}, "(row 2 repeats the run a)"),
    ],
)
def test_cells_of_another_kind_are_a_one_line_error(tmp_path, changes, complaint):
    path = written(tmp_path / "runs.csv", RUN, RUN | changes)
    with pytest.raises(FileError, match=re.escape(complaint)):
        read_runs(path)


@pytest.mark.parametrize("column", ["source", "test_acc", "precision", "subset_hash"])
def test_a_missing_column_is_a_one_line_error(tmp_path, column):
    path = written(tmp_path / "runs.csv", RUN, columns=[name for name in COLUMNS if name != column])
    with pytest.raises(FileError, match=f"runs.csv lacks '{column}'"):
        read_runs(path)


def test_the_error_of_a_damaged_table_says_how_to_make_it_anew(tmp_path):
    for text in ("", "name,model\na,b\n"):
        (tmp_path / "runs.csv").write_text(text)
        with pytest.raises(FileError, match=r"runs\.csv .*delete it to make it anew from the run folders"):
            tabulate(tmp_path)


def test_a_setting_varies_only_if_runs_of_one_model_and_recipe_differ():
    configs = [
        (("a", "paper"), {"recipe.lr": 0.1, "model.x": 1, "seed": 0, "output": "here"}),
        (("a", "modern"), {"recipe.lr": 0.2, "model.x": 1, "seed": 1, "output": "there"}),
        (("b", "paper"), {"recipe.lr": 0.1, "model.y": 2, "seed": 0}),
    ]
    assert varying_settings(configs) == []
    configs.append((("a", "paper"), {"recipe.lr": 0.1, "model.x": 3, "seed": 5, "output": "there"}))
    assert varying_settings(configs) == ["model.x"]
