"""runs.csv is read back with its types, and has a column for each setting that varies."""

from attnconv.report.runs_table import read_runs, varying_settings


def test_csv_cells_keep_their_types(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "run,kept_out,format,commit,dirty,fraction,seed\na,,3,1234567e8,False,0.25,1\nb,dirty tree,3,c,True,1,2\n"
    )
    (row,) = read_runs(path)
    known = {
        "run": "a",
        "kept_out": None,
        "format": 3,
        "commit": "1234567e8",
        "dirty": False,
        "fraction": 0.25,
        "seed": 1,
    }
    assert row == known


def test_a_setting_varies_only_if_runs_of_one_model_and_recipe_differ():
    configs = [
        (("a", "paper"), {"recipe.lr": 0.1, "model.x": 1, "seed": 0, "output": "here"}),
        (("a", "modern"), {"recipe.lr": 0.2, "model.x": 1, "seed": 1, "output": "there"}),
        (("b", "paper"), {"recipe.lr": 0.1, "model.y": 2, "seed": 0}),
    ]
    assert varying_settings(configs) == []
    configs.append((("a", "paper"), {"recipe.lr": 0.1, "model.x": 3, "seed": 5, "output": "there"}))
    assert varying_settings(configs) == ["model.x"]
