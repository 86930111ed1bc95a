"""results/figures/: reproducible figures, stale if their data changes, and a command for each missing figure."""

import json
import re
import runpy
import shutil
import subprocess

import numpy as np
import pytest

from attnconv.report.figures import gallery
from attnconv.report.figures.catalog import entries
from attnconv.report.figures.data import Maps, Weights, digest
from attnconv.report.figures.gallery import make_figures, resolve, stale_figures
from attnconv.report.figures.results import Results
from conftest import PYTHON, REPOSITORY

pytestmark = pytest.mark.slow

SOME = ["convolution_share"]


@pytest.fixture
def results(tmp_path):
    """The tables and runs of results/, without its figures."""
    copied = tmp_path / "results"
    copied.mkdir()
    for name in ("runs.csv", "models.csv", "long_range.csv"):
        shutil.copy(REPOSITORY / "results" / name, copied)
    (copied / "runs").symlink_to(REPOSITORY / "results" / "runs")
    return copied


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["make_figures.py", *map(str, arguments)])
    try:
        runpy.run_path(str(REPOSITORY / "scripts/make_figures.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code, capsys.readouterr()
    return 0, capsys.readouterr()


def test_figures_need_only_results_and_are_reproducible_byte_for_byte(results, monkeypatch, capsys):
    code, printed = command(monkeypatch, capsys, "--results", results, "--only", *SOME)
    assert code == 0, printed.err
    folder = results / "figures"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in SOME for kind in ("png", "pdf")} | {"index.json", "README.md"}
    assert make_figures(results, SOME, said=lambda line: None).drawn == SOME
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    page = files["README.md"].decode()
    assert all(f"![{name}]({name}.png)" in page for name in SOME)
    assert "- figure_05_learned_maps_paper: `python train.py model=sa_learned" in page


def test_a_figure_is_stale_when_its_data_or_its_files_change(results, monkeypatch):
    some = [entry for entry in entries() if entry.name in ("figure_01_theorem", "growth", "overview", "long_range")]
    monkeypatch.setattr(gallery, "entries", lambda: some)
    make_figures(results, ["figure_01_theorem", "growth"], said=lambda line: None)

    def stale(*expected):
        found = set(stale_figures(results, []))
        undrawn = {name for name in found if not (results / f"figures/{name}.png").exists()} - {"README.md"}
        assert {"overview", "long_range"} <= undrawn, "what could be drawn and is not"
        assert found - undrawn == set(expected)

    stale()
    table = (results / "models.csv").read_text()
    (results / "models.csv").write_text(re.sub(r",[\d. ]+\n", ",0.5\n", table))  # the measured exponents
    stale("growth")
    (results / "models.csv").write_text(table)
    stale()
    (results / "figures/figure_01_theorem.png").write_bytes(b"drawn by hand")
    stale("figure_01_theorem")
    (results / "figures/README.md").write_text("")
    stale("figure_01_theorem", "README.md")


def test_finding_stale_figures_does_not_import_matplotlib(results):
    program = (
        "import sys, pathlib; from attnconv.report.figures.gallery import stale_figures;"
        f"stale_figures(pathlib.Path({str(results)!r}), []); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([PYTHON, "-c", program]).returncode == 0


def test_every_figure_has_a_caption_a_command_and_a_draw_function():
    listed = entries()
    assert len({entry.name for entry in listed}) == len(listed)
    for entry in listed:
        assert entry.caption.endswith(".")
        assert entry.command
        assert callable(resolve(entry.draw))


def test_a_figure_without_runs_prints_its_command_and_does_not_stop_others(results, monkeypatch, capsys):
    code, printed = command(
        monkeypatch, capsys, "--results", results, "--only", "figure_14_sixteen_heads_paper", "figure_01_theorem"
    )
    assert code == 0
    assert "figure_14_sixteen_heads_paper" in printed.out
    assert "python train.py experiment=many_heads" in printed.out
    assert (results / "figures/figure_01_theorem.pdf").exists()
    assert set(json.loads((results / "figures/index.json").read_text())) == {"figure_01_theorem"}


def test_invalid_arguments_and_damaged_tables_are_one_line_errors(results, monkeypatch, capsys, tmp_path):
    for arguments, said in (
        (["--only", "overveiw"], "unknown figure overveiw; did you mean 'overview'?"),
        (["--results", tmp_path / "none"], "no such folder"),
        (["--run", "outputs", "--list"], "leave out --only and --list"),
        (["--out", "there"], "--out, --data and --trust need --run"),
        (["--run", tmp_path / "nothing"], "nothing does not exist"),
        (["--run", results], "is not a run folder"),
    ):
        first = [] if {"--results", "--run"} & {*arguments} else ["--results", results]
        code, printed = command(monkeypatch, capsys, *first, *arguments)
        assert code == 2, arguments
        assert said in printed.err
        assert len(printed.err.splitlines()) == 1
    (results / "models.csv").write_text("model,scale\nconv3x3,paper\n")
    code, printed = command(monkeypatch, capsys, "--results", results, "--only", "growth", "figure_01_theorem")
    assert code == 2
    assert printed.err.startswith(f"error: {results}/models.csv lacks")
    assert len(printed.err.splitlines()) == 1
    assert (results / "figures/figure_01_theorem.png").exists(), "damage stops only the figures that need it"
    errors: list[str] = []
    assert "growth" not in stale_figures(results, errors)
    assert errors == [printed.err.removeprefix("error: ").rstrip()]


def test_every_figure_with_data_in_results_can_be_drawn():
    results = Results(REPOSITORY / "results")
    drawn = [(entry, data) for entry in entries() if (data := entry.load(results)) not in (None, ())]
    assert {"overview", "accuracy_by_images", "long_range"} <= {entry.name for entry, _ in drawn}
    for entry, data in drawn:
        if not isinstance(data, Weights):  # its images may be missing here
            assert resolve(entry.draw)(data).axes


def test_equal_data_has_equal_digests():
    maps = Maps("a run", np.zeros((1, 2, 3, 3), np.float16))
    assert digest(maps) == digest(Maps("a run", maps.probs.copy()))
    assert digest(maps) != digest(Maps("a run", maps.probs + 1))
    assert digest(maps) != digest(Maps("another", maps.probs))
