"""`make verify` and make_tables.py: published numbers match the files, and damage affects only what depends on it."""

import runpy
import shutil
import sys

import pytest

from attnconv.files import FileError, read_csv
from attnconv.report.pages import MANIFEST, Pages, manifest
from attnconv.report.verify import CHECKS, check_costs, check_manifest, check_pages, check_runs, rounds_to
from conftest import REPOSITORY

RUN = "runs/default/conv3x3/mini-modern/frac1/seed0"
CONVERTED = "runs/data_size_epochs_20/conv3x3/mini-modern/frac0.1/seed0"
PROBED = "runs/table1_fp32/sa_quadratic/mini-modern/frac1/seed0"


@pytest.fixture
def copy(tmp_path):
    """A copy of README.md, results/ and docs/ that a test may damage."""
    shutil.copytree(REPOSITORY / "results", tmp_path / "results", ignore=shutil.ignore_patterns("weights"))
    shutil.copy(REPOSITORY / "README.md", tmp_path / "README.md")
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    (tmp_path / "results" / MANIFEST).write_text(manifest(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs a script and returns its exit code, stdout and the lines of stderr."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / f"scripts/{script}.py"), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


@pytest.mark.slow
def test_published_numbers_match_the_files():
    assert {name: found for name, check in CHECKS.items() if (found := list(check(REPOSITORY)))} == {}


@pytest.mark.parametrize("file", ["predictions.npy", "heads.jsonl"])
def test_a_truncated_file_of_a_run_is_named(copy, file):
    path = copy / "results/runs/cpu10/sa_quadratic/mini-speedrun/frac1/seed0" / file
    path.write_bytes(path.read_bytes()[:500])
    found = next(check_runs(copy))
    assert found.startswith(f"results/runs/cpu10/sa_quadratic/mini-speedrun/frac1/seed0 is damaged: {file}")


def test_a_file_that_was_being_written_is_not_listed(copy):
    (copy / "results/runs.csv.partial").touch()
    assert list(check_manifest(copy)) == []


@pytest.mark.parametrize(
    ("file", "text", "replacement", "page"),
    [
        ("bench.jsonl", None, "", "docs/speed.md"),
        ("cpu10.jsonl", None, "", "results/cpu10.md"),
        ("cpu10.jsonl", '"test_acc": 0', '"test_acc": -', "results/cpu10.md"),
        ("theorem/sweep.json", '"model": "botnet', '"name": "botnet', "results/theorem.md"),
        ("theorem/sweep.json", '"predictions_changed": 0', '"predictions_changed": null', "results/theorem.md"),
        ("theorem/calibration.json", '"attention":', '"kind":', "results/theorem.md"),
        (
            f"{CONVERTED}/conversion.json",
            '"convolution_flops": 57017600',
            '"convolution_flops": 0',
            "results/theorem.md",
        ),
        (f"{PROBED}/probe.json", '"distance": 1.4707', '"distance": NaN, "far": 1.4707', "results/theorem.md"),
    ],
)
def test_an_error_names_the_file_and_leaves_its_page(copy, command, file, text, replacement, page):
    path, before = copy / "results" / file, (copy / page).read_text()
    found = path.read_text()
    assert text is None or text in found
    path.write_text(replacement if text is None else found.replace(text, replacement))
    code, _, errors = command("make_tables", "--repository", copy)
    assert code == 2
    assert any(str(path) in error for error in errors)
    assert not any("runs.csv" in error for error in errors)
    assert (copy / page).read_text() == before


def test_every_changed_file_is_named(copy):
    results = copy / "results"
    (results / "bench.jsonl").unlink()
    (results / "stranger.txt").write_text("x")
    (results / "paper.csv").write_text((results / "paper.csv").read_text().replace("0.938", "0.939"))
    assert list(check_manifest(copy)) == [
        "results/bench.jsonl is missing",
        "results/paper.csv was changed",
        "results/stranger.txt is not listed",
    ]
    found = list(check_pages(copy))
    assert found[0] == f"{results}/bench.jsonl cannot be read: No such file or directory"
    assert found[1:] == ["README.md is stale; run python scripts/make_tables.py"]


def test_a_stale_manifest_is_found_and_made_anew(copy, command):
    (copy / "results" / MANIFEST).write_text("")
    assert "results/bench.jsonl is not listed" in check_manifest(copy)
    assert command("make_tables", "--repository", copy)[0] == 0
    assert not list(check_manifest(copy))


def test_a_damaged_run_is_named_and_other_checks_still_run(copy, command, monkeypatch):
    for name in ("figures", "parameters and FLOPs"):  # they take seconds, and are tested above
        monkeypatch.setitem(CHECKS, name, lambda repository: iter(()))
    (copy / "results" / RUN / "result.json").write_text("{")
    damaged, stale = check_runs(copy)
    assert damaged.startswith(f"results/{RUN} is damaged: result.json has unexpected content")
    assert stale.startswith("results/runs.csv does not match the run folders")
    (copy / "docs/index.html").unlink()
    code, out, _ = command("verify", "--repository", copy)
    assert code == 1
    assert "        docs/index.html is missing; run make page\n" in out
    assert "FAILED  results/runs.csv\n" in out
    assert "ok      pages and README\n" in out
    assert "ok      parameters and FLOPs\n" in out
    shutil.rmtree(copy / "results" / RUN)
    _, gone = check_runs(copy)
    assert gone == f"results/runs.csv lists {RUN.removeprefix('runs/')}, but its folder does not exist"


def test_a_damaged_cell_of_the_papers_table_is_named(copy):
    path = copy / "results/paper.csv"
    path.write_text(path.read_text().replace("11173962", "many"))
    with pytest.raises(FileError, match=r"paper\.csv .*\(row 1 has parameters 'many', which is not a whole number"):
        list(check_costs(copy))


def test_missing_results_are_one_error_line_each_and_other_tables_are_built(copy, command):
    results = copy / "results"
    (results / "models.csv").unlink()
    (results / "claims.md").unlink()
    code, _, errors = command("make_tables", "--repository", copy)
    assert code == 2
    assert errors == [f"error: {results}/models.csv cannot be read: No such file or directory"]
    assert "| [C1](#c1) |" in (results / "claims.md").read_text(), "the claim that needs it stays undecided"
    shutil.rmtree(results)
    results.mkdir()
    code, _, errors = command("make_tables", "--repository", copy)
    assert code == 2
    assert len(errors) == len(set(errors)) > 3
    assert all(line.startswith(f"error: {results}/") for line in errors)
    assert (copy / "README.md").read_text() == (REPOSITORY / "README.md").read_text(), "tables stay as they were"


def test_runs_of_a_newer_version_are_one_error(copy):
    path = copy / "results/runs.csv"
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, first.rpartition(",")[0] + ",99", *rest]) + "\n")
    pages = Pages(copy)
    assert {"results/models.md", "results/long_range.md"} <= pages.made().keys()
    (error,) = pages.errors
    assert "of format 99, of a newer version" in error


def test_counts_are_compared_at_the_published_precision():
    assert rounds_to(6_175_956_800, "6.2B")
    assert rounds_to(15_023_316_800, "15B")
    assert not rounds_to(6_175_956_800, "6.1B")


def test_alpha_46_reduces_the_error_to_float32_rounding(tmp_path, command):
    assert command("alpha_error", "--results", tmp_path)[0] == 0
    found = {float(row["alpha"]): float(row["error"]) for row in read_csv(tmp_path / "alpha_error.csv")}
    assert found[46] < 1e-6 < 1e-3 < found[4]
    published = {float(row["alpha"]) for row in read_csv(REPOSITORY / "results/alpha_error.csv")}
    assert published == found.keys()
