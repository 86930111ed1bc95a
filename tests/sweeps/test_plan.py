"""The plan of the study: its rows have the right runs in the right order, with estimates of their time."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from attnconv.errors import ConfigError
from attnconv.files import FileError
from attnconv.models.cost import build_unfilled
from attnconv.models.match import match_model
from attnconv.runs.estimate import Rates, Work, duration, time_left, work_of
from attnconv.runs.identity import differences
from attnconv.runs.status import State
from attnconv.settings.contradictions import require_effect
from attnconv.sweeps.grid import Cell
from attnconv.sweeps.study import Sweep, _copied, combinations, expand, in_order, plan, rows
from conftest import REPOSITORY, compose

pytestmark = pytest.mark.slow  # composing a study takes seconds

RUNS = {
    "table1": 15, "learning_rates": 15, "frozen_heads": 20 + 9 + 3, "data_size": 90 + 60, "small": 1 + 2 + 2,
    "encodings": 9 + 3 + 1, "mixers": 18 + 9 + 6 + 9, "normalizers": 18, "optimizer": 6, "cutmix": 24,
}  # fmt: skip
RUNS_FP32 = RUNS | {"table1": 9, "frozen_heads": 20, "data_size": 45, "small": 1 + 1, "mixers": 42 + 6}


@pytest.mark.parametrize(("precision", "counts"), [("bf16", RUNS), ("fp32", RUNS_FP32)])
def test_every_row_has_the_expected_runs_and_precision(precision, counts):
    found = {name: [combinations(sweep, precision, []) for sweep in row] for name, row in rows(precision).items()}
    assert {name: sum(map(len, sweeps)) for name, sweeps in found.items()} == counts
    cells = [cell for row in found.values() for sweep in row for cell in sweep]
    assert all(f"precision={precision}" in cell for cell in cells)


@cache
def first_seeds(precision):
    """The cells of every row with seed 0 and a quarter of the images."""
    return {
        name: [cell for sweep in row for cell in expand(sweep, precision, ["seed=0", "data.fraction=0.25"])]
        for name, row in rows(precision).items()
    }


def test_a_row_that_is_named_twice_is_planned_once(tmp_path):
    assert [len(cells) for cells in plan("bf16", ["optimizer", "optimizer"], ["seed=0"], tmp_path).values()] == [3]


def test_overrides_that_the_study_cannot_use_are_refused(tmp_path):
    for override, complaint in (
        ("name=x", "two runs would share the folder .* differ only in recipe.lr_scale"),
        ("collected=results", "the experiments of the study set collected"),
        ("model=glob(sa_*)", r"does not search for names; list them: model=NAME,NAME"),
        ("hydra/launcher=joblib", "has no effect: the study starts its runs without"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            plan("bf16", ["learning_rates"], [override, *(["model=conv3x3"] if "name" in override else [])], tmp_path)


def test_the_networks_of_all_rows_build_within_their_matching_budget():
    cells = {}
    for cell in (cell for of_row in first_seeds("bf16").values() for cell in of_row):
        require_effect([(cell.config, cell.overrides)])  # as train.py does
        cells[str((cell.config.model | {"start": None}, cell.config.match))] = cell
    for cell in cells.values():
        match = match_model(cell.config, (3, 32, 32), 10) if cell.config.match else None
        network = build_unfilled(match.node if match else cell.config.model, (3, 32, 32), 10)
        if match:
            assert abs(match.difference) < 0.01, cell.overrides
        assert network(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_the_optimizer_row_uses_the_papers_recipe_and_settings():
    (cell, *_) = expand(Sweep("optimizer"), "bf16", [])
    config = cell.config
    assert (config.recipe.name, config.recipe.optimizer, config.recipe.dropout) == ("paper", "sgd", 0.1)
    assert (config.epochs, config.scale.name) == (60, "mini")


def test_run_names_differ_between_precisions():
    bf16, fp32 = first_seeds("bf16"), first_seeds("fp32")
    assert bf16.keys() == fp32.keys() == RUNS.keys()
    for row in RUNS:
        assert not {cell.config.name for cell in bf16[row]} & {cell.config.name for cell in fp32[row]}, row


def test_expand_gives_the_same_configuration_as_compose():
    (cell, *_) = expand(Sweep("frozen_heads", ("data.fraction=1", "seed=2")), "fp32", ["scale.layers=1"])
    assert cell.config == compose(cell.overrides)
    assert (cell.config.name, cell.config.data.subset_seed, cell.config.precision) == ("frozen_heads_fp32", 2, "fp32")


def test_plan_finds_runs_collected_before_precision_was_a_setting(tmp_path):
    (cells,) = plan("bf16", ["data_size"], ["data.fraction=0.25", "seed=0"], REPOSITORY / "results").values()
    found = {(cell.config.name, cell.config.model["name"]): cell.collected for cell in cells}
    assert found["data_size_epochs_20", "conv3x3"] == (
        REPOSITORY / "results/runs/data_size_epochs_20/conv3x3/mini-modern/frac0.25/seed0"
    )
    assert sum(folder is not None for folder in found.values()) == 5
    cell = next(cell for cell in cells if cell.collected)
    assert differences(cell.collected, replace(cell.config, precision="fp32")) == {"precision": "bf16 -> fp32"}


def test_copied_heads_come_from_another_seed_at_the_same_fraction():
    (cells,) = plan("bf16", ["frozen_heads"], [], Path("nowhere")).values()
    folders = {cell.folder for cell in cells}
    copied = [cell for cell in cells if cell.donor]
    assert len(copied) == 8
    for cell in copied:
        weights = cell.donor
        assert weights.parent in folders, "a run of this row makes it"
        assert weights.parent.parent.name == cell.folder.parent.name
        assert weights.parent.name != cell.folder.name


@pytest.mark.parametrize("copied_too", [False, True])
def test_a_collected_donor_runs_again_only_if_a_copy_of_its_heads_is_missing(tmp_path, monkeypatch, copied_too):
    row = [Sweep("frozen_heads", ("model=sa_quadratic", "seed=1,2")), _copied("${name}", "0.1", seeds=5)[0]]
    monkeypatch.setattr("attnconv.sweeps.study.rows", lambda precision: {"frozen_heads": row})
    donor, other = (f"runs/frozen_heads_fp32/sa_quadratic/mini-modern/frac0.1/seed{seed}" for seed in (1, 2))
    copied = "runs/frozen_heads_fp32/sa_quadratic_copied/mini-modern/frac0.1/seed0"
    for name in (donor, other, *([copied] if copied_too else [])):
        shutil.copytree(REPOSITORY / "results" / name, tmp_path / name)
    (cells,) = plan("fp32", ["frozen_heads"], [], tmp_path).values()
    found = {cell.folder.parts[-4:]: cell.collected for cell in cells}
    expected = {donor: tmp_path / donor if copied_too else None, other: tmp_path / other}
    expected[copied] = tmp_path / copied if copied_too else None
    assert found == {Path(name).parts[-4:]: folder for name, folder in expected.items()}


def test_an_empty_study_is_refused():
    with pytest.raises(ConfigError, match="the sweep is empty: a swept setting has no values"):
        plan("bf16", ["normalizers"], ["seed=range(3,3)"], Path("nowhere"))


def test_an_unknown_row_suggests_the_nearest_name():
    with pytest.raises(ConfigError, match="the study has no experiment table_1; did you mean 'table1'"):
        plan("bf16", ["table_1"], [], Path("nowhere"))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_overrides_must_be_valid_and_have_an_effect_in_at_least_one_run(precision):
    with pytest.raises(ConfigError, match=r"data\.padding_mode=reflect has no effect"):
        plan(precision, ["normalizers"], ["data.crop_padding=0", "data.padding_mode=reflect"], Path("nowhere"))
    with pytest.raises(ConfigError, match="~seed: settings cannot be removed"):
        plan(precision, ["normalizers"], ["~seed"], Path("nowhere"))
    for override in ("experiment=small", "precision=fp32"):
        with pytest.raises(ConfigError, match=f"{override}: the experiments of the study set"):
            plan(precision, ["normalizers"], [override], Path("nowhere"))
    # it has an effect in the runs with Gaussian heads
    plan(precision, ["table1"], ["recipe.centers_lr=0.1", "seed=0"], Path("nowhere"))


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY", b"\x93NUMPY\x01\0v\0{'descr': '<i8'"])
def test_damaged_label_files_are_errors_that_name_the_file(tmp_path, content):
    (tmp_path / "train_labels.npy").write_bytes(content)
    config = compose(["data=arrays", f"data.root={tmp_path}", "scale=mini", "recipe=modern"])
    with pytest.raises(FileError, match=r"train_labels\.npy"):
        work_of(config)


TIMED = {
    "status": "done", "model": "m", "scale": "mini", "precision": "bf16",
    "epochs": 1, "train_images": 10_000, "fraction": 1.0,
}  # fmt: skip


def test_rates_use_wall_time_on_a_gpu_and_cpu_time_on_one_cpu_thread(tmp_path):
    recorded = TIMED | {"epochs": 2, "train_images": 5000, "seconds": 20.0, "train_seconds": 10.0, "cpu_seconds": 8.0}
    for device, seconds in (("NVIDIA H200", 10), ("AMD EPYC, 1 thread", 4), ("AMD EPYC, 12 threads", None)):
        (tmp_path / "run/m/mini-modern/frac1/seed0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run/m/mini-modern/frac1/seed0/result.json").write_text(json.dumps(recorded | {"device": device}))
        expected = 0.0026 * 10_000 if seconds is None else seconds
        assert Rates.measured([tmp_path]).seconds(Work("m", "mini", "bf16", 10_000)) == pytest.approx(expected)


def test_rates_of_this_machine_replace_those_of_others(tmp_path):
    for place, device, seconds in (("results", "AMD EPYC, 1 thread", 50.0), ("outputs", "NVIDIA H200", 1.0)):
        folder = tmp_path / place / "run/m/mini-modern/frac1/seed0"
        folder.mkdir(parents=True)
        result = TIMED | {"device": device, "seconds": seconds, "train_seconds": seconds, "cpu_seconds": seconds}
        (folder / "result.json").write_text(json.dumps(result))
    rates = Rates.measured([tmp_path / "results", tmp_path / "outputs"])
    assert rates.seconds(Work("m", "mini", "bf16", 10_000)) == pytest.approx(1.0)


def test_rates_ignore_runs_that_spend_their_time_on_first_steps_and_evaluation(tmp_path):
    folder = tmp_path / "run/m/mini-modern/frac0.001/seed0"
    folder.mkdir(parents=True)
    recorded = TIMED | {"train_images": 50, "fraction": 0.001, "seconds": 30.0, "train_seconds": 2.0}
    (folder / "result.json").write_text(json.dumps(recorded | {"device": "AMD EPYC, 1 thread"}))
    assert Rates.measured([tmp_path]).seconds(Work("m", "mini", "bf16", 100)) == pytest.approx(0.26)


@pytest.mark.parametrize(
    ("overrides", "images"),
    [
        (["epochs=6"], 6 * 50_000 + 6 * 10_000 / 3),
        (["epochs=6", "eval_every=4", "data.fraction=0.1"], 6 * 5_000 + 2 * 10_000 / 3),
        (["epochs=6", "eval_mirrored=true", "data.equal=steps", "data.fraction=0.1"], 6 * 50_000 + 6 * 20_000 / 3),
        (["epochs=6", "data.fraction=0.1", "data.holdout=0.1"], 6 * 4_500 + (6 * 5_000 + 10_000) / 3),
        (["epochs=6", "data=digits"], 6 * 1_437 + 6 * 360 / 3),
    ],
)
def test_work_counts_evaluated_images_as_a_third_of_trained_ones(overrides, images):
    assert work_of(compose(["scale=mini", *overrides])).images == pytest.approx(images)


def test_runs_with_equal_steps_count_as_many_images_as_full_data(tmp_path):
    folder = tmp_path / "run/m/mini-modern/frac0.1/seed0"
    folder.mkdir(parents=True)
    recorded = TIMED | {"epochs": 2, "train_images": 500, "fraction": 0.1, "equal": "steps"}
    recorded |= {"seconds": 4.0, "train_seconds": 4.0, "device": "AMD EPYC, 1 threads"}
    (folder / "result.json").write_text(json.dumps(recorded))
    assert Rates.measured([tmp_path]).seconds(Work("m", "mini", "bf16", 20_000)) == pytest.approx(8)


RATES = Rates({("conv3x3", "mini", "bf16"): [0.001, 0.002, 0.009], ("sa_quadratic", "mini", "bf16"): [0.004]})


def test_runs_are_in_row_order_in_bf16_and_by_size_within_essential_rows_in_fp32():
    def cell(*overrides):
        return Cell(list(overrides), compose(["scale=mini", "recipe=modern", "precision=fp32", *overrides]))

    large, small = cell("model=sa_quadratic"), cell("model=conv3x3", "data.fraction=0.1")
    smaller = cell("model=conv3x3", "data.fraction=0.01")
    rows_of = {"table1": [large], "data_size": [small], "cutmix": [smaller]}
    assert in_order(rows_of, "bf16", RATES) == [large, small, smaller]
    assert in_order(rows_of, "fp32", RATES) == [small, large, smaller]


def test_rates_fall_back_to_the_nearest_model_and_scale():
    def seconds(model, scale, precision):
        return RATES.seconds(Work(model, scale, precision, images=1000))

    assert seconds("conv3x3", "mini", "bf16") == pytest.approx(2)
    assert seconds("conv3x3", "mini", "fp32") == pytest.approx(6)
    assert seconds("sa_learned", "mini", "bf16") == pytest.approx(3)
    assert seconds("sa_learned", "small", "fp32") == pytest.approx(24)


def test_the_default_precision_has_the_rates_of_this_machine():
    for measured in ("fp32", "bf16"):
        rates = Rates({("conv3x3", "mini", measured): [0.006]})
        assert rates.seconds(Work("conv3x3", "mini", "auto", images=1000)) == pytest.approx(6)
        assert rates.seconds(Work("sa_learned", "mini", "auto", images=1000)) == pytest.approx(6)
        assert rates.seconds(Work("sa_learned", "small", "auto", images=1000)) == pytest.approx(8)


def test_rates_are_measured_from_single_threaded_runs():
    rates = Rates.measured([REPOSITORY / "results/runs/default", REPOSITORY / "results/runs/quarter"])
    vgg = Work("vgg11_bn", "mini", "bf16", images=20 * 12_500)
    assert rates.seconds(vgg) == pytest.approx(318.84, abs=0.01), "the time that its only run took"
    conv = Work("conv3x3", "mini", "bf16", images=20 * 50_000)
    assert rates.seconds(conv) > 1000, "the run of results/runs/default had two threads"


def test_rates_ignore_damaged_and_failed_results(tmp_path):
    for seed, text in enumerate(("torn {", '["no result"]', '{"status": "done"}', '{"status": "failed"}')):
        folder = tmp_path / f"name/conv3x3/mini-modern/frac1/seed{seed}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(text)
    work = Work("conv3x3", "mini", "bf16", images=1000)
    assert Rates.measured([tmp_path]).seconds(work) == Rates().seconds(work)


def test_time_left_counts_remaining_epochs_of_runs_that_can_continue():
    work = {"work": vars(Work("conv3x3", "mini", "bf16", images=1000))}
    states = {Path(str(place)): State(status, "", epoch, 4, {}) for place, (status, epoch) in enumerate(
        [("interrupted", 1), ("waiting", 0), ("done", 4), ("failed", 2), ("unreadable", 0)])}  # fmt: skip
    noted = dict.fromkeys(states, work)
    assert time_left(states, noted, RATES, at_once=2) == pytest.approx((0.75 + 1) * 2 / 2)
    assert time_left({Path("2"): states[Path("2")]}, noted, RATES, at_once=2) is None


def test_duration_format():
    assert [duration(seconds) for seconds in (1, 90, 15_000)] == ["1 min", "2 min", "4 h 10 min"]
