"""Figures about the whole study agree with the pages of results/."""

import json
import re
import shutil
from statistics import fmean

import pytest

from attnconv.files import FileError, read_csv
from attnconv.report.evidence import Arm, Evidence
from attnconv.report.examined import PROBE, read_examined
from attnconv.report.figures import claims, layers
from attnconv.report.figures.accuracies import draw_protocol
from attnconv.report.figures.data import ByImages, Share, Shares
from attnconv.report.figures.report_data import convolution_shares, levels, needs, verdicts
from attnconv.report.figures.results import Results, grid_of
from attnconv.report.figures.study_data import accuracy_by_cpu_minutes
from attnconv.report.figures.style import new_figure
from attnconv.report.stats import shown_interval
from conftest import REPOSITORY

RESULTS = Results(REPOSITORY / "results")


def test_claims_at_a_glance_match_the_page():
    page = (REPOSITORY / "results/claims.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(#\w+\) \| ([^|]+) \| [^|]+ \| \*\*([a-z ]+)\*\*", page, flags=re.MULTILINE)
    assert [(row.name, row.claim, row.status) for row in verdicts(RESULTS).rows] == rows


def test_claims_at_a_glance_do_not_reach_the_marks():
    figure = claims.verdicts(verdicts(RESULTS))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    marks = min(mark.get_xdata()[0] for mark in axis.lines)
    for text in axis.texts:
        if text.get_ha() == "left":
            end = text.get_window_extent().transformed(axis.transData.inverted()).x1
            assert end < marks - 1, text.get_text()


def test_the_chart_of_minutes_shows_runs_on_one_number_of_images(monkeypatch):
    found = {
        (images, model): {"train_images": images, "model": model, "precision": "fp32", "device": "a CPU", "seed": 0}
        for images in (5_000, 50_000) for model in ("conv3x3", "sa_quadratic")
    }  # fmt: skip
    lines = [{"epoch": 1, "test/acc": 0.5, "train_cpu_seconds": 60.0, "eval_cpu_seconds": 6.0}]
    monkeypatch.setattr(Results, "of_study", lambda self, study, **wanted: list(found.values()))
    monkeypatch.setattr(Results, "epochs", lambda self, run: lines)
    drawn = accuracy_by_cpu_minutes(Results(REPOSITORY))
    assert "50,000 images" in drawn.title
    assert len(drawn.curves) == 2


def test_the_map_of_an_unfinished_run_comes_from_its_images(tmp_path):
    config = {"model": {"patch": 2}}
    assert grid_of(tmp_path, config) == (16, 16), "of CIFAR-10"
    (tmp_path / "preprocessing.json").write_text(json.dumps({"image_shape": [1, 8, 12]}))
    assert grid_of(tmp_path, config) == (4, 6)


def test_images_needed_match_the_page():
    page = (REPOSITORY / "results/data_size.md").read_text()
    for protocol in needs(RESULTS):
        for need in protocol.needs:
            low, high = need.ends
            assert f"{need.ratio:.2f} x [{low:.2f}, {high:.2f}], n=" in page, need


def test_corrected_probes_are_preferred_and_levels_come_from_the_calibration():
    found = convolution_shares(RESULTS)
    by_model = {share.model: share for share in found.networks}
    assert by_model["sa_quadratic"].corrected, "one of two probed runs is"
    assert not by_model["sa_sinusoidal"].corrected
    assert [level.label for level in found.levels] == ["nine hard heads", "uniform attention", "random attention"]
    assert found.levels[0].low > found.levels[1].high > found.levels[2].high


def test_probes_with_uncommitted_changes_are_left_out(tmp_path):
    shutil.copy(REPOSITORY / "results/runs.csv", tmp_path)
    results = Results(tmp_path)
    run, probe = read_examined(RESULTS.path, RESULTS.runs, PROBE)[0]
    path = results.folder(run) / PROBE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(probe))
    assert [share.model for share in convolution_shares(results).networks] == [run["model"]]
    path.write_text(json.dumps(probe | {"dirty": True}))
    assert convolution_shares(results) is None


def test_missing_data_gives_no_figure_and_damaged_data_an_error(tmp_path):
    empty = Results(tmp_path)
    assert verdicts(empty) is None
    assert levels(empty) == []
    (tmp_path / "theorem").mkdir()
    (tmp_path / "theorem/calibration.json").write_text('{"rows": [{"attention": "even"}]}')
    with pytest.raises(FileError, match=r"calibration\.json lacks '\w+'"):
        levels(empty)


def test_the_first_table_of_readme_matches_the_data():
    table = re.search(r"\| test accuracy after 20 epochs .*?\n\n", (REPOSITORY / "README.md").read_text(), re.DOTALL)[0]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:-1]]
    evidence = Evidence(RESULTS.path, RESULTS.runs)
    for column, (name, fraction) in enumerate((("table1", 1.0), ("data_size_epochs_20", 0.25))):
        models = ("conv3x3", "sa_quadratic", "sa_learned", "sa_learned_content", "resnet10")
        control, *others = (Arm((name,), model, fraction=fraction) for model in models)
        for row, other in zip(rows[1:], others, strict=True):
            contrast = evidence.contrast(other, control)
            wanted, seeds = ("not run", "") if contrast is None else str(contrast.gap).split(", n=")
            assert row[column] == wanted + {"1": " (one seed)", "2": " (two seeds)"}.get(seeds, "")
            if contrast is not None:
                accuracies = [run["test_acc"] for run in evidence.runs(control, contrast.precision).values()]
                assert rows[0][column] == f"{sum(accuracies) / len(accuracies):.1%}"
                count = ["", "one seed", "two seeds", "three seeds"][len(accuracies)]
                assert f"({'float32' if contrast.precision == 'fp32' else 'bf16'}, {count})" in table


def test_readme_numbers_match_the_data():
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    probes = Evidence(RESULTS.path, RESULTS.runs).probes(Arm(("table1",), "sa_quadratic"))
    assert f"(all images, {['', 'one seed', 'two seeds', 'three seeds'][len(probes)]}), but it also falls" in readme
    residuals = []
    for weights in ("initial", "trained"):
        layers = [layer for _, probe in probes for layer in probe["layers"] if layer["weights"] == weights]
        shares = [layer["conv3"] for layer in layers]
        assert f"{min(shares):.0%} to {max(shares):.0%}" in readme
        residuals.append(fmean(layer["joint_residual"] for layer in layers))
    assert "cannot compute grows from {:.0%} to {:.0%} (three seeds)".format(*residuals) in readme
    assert "cannot compute {:.0%} of a random 3 x 3 kernel before training, and [{:.0%} after]".format(
        *residuals
    ) in readme.replace("\n", " ")
    learned = [probe for _, probe in Evidence(RESULTS.path, RESULTS.runs).probes(Arm(("table1",), "sa_learned"))]
    of_learned = [
        fmean(layer["joint_residual"] for probe in learned for layer in probe["layers"] if layer["weights"] == weights)
        for weights in ("initial", "trained")
    ]
    count = ["", "one seed", "two seeds", "three seeds"][len(learned)]
    text = f"(`sa_learned`), it falls from {{:.0%}} to {{:.0%}} ({count})"
    assert text.format(*of_learned) in " ".join(readme.split())
    assert "of `sa_learned` cannot compute {:.0%} before and [{:.0%} after]".format(*of_learned) in readme
    largest = [
        fmean(head["one_pixel"] for probe in learned for head in probe["heads"] if head["weights"] == weights)
        for weights in ("initial", "trained")
    ]
    assert "`sa_learned` head goes [from {:.2f} to {:.2f}]".format(*largest) in readme
    assert f"(all images, {count}), and that of an" in readme
    (random,) = [probe for row, probe in read_examined(RESULTS.path, RESULTS.runs, PROBE)
                 if row["model"] == "sa_quadratic_random"]  # fmt: skip
    falls = [fmean(layer["conv3"] for layer in random["layers"] if layer["weights"] == weights)
             for weights in ("initial", "trained")]  # fmt: skip
    assert "frozen at random, [from {:.0%} to {:.0%}]".format(*falls) in readme
    needed = {model: [need.ratio for need in needs(RESULTS)[0].needs if need.model == model]
              for model in ("sa_quadratic", "sa_learned_content")}  # fmt: skip
    for model, times in (("sa_quadratic", "times as many images"), ("sa_learned_content", "times")):
        assert f"{min(needed[model]):.1f} to {max(needed[model]):.1f} {times}" in readme
        ends = [end for need in needs(RESULTS)[0].needs if need.model == model and need.ends for end in need.ends]
        assert f"between {min(ends):.2f} and {max(ends):.2f})" in readme
    mini = [row for row in read_csv(RESULTS.path / "models.csv") if row["scale"] == "mini"]
    (converted,) = re.findall(r"0 predictions of ([\d,]+) changed, logits[^|]*?; timm networks", readme)
    assert f"[0 of {converted} predictions change]" in readme
    weights = {row["model"]: int(row["parameters"]) for row in mini}
    for model, text in (("fully_connected", "100.9M"), ("locally_connected", "14.4M"), ("sa_quadratic", "450,540")):
        assert text in (f"{weights[model] / 1e6:.1f}M", f"{weights[model]:,}")
        assert text in readme


def test_accuracies_are_drawn_as_means_within_their_intervals():
    seeds = {10: {0: 0.1, 1: 0.2, 2: 0.6}, 20: {0: 0.4, 1: 0.5, 2: 0.6}}
    axis = new_figure(height=2).subplots()
    draw_protocol(axis, ByImages("some", {"conv3x3": seeds}))
    assert axis.lines[0].get_ydata() == pytest.approx([30, 50])
    band = shown_interval([40, 50, 60])
    edges = [y for x, y in axis.collections[0].get_paths()[0].vertices if x == 20]
    assert (min(edges), max(edges)) == pytest.approx((band.low, band.high))


def test_shares_before_and_after_training_have_their_own_panels():
    found = Shares("some", [Share("a", "sa_quadratic", True, [[0.1, 0.2]], [[0.8, 0.9]])], [])
    before, after = layers.convolution_share(found).axes
    assert before.lines[0].get_ydata() == pytest.approx([10, 20])
    assert after.lines[0].get_ydata() == pytest.approx([80, 90])
