"""Making the page: its contents, and one-line errors with exit code 2."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from page_runs import make_page, own_page, run_folders, write_run
from safetensors.torch import save_file

from attnconv.config import compose
from attnconv.files import FileError
from attnconv.report.page.assemble import bundle
from attnconv.report.page.contents import tell_apart
from attnconv.report.page.images import packed, read_images, save_images
from attnconv.report.page.runs import Shown, describe
from conftest import REPOSITORY, TINY_SCALE, write_arrays

pytestmark = pytest.mark.slow

PAGE, RESULTS = REPOSITORY / "docs" / "index.html", REPOSITORY / "results"


def data_of(page: Path) -> dict:
    """Return the data embedded in a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def test_damaged_runs_are_named_and_left_out_of_the_page(tmp_path, capsys):
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("figures"))
    gone, cut, newer = (
        tmp_path / "results/runs" / f"data_size_epochs_20/{model}/mini-modern/frac0.25/seed0"
        for model in ("sa_learned", "sa_quadratic", "conv3x3")
    )
    shutil.rmtree(gone)
    (cut / "probe.json").write_text("{")
    result = json.loads((newer / "result.json").read_text())
    (newer / "result.json").write_text(json.dumps(result | {"format": 99}))
    (tmp_path / "results/theorem/calibration.json").write_text("{}")
    page = tmp_path / "page.html"
    assert make_page("--results", tmp_path / "results", "--out", page) == 2
    errors = capsys.readouterr().err.splitlines()
    wrong = (newer, gone, cut, tmp_path / "results/theorem/calibration.json")
    assert [line.removeprefix("error: ").startswith(str(path)) for line, path in zip(errors, wrong, strict=True)] == [
        True
    ] * 4
    runs = {point["run"] for point in data_of(page)["points"]}
    assert {str(folder.relative_to(tmp_path / "results/runs")) in runs for folder in (gone, newer)} == {False}
    assert len(runs) == len({point["run"] for point in data_of(PAGE)["points"]}) - 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda images: {"labels": np.roll(images.labels, 1)}, "give an image two classes: restore them"),
        (lambda images: {"places": images.places + 9_990}, "give an image two classes: restore them"),
        (lambda images: {"data_hash": "0"}, "so the page shows none"),
    ],
)
def test_images_that_contradict_the_results_are_named(tmp_path, capsys, change, complaint):
    results = tmp_path / "results"
    results.mkdir()
    for file in ("runs.csv", "test_labels.npy", "claims.yaml"):
        shutil.copy(RESULTS / file, results)
    images = read_images(RESULTS / "test_images.npz")
    save_images(replace(images, **change(images)), results / "test_images.npz")
    assert make_page("--results", results, "--out", tmp_path / "page.html") == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("config.yaml", "patch: 2", "patch: 0", "config.yaml has unexpected content (integer"),
        ("config.yaml", "patch: 2", "patch: two", "config.yaml has unexpected content (unsupported operand"),
        ("config.yaml", "_target_: attnconv", "_target_: 3 #", "config.yaml has unexpected content ('int' object"),
        ("heads.jsonl", '"centers": [[', '"centers": [[[0], ', "heads.jsonl has unexpected content"),
        ("heads.jsonl", '"centers": ', '"centers": 1, "old": ', "heads.jsonl has unexpected content ('int' object"),
    ],
)
def test_edited_files_of_a_run_are_one_line_errors(tmp_path, file, old, new, complaint):
    folder = shutil.copytree(run_folders()["quadratic"], tmp_path / "run")
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(FileError, match=re.escape(complaint)):
        describe(Shown(folder, None, live=False, link="."), (3, 8, 8))


def test_maps_of_another_shape_are_a_one_line_error(tmp_path):
    folder = shutil.copytree(run_folders()["quadratic"], tmp_path / "run")
    np.save(folder / "attention_maps.npy", np.zeros((2, 3), np.float16))
    with pytest.raises(FileError, match=r"the shape \(2, 3\) is not \(layers, heads, height, width\)"):
        describe(Shown(folder, None, live=False, link="."), (3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_of_any_precision_are_packed(tmp_path, dtype):
    save_file({"encoding.frequencies": torch.arange(4, dtype=dtype)}, tmp_path / "weights.safetensors")
    shown = Shown(run_folders()["quadratic"], tmp_path / "weights.safetensors", live=True, link=".")
    assert describe(shown, (3, 8, 8))["tensors"]["encoding.frequencies"] == packed(np.arange(4, dtype=np.float32))


def test_each_run_shows_its_settings_and_the_command_to_reproduce_it():
    runs = data_of(own_page())["runs"]
    assert len(runs) == len(run_folders())
    by_name = {run["run"].partition("/")[0]: run for run in runs}
    radial = by_name["radial"]["command"].split()
    assert radial[:3] == ["python", "train.py", "model=sa_distance"]
    assert {"model.mixer.encoding.kind=radial", "epochs=2", "name=radial", "scale.heads=3"} < set(radial)
    assert by_name["resnet"]["mixer"] is None
    assert by_name["16_heads"]["heads"] == 16
    page = own_page()
    assert all((page.parent / run["link"] / "result.json").exists() for run in runs)


def test_classes_have_the_names_that_predictions_have(tmp_path):
    small = ["scale.patch=8", "data.train_images=20", "data.test_images=20", f"output={tmp_path}", "epochs=1"]
    run = write_run(compose([*TINY_SCALE, *small, "data=pairs", "model=sa_quadratic", "logger=none"]))
    assert make_page(run, "--out", tmp_path / "page.html") == 0
    (images,) = data_of(tmp_path / "page.html")["images"].values()
    assert images["class_names"] == ["different", "same"]


def test_the_bundled_script_has_no_imports_exports_or_closing_script_tag():
    script = bundle("main.js")
    assert "</script" not in script
    assert not re.search(r"^(import|export)\b", script, flags=re.MULTILINE)


@pytest.mark.parametrize("case", ["missing", "file", "empty", "unfinished", "other data", "no data", "no folder"])
def test_invalid_arguments_are_one_line_errors(case, tmp_path, capsys):
    run = run_folders()["quadratic"]
    write_arrays(tmp_path / "other", seed=1)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    killed = shutil.copytree(run, tmp_path / "killed")
    (killed / "result.json").unlink()
    arguments, says = {
        "missing": ([tmp_path / "nowhere"], "does not exist"),
        "file": ([tmp_path / "file"], "is a file, not a run folder"),
        "empty": ([tmp_path / "empty"], "is not a run folder"),
        "unfinished": ([killed], "is unfinished (killed before it ended): a page needs a finished run"),
        "other data": ([run, "--data", tmp_path / "other"], "was trained on other data"),
        "no data": ([run, "--data", tmp_path / "nowhere"], f"the folder {tmp_path}/nowhere does not exist"),
        "no folder": ([run, "--out", tmp_path / "nowhere" / "page.html"], "cannot be written"),
    }[case]
    out = [] if "--out" in arguments else ["--out", tmp_path / "page.html"]
    assert make_page(*arguments, *out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "page.html").exists()


def test_runs_of_one_name_are_told_apart_by_their_folders():
    runs = [{"run": "a/b", "link": "x/a/b"}, {"run": "a/b", "link": "y/a/b"}, {"run": "c", "link": "x/c"}]
    probes = [{"run": "a/b", "link": "y/a/b"}, {"run": "c", "link": "x/c"}]
    tell_apart(runs, probes)
    assert [run["run"] for run in runs] == ["a/b in x", "a/b in y", "c"]
    assert [probe["run"] for probe in probes] == ["a/b in y", "c"]
