"""Scripts that write several files first check that all of them can be written."""

import shutil

import pytest

from attnconv.errors import UserError
from attnconv.files import require_targets
from attnconv.report.figures.gallery import make_figures
from conftest import REPOSITORY, script


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("blocked", "name", "arguments"),
    [
        ("runs.csv", "collect", (REPOSITORY / "results/runs/default", "--results")),
        ("long_range.md", "long_range", (REPOSITORY / "results/runs", "--results")),
        ("models.md", "model_table", ("--only", "conv3x3", "--results")),
        ("figures/growth.pdf", "make_figures", ("--only", "figure_01_theorem", "growth", "--results")),
        ("figures", "make_figures", ("--only", "figure_01_theorem", "--results")),
    ],
)
def test_nothing_is_written_if_one_file_cannot_be_written(monkeypatch, capsys, results, blocked, name, arguments):
    for copied in ("models.csv", "README.md"):
        shutil.copy(REPOSITORY / "results" / copied, results)
    (results / "runs").mkdir()
    if blocked == "figures":
        (results / "figures").write_text("")
    else:
        (results / blocked).mkdir(parents=True)
    before = files(results)
    code, _, err = script(monkeypatch, capsys, name, *arguments, results)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert f"{results}/{blocked}" in err
    assert files(results) == before


def test_figures_are_not_drawn_into_an_unrelated_folder(results):
    (results / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"is not a results folder: it has no runs.csv, but thesis.tex"):
        make_figures(results, ["figure_01_theorem"])
    assert [path.name for path in results.iterdir()] == ["thesis.tex"]


def test_a_target_below_a_file_is_refused(results):
    (results / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        require_targets(results / "fine", results / "file/below/it")
