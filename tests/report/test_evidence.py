"""Pairs of runs behind the claims: what counts as a seed, what is paired, and the same images."""

import re

import numpy as np
import pytest
from fabricated import LOW, higher, probed, row, seeds, verdict

from attnconv.errors import RunFolderError
from attnconv.files import FileError
from attnconv.report.evidence import OF_STUDY, Arm, Evidence


def test_external_copies_of_a_run_are_not_more_seeds():
    runs = [row("table1_bf16", model, accuracy) for model, accuracy in (("conv3x3", 0.8), ("sa_quadratic", 0.801))]
    copies = [one | {"source": lab} for one in runs for lab in ("a", "b")]
    assert verdict("A1", runs + copies).number.count("n=1 (bf16), 3 are needed") == 1
    elsewhere = [one | {"source": lab, "test_acc": one["test_acc"] + by} for lab, by in (("a", 0.001), ("b", 0.002))
                 for one in runs]  # fmt: skip
    found = verdict("A1", runs + elsewhere)
    assert "n=3 (2 external) (bf16), 3 are needed" in found.number, "one seed on three machines"
    assert found.status == "undecided"


def test_runs_of_different_length_are_not_paired():
    runs = seeds("table1_bf16", "conv3x3", LOW) + seeds("table1_bf16", "sa_quadratic", higher(0), epochs=60)
    assert verdict("A1", runs).parts[0].status == "not run"


def test_runs_that_two_experiments_repeat_count_once_in_the_spread(tmp_path):
    local = seeds("mixers_kernel3_fp32", "local_attention", (0.884, 0.8838, 0.8855), precision="fp32")
    control = [
        seeds(f"{name}_fp32", "conv3x3", (0.88, 0.8826, 0.8793), precision="fp32") for name in ("mixers", "table1")
    ]
    arms = Arm(("mixers_kernel3",), "local_attention"), Arm(("mixers", "table1"), "conv3x3")
    once, twice = (Evidence(tmp_path, local + runs).contrast(*arms) for runs in (control[0], control[0] + control[1]))
    assert once.gap.estimate == twice.gap.estimate
    assert twice.gap.estimate.df == 2


def test_the_spread_is_that_of_all_models_of_the_experiments(tmp_path):
    two = seeds("table1_bf16", "conv3x3", LOW) + seeds("table1_bf16", "sa_quadratic", higher(0.01))
    third = seeds("table1_bf16", "sa_learned", (0.7, 0.78, 0.74))
    arms = Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")
    alone, pooled = (Evidence(tmp_path, runs).contrast(*arms).gap.estimate for runs in (two, two + third))
    assert (alone.df, pooled.df) == (2, 4)
    assert pooled.error > alone.error


def test_precisions_are_not_mixed_and_the_one_with_more_pairs_is_used(tmp_path):
    few = seeds("table1_bf16", "conv3x3", LOW[:2]) + seeds("table1_bf16", "sa_quadratic", higher(0.05)[:2])
    fp32 = {"precision": "fp32"}
    many = seeds("table1_fp32", "conv3x3", LOW, **fp32) + seeds("table1_fp32", "sa_quadratic", higher(0), **fp32)
    evidence = Evidence(tmp_path, few + many)
    found = evidence.contrast(Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3"))
    assert (found.precision, found.gap.estimate.n) == ("fp32", 3)
    crossed = Evidence(tmp_path, seeds("table1_bf16", "conv3x3", LOW) + many[3:])
    assert crossed.contrast(Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")) is None


def test_runs_of_one_experiment_with_another_setting_are_not_averaged(tmp_path):
    ours, theirs = Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")
    runs = [one | {"recipe.lr_scale": 1, "eval_every": one["seed"]} for one in
            seeds("table1_bf16", "conv3x3", LOW) + seeds("table1_bf16", "sa_quadratic", higher(0))]  # fmt: skip
    assert Evidence(tmp_path, runs).contrast(ours, theirs).seeds == 3
    longer = [*runs, *(row("table1_bf16", model, 0.9, seed=7, epochs=60) for model in ("conv3x3", "sa_quadratic"))]
    with pytest.raises(RunFolderError, match="the same experiment and model, but epochs=20 and 60"):
        Evidence(tmp_path, longer).contrast(ours, theirs)
    runs[-1]["recipe.lr_scale"] = 0.5
    message = (
        "table1_bf16/sa_quadratic/mini-modern/frac1/seed0 and table1_bf16/sa_quadratic/mini-modern/frac1/seed2 have "
        "the same experiment and model, but recipe.lr_scale=1 and 0.5: give one of them its own name="
    )
    with pytest.raises(RunFolderError, match=f"^{re.escape(message)}$"):
        Evidence(tmp_path, runs).contrast(ours, theirs)


def test_two_results_of_one_run_are_refused(tmp_path):
    runs = seeds("data_size_epochs_20", "conv3x3", LOW) + seeds("data_size_epochs_20", "sa_quadratic", higher(0))
    again = [one | {"name": "data_size_epochs_20_bf16", "run": one["run"] + "_again"} for one in runs]
    arms = Arm(("data_size_epochs_20",), "sa_quadratic"), Arm(("data_size_epochs_20",), "conv3x3")
    once, twice = (Evidence(tmp_path, rows).contrast(*arms) for rows in (runs, runs + again))
    assert once.gap.estimate == twice.gap.estimate, "a repetition has the same accuracies and counts once"
    again[0] |= {"test_acc": 0.7}
    with pytest.raises(RunFolderError, match=r"seed0 and .*_again have the same experiment, model and seed, but other"):
        Evidence(tmp_path, runs + again).contrast(*arms)


def test_an_experiment_counts_once_in_the_spread_whatever_its_name_says_of_precision(tmp_path):
    runs = seeds("table1", "conv3x3", LOW[:2]) + seeds("table1", "sa_quadratic", higher(0.01)[:2])
    runs += [row("table1_bf16", model, acc, seed=2) for model, acc in (("conv3x3", LOW[2]), ("sa_quadratic", 0.8))]
    found = Evidence(tmp_path, runs).contrast(Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3"))
    assert (found.gap.estimate.n, found.gap.estimate.df) == (3, 2)


def test_the_first_experiment_of_an_arm_counts_where_both_have_a_seed(tmp_path):
    runs = (
        seeds("mixers_bf16", "conv3x3", LOW)
        + seeds("table1_bf16", "conv3x3", higher(0.1))
        + [row("mixers_bf16", "conv3x3", 0.5, seed=3)]
    )
    found = Evidence(tmp_path, runs).runs(Arm(("table1", "mixers"), "conv3x3"), "bf16")
    assert sorted(one["test_acc"] for one in found.values()) == sorted([*higher(0.1), 0.5])


def test_probes_of_other_experiments_and_settings_decide_nothing(tmp_path):
    of_study = [probed(tmp_path, run) for run in seeds("table1_bf16", "sa_quadratic", LOW)]
    others = [
        *seeds("mine", "sa_quadratic", (0.9,) * 4),
        *seeds("table1_mine", "sa_quadratic", (0.9,) * 4),
        *seeds("data_size_epochs_20", "sa_quadratic", (0.9,) * 4, recipe="paper"),
        *seeds("encodings_bf16", "sa_quadratic", (0.9,) * 4, holdout=0.1),
        *seeds("quarter", "sa_quadratic", (0.9,) * 4, source="a lab"),
    ]
    evidence = Evidence(tmp_path, [*(probed(tmp_path, run) for run in others), *of_study])
    assert [run["run"] for run, _ in evidence.probes(Arm(OF_STUDY, "sa_quadratic"))] == [run["run"] for run in of_study]
    assert evidence.probes(Arm(OF_STUDY, "sa_learned")) == []


def test_probes_of_all_images_count_before_those_of_a_fraction(tmp_path):
    runs = [
        probed(tmp_path, run)
        for fraction in (0.25, 1.0)
        for run in seeds("table1_bf16", "sa_quadratic", LOW, fraction=fraction)
    ]
    found = Evidence(tmp_path, runs).probes(Arm(("table1",), "sa_quadratic"))
    assert {run["fraction"] for run, _ in found} == {1.0}


def predicted(results, wrong):
    """Write predictions of three seeds, with this many of 1,000 wrong by model; return the runs and the last folder."""
    labels = np.zeros(1_000, dtype=np.uint8)
    np.save(results / "test_labels.npy", labels)
    runs = [row("table1_bf16", model, 1 - count / 1_000, seed) for model, count in wrong.items() for seed in range(3)]
    for run in runs:
        folder = results / "runs" / run["run"]
        folder.mkdir(parents=True)
        np.save(folder / "predictions.npy", np.arange(1_000) < wrong[run["model"]])
    return runs, folder


def test_mcnemar_is_not_used_for_gaps_of_either_sign_above_one_point(tmp_path):
    runs, _ = predicted(tmp_path, {"conv3x3": 200, "sa_quadratic": 300})
    one, other = Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")
    for arms in ((one, other), (other, one)):
        assert Evidence(tmp_path, runs).contrast(*arms).mcnemar is None


def test_mcnemar_uses_stored_predictions_for_gaps_below_one_point(tmp_path):
    runs, folder = predicted(tmp_path, {"conv3x3": 200, "sa_quadratic": 204})
    evidence = Evidence(tmp_path, runs)
    arms = Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")
    assert evidence.contrast(*arms).mcnemar == pytest.approx(0.0455, abs=1e-4), "four images, not twelve"
    np.save(folder / "predictions.npy", np.zeros(1_000, dtype=np.uint8))
    with pytest.raises(FileError, match=r"predictions.npy has accuracy 1.0, and the run recorded 0.796"):
        evidence.contrast(*arms)
    (folder / "predictions.npy").unlink()
    assert evidence.contrast(*arms).mcnemar is None
