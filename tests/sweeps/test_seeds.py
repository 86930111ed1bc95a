"""The output of a sweep: progress before each run, then means over seeds and a plot."""

import re
import sys
from concurrent.futures.process import BrokenProcessPool
from statistics import mean, stdev

import pytest
from PIL import Image

from attnconv.files import read_json
from attnconv.sweeps.seeds import Found, _figure, over_seeds, plot, seeds_table
from conftest import TINY_SCALE


def runs(*, seeds=(0, 1), fractions=("0.1", "1"), models=("a", "b")):
    return [
        Found(
            {"seed": str(seed), "model": model, "data.fraction": fraction},
            0.1 * seed + float(fraction) / 2, "test", "fp32",
        )
        for seed in seeds for model in models for fraction in fractions
    ]  # fmt: skip


def test_means_are_taken_over_seeds_only():
    swept, cells = over_seeds(runs())
    assert swept == ["model", "data.fraction"]
    assert {key: len(values) for key, values in cells.items()} == dict.fromkeys(
        [("a", "0.1"), ("a", "1"), ("b", "0.1"), ("b", "1")], 2
    )
    assert "model=b data.fraction=1   mean 55.00%, sd 7.07%, n=2" in seeds_table(runs())
    assert seeds_table(runs(seeds=(0,))) == ""


def test_heads_copied_from_other_seeds_are_averaged():
    copied = [
        Found.of([f"seed={seed}", "model=copied", f"model.start='a/seed{1 - seed}/weights'"], {"test_acc": 0.5})
        for seed in (0, 1)
    ]
    table = seeds_table([*copied, *(Found.of([f"seed={seed}", "model=own"], {"test_acc": 0.6}) for seed in (0, 1))])
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["n=2", "n=2"]
    assert "model=own  " in table, "it has no model.start"


def test_different_precisions_are_not_averaged():
    bf16 = Found({"seed": "2", "model": "a", "data.fraction": "1"}, 0.9, "test", "bf16")
    swept, cells = over_seeds([*runs(), bf16])
    assert swept[-1] == "precision"
    assert cells["a", "1", "bf16"] == [0.9]


def test_accuracies_on_two_splits_are_not_averaged():
    validated = [Found(run.overrides, 0.9, "val", "fp32") for run in runs()]
    swept, cells = over_seeds([*runs(), *validated])
    assert swept[-1] == "split"
    assert cells["a", "1", "val"] == [0.9, 0.9]
    assert seeds_table([*runs(), *validated]).startswith("accuracy over seeds:")
    assert seeds_table(runs()).startswith("test accuracy over seeds:")


def test_a_single_cell_is_not_plotted(tmp_path):
    assert not plot(runs(fractions=("1",), models=("a",)), tmp_path / "none.png")
    assert plot(runs(fractions=("1",)), tmp_path / "names.png")
    assert [path.name for path in tmp_path.iterdir()] == ["names.png"]


def test_the_plot_shows_means_and_standard_deviations_in_the_order_of_the_numbers():
    accuracies = {("0.1",): [0.5, 0.7], ("1",): [0.8, 0.9, 1.0], ("0.05",): [0.4]}
    (axis,) = _figure(["data.fraction"], accuracies, "test accuracy (%)").axes
    line, _, (bars,) = axis.containers[0].lines
    assert line.get_xdata().tolist() == [0.05, 0.1, 1]
    assert line.get_ydata() == pytest.approx([40, 60, 90])
    halves = [(upper - lower) / 2 for (_, lower), (_, upper) in bars.get_segments()]
    assert halves == pytest.approx([0, 100 * stdev([0.5, 0.7]), 10])


def test_the_setting_with_most_numbers_is_the_axis_and_the_others_make_the_lines():
    accuracies = {(model, epochs): [0.5] for model in "ab" for epochs in ("9", "10", "100")}
    (axis,) = _figure(["model", "epochs"], accuracies, "test accuracy (%)").axes
    assert axis.get_xlabel() == "epochs"
    assert [line.get_label() for line in axis.containers] == ["a", "b"]
    assert [line.lines[0].get_xdata().tolist() for line in axis.containers] == [[9, 10, 100]] * 2


def test_subset_seeds_that_repeat_the_seeds_are_not_settings():
    found = [Found({"seed": str(seed), "data.subset_seed": str(seed)}, 0.5, "test", "fp32") for seed in (0, 1)]
    assert over_seeds(found) == ([], {(): [0.5, 0.5]})


def test_values_with_dollar_signs_are_not_formulas(tmp_path):
    values = "a$_$b", "$x"
    assert plot(runs(models=values), tmp_path / "lines.png")
    assert plot(runs(fractions=("1",), models=values), tmp_path / "axis.png")


def test_a_killed_worker_does_not_suppress_the_summary(command, arrays, tmp_path, monkeypatch):
    launcher = sys.modules["hydra._internal.core_plugins.basic_launcher"].BasicLauncher  # as Hydra has loaded it
    real = launcher.launch

    def killed(self, overrides, initial_job_idx):
        real(self, overrides[:1], initial_job_idx)
        raise BrokenProcessPool("a worker was killed")

    monkeypatch.setattr(launcher, "launch", killed)
    finished = command("train.py", "-m", *TINY_SCALE, "data=arrays", f"data.root={arrays}", "device=cpu", "epochs=1",
                       f"output={tmp_path}/outputs", "logger=none", "model=conv3x3", "seed=0,1")  # fmt: skip
    assert finished.returncode == 1
    assert "error: the launcher failed: BrokenProcessPool: a worker was killed" in finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("sweep of 2 runs: 1 done, 1 waiting")


def test_a_sweep_prints_progress_and_ends_with_means_and_a_plot(command, arrays, tmp_path):
    swept = ["model=conv3x3,sa_quadratic", "seed=0,1"]
    finished = command("train.py", "-m", *TINY_SCALE, "data=arrays", f"data.root={arrays}", "device=cpu", "epochs=1",
                       f"output={tmp_path}/outputs", "logger=none", *swept)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    done = [re.match(r"sweep: (\d) of 4 runs done, about \d+ min left", line) for line in lines]
    assert [found.group(1) for found in done if found] == ["0", "1", "2", "3"]
    folders = sorted((tmp_path / "outputs/default").glob("*/*/*/seed*"))
    found = [read_json(folder / "result.json", ("test_acc",))["test_acc"] for folder in folders]
    table = lines[lines.index("test accuracy over seeds:") + 1 :][:2]
    for line, pair in zip(table, (found[:2], found[2:]), strict=True):
        assert line.endswith(f"mean {mean(pair):.2%}, sd {stdev(pair):.2%}, n=2")
    (picture,) = (tmp_path / "outputs/.sweeps").glob("*/accuracy.png")
    assert f"drawn: {picture}" in lines
    assert Image.open(picture).width > 300
    assert lines[-1] == "sweep of 4 runs: 4 done"


def test_sweeps_with_a_holdout_are_judged_on_it():
    result = {"val_acc": 0.5, "test_acc": 0.9, "precision": "fp32"}
    found = Found.of(["+recipe.lr=1", "seed=0"], result)
    assert found == Found({"recipe.lr": "1", "seed": "0"}, 0.5, "val", "fp32")
    assert Found.of([], {"test_acc": 0.9}).split == "test"
