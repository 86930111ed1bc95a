"""The tables of README: rows from runs, and no mini-scale numbers in the paper's table."""

import re

import pytest

from attnconv.errors import RunFolderError
from attnconv.files import FileError, csv_text, read_csv
from attnconv.report.data_size import read_trials
from attnconv.report.tables import bench_table, fill, paper_table, read_models, read_paper, runs_table
from conftest import REPOSITORY

PAPER = [
    {
        "model": "sa_quadratic", "parameters_published": "12.1M", "parameters": 12_086_844, "flops_published": "6.2B",
        "test_acc": 0.938, "test_acc_source": "r f", "parameters_source": "r c", "flops_source": "r c",
    }
]  # fmt: skip
RUN = {
    "name": "default", "status": "done", "model": "sa_quadratic", "recipe": "paper", "scale": "paper",
    "data": "cifar10", "epochs": 300, "test_acc": 0.9371, "seed": 0, "parameters": 12_086_844, "seconds": 600.0,
    "train_images": 50_000, "train_acc": 0.99, "subset_hash": "y", "equal": "epochs", "holdout": 0.0,
    "device": "GPU", "precision": "fp32", "run": "x", "source": None,
}  # fmt: skip


def test_only_full_runs_at_paper_scale_and_recipe_enter_the_papers_table():
    assert "93.7% (n=1)" in paper_table(PAPER, [RUN])
    for change in (
        {"scale": "mini"},
        {"recipe": "modern"},
        {"epochs": 2},
        {"train_images": 45_000},
        {"data": "arrays"},
        {"name": "many_heads"},
        {"parameters": 18_806_970},
    ):
        assert "not run" in paper_table(PAPER, [RUN | change]), change


def test_the_papers_table_shows_sources_and_external_runs():
    table = paper_table(PAPER, [RUN, RUN | {"seed": 1, "source": "ada"}, RUN | {"source": "ada"}])
    assert "| 12.1M (r c) | 12,086,844 | 6.2B (r c) | 93.8% (r f) | 93.7% (n=2), 1 external |" in table
    assert "r: recalled from the paper, not checked against its text" in table


def test_the_papers_table_does_not_average_across_precisions():
    in_bf16 = RUN | {"precision": "bf16", "test_acc": 0.9, "seed": 1}
    assert "| 90.0% (n=1) in bf16, 93.7% (n=2) in fp32 |" in paper_table(PAPER, [RUN, in_bf16, RUN | {"seed": 2}])
    with pytest.raises(RunFolderError, match=r"recipe\.lr=None and 0\.5: give one of them its own name="):
        paper_table(PAPER, [RUN, RUN | {"seed": 1, "recipe.lr": 0.5}])


def test_runs_table_rows_show_scale_recipe_accuracy_and_hardware():
    row = runs_table([RUN], lambda row: []).splitlines()[2]
    for part in ("paper, paper", "93.71%", "10.0", "GPU, fp32", "12,086,844"):
        assert part in row


def test_runs_table_names_the_settings_of_a_run_that_are_its_own():
    assert "| paper, paper (own lr, sizes) |" in runs_table([RUN], lambda row: ["lr", "sizes"])


def test_runs_table_omits_variants_with_another_name():
    assert len(runs_table([RUN, RUN | {"name": "many_heads"}], lambda row: []).splitlines()) == 3


def test_runs_table_omits_external_runs():
    assert len(runs_table([RUN, RUN | {"source": "ada"}], lambda row: []).splitlines()) == 3


def test_fill_keeps_a_table_that_cannot_be_built():
    text = "<!-- table: x -->\nold\n<!-- end table -->\n"
    assert fill(text, {"x": None}) == text


def test_fill_replaces_only_the_text_between_markers():
    text = "a\n<!-- table: x -->\nold\n<!-- end table -->\nb\n"
    assert fill(text, {"x": "new\n"}) == "a\n<!-- table: x -->\nnew\n<!-- end table -->\nb\n"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table: x -->\nold\n<!-- end tables -->\nprose\n<!-- table: y -->\n<!-- end table -->\n",
        "<!-- table:x -->\nold\n<!-- end table -->\n<!-- table: y -->\n<!-- end table -->\n",
        "<!-- table: x -->\nold\n<!-- table: y -->\n<!-- end table -->\n",
        "<!-- table: x -->\n<!-- end table -->\n",
        2 * "<!-- table: x -->\n<!-- end table -->\n<!-- table: y -->\n<!-- end table -->\n",
    ],
    ids=["end mistyped", "start mistyped", "no end", "absent", "twice"],
)
def test_tables_without_their_marks_are_refused(text):
    with pytest.raises(ValueError, match=r"once for each of x, y, and are (end )?table"):
        fill(text, {"x": "new\n", "y": None})


def bench_line(ratio, **changes):
    side = {"images_per_second": 1068.2, "peak_bytes": 3 * 2**20, "flops_per_second": 2e11}
    line = {
        "part": "step", "model": "sa_quadratic", "scale": "mini", "batch": 128, "positions": [8, 8], "compiled": False,
        "overrides": [], "device": "a CPU", "precision": "bf16", "dirty": False, "published": side, "ours": side,
        "ratio": {"median": ratio, "low": 1.0, "high": 9.0}, "matmul_fp32": {"median": 1e11},
        "matmul_bf16": {"median": 4e11}, "ratio_fp32": {"median": 1.5, "low": 1.0, "high": 2.0},
    }  # fmt: skip
    return line | changes


def test_bench_table_shows_the_last_clean_measurement_of_each_setting():
    growth = {"part": "growth", "dirty": False}
    older = bench_line(7.0)
    del older["ratio_fp32"]  # against an earlier baseline
    lines = [bench_line(2.0), older, bench_line(3.0), bench_line(4.0, dirty=True), bench_line(5.0, batch=64), growth]
    lines.append(bench_line(6.0, precision="fp32"))
    header, _, *rows = bench_table(lines).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[4] for row in cells] == ["3.00 (1.00 to 9.00)", "5.00 (1.00 to 9.00)", "6.00 (1.00 to 9.00)"]
    assert cells[0] == [
        "step, `sa_quadratic`", "mini, 128 images, 8x8", "a CPU, bf16", "1.50 (1.00 to 2.00)", "3.00 (1.00 to 9.00)",
        "1,068", "1,068", "3", "3", "200%", "50%",
    ]  # fmt: skip
    assert len(header.split("|")) == len(rows[0].split("|"))
    emulated = bench_line(2.0)
    del emulated["matmul_bf16"]
    assert bench_table([emulated]).splitlines()[-1].endswith("| 200% | - |")
    slower = bench_line(2.0)["ours"] | {"images_per_second": -1.0}
    with pytest.raises(ValueError, match=r"line 2, ours, has images_per_second -1\.0, which is not a number"):
        bench_table([bench_line(2.0), bench_line(2.0, ours=slower)])


@pytest.mark.parametrize(
    ("file", "read", "column", "cell", "complaint"),
    [
        ("paper.csv", read_paper, "test_acc", "9.38", "row 1 has test_acc 9.38, which is not a share from 0 to 1"),
        ("paper.csv", read_paper, "parameters", "-5", "row 1 has parameters -5, which is not a whole number"),
        ("paper.csv", read_paper, "model", "", "row 1 has an empty model"),
        ("models.csv", read_models, "parameters", "-1", "row 1 has parameters -1, which is not a whole number"),
        ("models.csv", read_models, "growth_theory", "nan", "row 1 has growth_theory nan, which is not a number"),
        ("models.csv", read_models, "growth_measured", "1 nan", "has growth_measured nan, which is not a finite"),
        ("models.csv", read_models, "shift_error", "inf", "row 1 has shift_error inf, which is not a number"),
        ("models.csv", read_models, "scale", "mini", "two rows have the same model, scale"),
        ("mini_recipe_trials.csv", read_trials, "val_acc", "5.6", "row 1 has val_acc 5.6, which is not a share"),
        ("mini_recipe_trials.csv", read_trials, "epoch", "one", "row 1 has epoch 'one', which is not a whole number"),
        ("mini_recipe_trials.csv", read_trials, "trial", "", "row 1 has an empty trial"),
    ],
)
def test_impossible_cells_of_published_tables_are_an_error(tmp_path, file, read, column, cell, complaint):
    rows = read_csv(REPOSITORY / "results" / file)
    assert len(read(REPOSITORY / "results" / file)) == len(rows)
    rows[0][column] = cell
    (tmp_path / file).write_text(csv_text(rows[0], rows))
    with pytest.raises(FileError, match=re.escape(complaint)):
        read(tmp_path / file)
