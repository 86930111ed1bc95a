"""results/theorem.md shows conversion.json and probe.json, if they were made without uncommitted changes."""

import json
import shutil

import pytest

from attnconv.analysis.exchange import exchange
from attnconv.analysis.probe import compact, probe
from attnconv.report.collect import gather
from attnconv.report.examined import NUMBERS, layer_rows
from attnconv.report.runs_table import read_runs, tabulate
from attnconv.report.theorem_page import likeness_summary, likeness_table, theorem_page
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import load
from conftest import tiny_below, write_arrays


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A results/ with a converted and a probed run, marked as made from a clean tree."""
    place = tmp_path_factory.mktemp("made")
    write_arrays(place / "arrays")
    for overrides, file in (
        (["model=conv3x3"], "conversion.json"),
        (["model=sa_quadratic", "scale.patch=2"], "probe.json"),
    ):
        config = tiny_below(place, "name=page", *overrides)
        run(config)
        folder = run_folder_path(config)
        trained = load(folder)
        found = exchange(trained.model, trained.data.test) if file[0] == "c" else probe(trained, 8, 20)
        about = {"dirty": False, "images": 8, "fit_images": 20}
        (folder / file).write_text(compact(about | found))
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"dirty": False, "commit": "0" * 40}))
    gather(place / "outputs", place / "results")
    assert tabulate(place / "results") == {}
    return place / "results"


@pytest.fixture
def examined(made, tmp_path):
    """A copy of this results/ that a test may change, and the rows of its runs.csv."""
    results = shutil.copytree(made, tmp_path / "results")
    return results, read_runs(results / "runs.csv")


def test_the_page_shows_conversion_and_probe_results(examined):
    results, runs = examined
    page = theorem_page(results, runs)
    (conversion,) = [line for line in page.splitlines() if line.startswith("| [`conv3x3`]")]
    cells = [cell.strip() for cell in conversion.split("|")][1:-1]
    found = json.loads(next((results / "runs").glob("**/conversion.json")).read_text())
    assert cells[:4] == ["[`conv3x3`](runs/page/conv3x3/mini-modern/frac1/seed0)", "40 images, 2 epochs", "2", "18"]
    assert cells[5] == f"{found['largest_logit']:.1f}"
    assert cells[6] == f"{found['logits_range']:.1f}"
    assert cells[7:9] == ["0 of 20", f"{found['convolution_acc']:.2%}"], "one accuracy for both"
    assert cells[9] == f"{found['attention_parameters'] / found['convolution_parameters']:.3g} x"

    probed = json.loads(next((results / "runs").glob("**/probe.json")).read_text())
    assert likeness_summary([(row, probed) for row in runs if row["model"] == "sa_quadratic"]) in page
    assert likeness_table(probed) in page
    assert "### sa_quadratic\n" in page
    assert "8 images, convolutions fitted to 10 (up to " in page


def test_layer_rows_average_heads_before_and_after_training(examined):
    results, _ = examined
    probed = json.loads(next((results / "runs").glob("**/probe.json")).read_text())
    layers = layer_rows(probed)
    assert len(layers) == 2
    assert all(list(layer) == list(NUMBERS) for layer in layers)
    heads = [head["entropy"] for head in probed["heads"] if (head["layer"], head["weights"]) == (2, "trained")]
    assert len(heads) == 3
    assert layers[1]["entropy"][1] == pytest.approx(sum(heads) / 3)
    initial = next(row for row in probed["layers"] if (row["layer"], row["weights"]) == (1, "initial"))
    assert layers[0]["conv3"][0] == initial["conv3"]
    assert f"{layers[0]['conv3'][0]:.2f} → {layers[0]['conv3'][1]:.2f}" in likeness_table(probed)


def test_results_from_a_dirty_tree_are_left_out(examined):
    results, runs = examined
    for path in (results / "runs").glob("**/*.json"):
        if path.name in ("probe.json", "conversion.json"):
            path.write_text(compact(json.loads(path.read_text()) | {"dirty": True}))
    page = theorem_page(results, runs)
    assert "page/" not in page


def test_replacing_a_run_deletes_its_probe_results(tiny, tmp_path):
    results = tmp_path / "results"
    config = tiny("model=sa_quadratic")
    run(config)
    folder = run_folder_path(config)
    gather(tmp_path / "outputs", results)
    (folder / "probe.json").write_text('{"dirty": false}')
    assert len(gather(tmp_path / "outputs", results).added) == 1, "examined later"
    kept = next((results / "runs").glob("**/probe.json"))
    (folder / "probe.json").write_text('{"dirty": true}')
    assert len(gather(tmp_path / "outputs", results).known) == 1, "the clean one stays"
    assert json.loads(kept.read_text()) == {"dirty": False}
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"test_acc": 0.5}))
    (folder / "probe.json").unlink()
    assert len(gather(tmp_path / "outputs", results).other) == 1
    assert kept.exists()
    gather(tmp_path / "outputs", results, replace=True)
    assert not kept.exists()


def test_compact_json_round_trips_with_one_line_per_row():
    record = {"a": 1, "rows": [{"x": 0.1}, {"x": None}], "none": [], "name": "é"}
    text = compact(record)
    assert json.loads(text) == record
    assert text.count("\n") == 2 + 4 + 3
