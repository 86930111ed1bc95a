"""Verdicts on accuracies: the thresholds of results/claims.yaml applied to fabricated runs."""

import re

import pytest
from fabricated import LOW, higher, row, seeds, verdict

NEAR = [accuracy + by for accuracy, by in zip(LOW, (0.005, 0.006, 0.0028), strict=True)]  # above LOW with p = 0.04


@pytest.mark.parametrize(
    ("by", "status"), [(0.0, "holds"), (0.03, "does not hold"), (-0.03, "does not hold"), (0.009, "undecided")]
)
def test_equality_claims_need_the_whole_interval_within_the_margin(by, status):
    runs = seeds("table1_bf16", "conv3x3", LOW) + seeds("table1_bf16", "sa_quadratic", higher(by))
    assert verdict("A1", runs).status == status


@pytest.mark.parametrize(("of_fp32", "status"), [(0.0, "holds"), (0.009, "holds"), (0.03, "undecided")])
def test_a_claim_is_undecided_if_the_precisions_contradict_each_other(of_fp32, status):
    fp32 = {"precision": "fp32"}
    runs = seeds("table1_bf16", "conv3x3", LOW) + seeds("table1_bf16", "sa_quadratic", higher(0))
    runs += seeds("table1_fp32", "conv3x3", LOW, **fp32) + seeds("table1_fp32", "sa_quadratic", higher(of_fp32), **fp32)
    found = verdict("A1", runs)
    assert found.status == status
    assert re.search(r"n=3 \(bf16\); also \S+ \[.*\], n=3 \(fp32\)", found.number)


def test_a_superiority_claim_is_undecided_if_the_precisions_contradict_each_other():
    fp32 = {"precision": "fp32"}
    runs = seeds("table1_bf16", "sa_learned", LOW) + seeds("table1_bf16", "sa_quadratic", higher(0.03))
    assert verdict("A2", runs).status == "holds"
    runs += seeds("table1_fp32", "sa_learned", LOW, **fp32)
    below = seeds("table1_fp32", "sa_quadratic", higher(-0.03), **fp32)
    assert verdict("A2", runs + below).status == "undecided"
    assert verdict("A2", runs + below[:2]).status == "holds", "with two seeds, fp32 decides nothing"


def test_the_place_of_a_model_is_undecided_if_the_precisions_contradict_each_other():
    def both(model, by, **kind):
        name = f"optimizer_{kind['precision']}"
        return seeds(name, model, higher(by)[:2], recipe="paper", **kind)

    runs = [one for model, by in (("sa_quadratic", 0.03), ("conv3x3", 0.03), ("sa_learned", 0))
            for one in seeds("table1_bf16", model, higher(by))]  # fmt: skip
    for model, by in (("sa_quadratic", 0.03), ("conv3x3", 0.03), ("sa_learned", 0)):
        runs += both(model, by, precision="bf16")
    assert verdict("A5", runs).status == "holds"
    for model, by in (("sa_quadratic", 0), ("conv3x3", 0), ("sa_learned", 0.03)):
        runs += both(model, by, precision="fp32")
    assert verdict("A5", runs).status == "undecided"


def test_the_best_network_counts_and_the_number_of_tries_is_printed():
    tries = [row("small_bf16", "sa_quadratic", 0.93, scale="small", epochs=40, device="CPU, 2 threads"),
             row("wide_bf16", "sa_quadratic", 0.94, scale="small", epochs=40, device="CPU, 2 threads")]  # fmt: skip
    found = verdict("V1", tries)
    assert (found.status, "best of 2 so far, " in found.number) == ("holds", True)
    assert "of" not in verdict("V1", tries[:1]).number.partition(",")[0]


def test_two_of_three_seeds_leave_a_claim_undecided():
    runs = seeds("table1_bf16", "conv3x3", LOW[:2]) + seeds("table1_bf16", "sa_quadratic", higher(0)[:2])
    found = verdict("A1", runs)
    assert found.status == "undecided"
    assert "n=2 (bf16), 3 are needed" in found.number


def test_superiority_claims_need_every_deciding_comparison():
    learned = seeds("table1_bf16", "sa_learned", higher(0.02))
    matched = seeds("table1_bf16", "sa_learned_content", LOW)
    wide = seeds("encodings_full_width_bf16", "sa_learned_content", LOW, parameters=900_000)
    assert verdict("A3", learned + matched + wide).status == "holds"
    partly = verdict("A3", learned + matched)
    assert partly.status == "undecided"
    assert partly.verdict.startswith("undecided; some parts not run (all parts: ")
    below = seeds("encodings_full_width_bf16", "sa_learned_content", higher(0.04))
    assert verdict("A3", learned + matched + below).status == "does not hold"


def test_comparisons_that_are_missing_count_in_the_family():
    runs = seeds("table1_bf16", "sa_learned", NEAR) + seeds("table1_bf16", "sa_learned_content", LOW)
    assert [part.status for part in verdict("A3", runs).parts] == ["undecided", "not run"]
    size = {"fraction": 0.25}
    runs = seeds("mixers_bf16", "conv3x3", NEAR, **size) + seeds("mixers_bf16", "mlp_mixer", LOW, **size)
    assert verdict("W1", runs).parts[0].status == "undecided", "in the order of four models"
    runs = []
    for fraction, accuracies in ((0.01, LOW), (0.25, NEAR)):
        runs += seeds("data_size_steps_5", "conv3x3", LOW, fraction=fraction)
        runs += seeds("data_size_steps_5", "sa_quadratic", accuracies, fraction=fraction)
    assert verdict("D2", runs).parts[6].status == "undecided", "among nine slopes"


def test_comparisons_with_too_few_seeds_do_not_help_others_in_the_family():
    runs = seeds("table1_bf16", "sa_learned", NEAR) + seeds("table1_bf16", "sa_learned_content", LOW)
    runs += seeds("encodings_full_width_bf16", "sa_learned_content", (0.6, 0.6), parameters=900_000)
    assert [part.status for part in verdict("A3", runs).parts] == ["undecided", "undecided"]


def test_an_order_needs_three_seeds_of_each_pair():
    runs = seeds("mixers_bf16", "conv3x3", (0.9, 0.9), fraction=0.25)
    runs += seeds("mixers_bf16", "mlp_mixer", (0.8, 0.8001), fraction=0.25)
    assert verdict("W1", runs).parts[0].status == "undecided"


def test_an_order_uses_the_precision_with_more_runs_of_each_model():
    accuracies = {"conv3x3": 0.9, "locally_connected": 0.8, "mlp_mixer": 0.7, "fully_connected": 0.5}
    runs = []
    for model, accuracy in accuracies.items():
        three = [accuracy + by for by in (0, 0.001, 0.002)]
        runs += seeds("mixers_fp32", model, three, fraction=0.25, precision="fp32")
        runs += seeds("mixers_bf16", model, (accuracy,), fraction=0.25)
    assert [part.status for part in verdict("W1", runs).parts] == ["holds"] * 3
    one = [run for run in runs if run["precision"] == "bf16"]
    assert all("3 are needed" in part.text for part in verdict("W1", one).parts)


def test_frozen_heads_in_fp32_decide_one_part_of_a_claim():
    five = (*LOW, 0.803, 0.799)
    runs, ahead = [], {"": 0.02, "_random": 0, "_shifts": 0.03, "_copied": 0.0201}
    for kind, by in ahead.items():
        where = {"fraction": 0.1, "precision": "fp32"}
        runs += seeds("frozen_heads_fp32", f"sa_quadratic{kind}", [accuracy + by for accuracy in five], **where)
    positions, copies = verdict("L2", runs), verdict("L3", runs)
    assert [part.status for part in positions.parts if part.decides] == ["holds", "not run"]
    assert [part.status for part in copies.parts] == ["holds", "not run"]
    assert "n=5 (fp32)" in positions.number
    shown = next(part for part in positions.parts if "shifts" in part.text)
    assert not shown.decides
    assert shown.text.startswith("`sa_quadratic` - `sa_quadratic_shifts` (mini, 10% of the images): -1.0")


def test_a_widening_gap_refutes_the_claim_that_it_closes():
    name, runs = "data_size_steps_5", []
    for fraction, gain in ((0.01, 0.0), (0.05, 0.02), (0.25, 0.05)):
        runs += seeds(name, "conv3x3", LOW, fraction=fraction)
        runs += seeds(name, "sa_quadratic", higher(gain), fraction=fraction)
        runs += seeds(name, "sa_learned", higher(-gain), fraction=fraction)
    parts = {re.split("[,:]", part.text.replace("1,955", "1955"))[0]: part.status for part in verdict("D2", runs).parts}
    assert parts["`sa_quadratic` - `conv3x3` after 1955 steps"] == "holds"
    assert parts["`sa_learned` - `conv3x3` after 1955 steps"] == "does not hold"
    assert parts["`sa_learned_content` - `conv3x3` after 1955 steps"] == "not run"
    assert parts["`sa_quadratic` - `conv3x3` after 391 steps"] == "not run"
    assert verdict("D2", runs).status == "does not hold"
    assert "after 1,955 steps, 500 to 12,500 images: " in verdict("D2", runs).parts[6].text


def test_the_gap_is_judged_with_three_seeds_from_the_smallest_to_the_largest_fraction():
    name, runs = "data_size_steps_5", []
    for fraction, gain in ((0.01, 0.0), (0.05, 0.02), (0.25, 0.05)):
        runs += seeds(name, "conv3x3", LOW, fraction=fraction)
        runs += seeds(name, "sa_quadratic", higher(gain), fraction=fraction)

    def part(found):
        return verdict("D2", found).parts[6]

    assert part(runs).status == "holds"
    unfinished = [run for run in runs if run["fraction"] != 0.05 or run["seed"] == 0]
    assert part(unfinished).status == "holds", "fractions between them may lack seeds"
    needed = ", 3 seeds at 0.01 and 0.25 of the images are needed"
    without = part([run for run in runs if run["fraction"] < 0.25 or run["model"] != "conv3x3"])
    assert without.status == "undecided"
    assert ", 500 to 2,500 images: " in without.text
    assert without.text.endswith(needed)
    alone = [run | {"source": source} for run in runs if run["seed"] == 0 for source in (None, "ada", "bo")]
    alone = [run | {"test_acc": run["test_acc"] + 0.0001 * len(run["source"] or "")} for run in alone]
    assert part(alone).status == "undecided", "one seed on three machines"
    assert part(alone).text.endswith(needed)


def test_the_recipe_claim_needs_the_same_ranking_in_every_seed():
    runs = seeds("table1_bf16", "conv3x3", higher(0.02)) + seeds("table1_bf16", "sa_quadratic", higher(0.02))
    runs += seeds("table1_bf16", "sa_learned", LOW)
    paper = {"recipe": "paper"}
    others = [
        run for model in ("conv3x3", "sa_quadratic") for run in seeds("optimizer_bf16", model, (0.7, 0.7), **paper)
    ]
    for learned, status in (((0.6, 0.6), "holds"), ((0.6, 0.8), "undecided"), ((0.8, 0.8), "does not hold"),
                            ((0.6,), "undecided")):  # fmt: skip
        found = verdict("A5", runs + others + seeds("optimizer_bf16", "sa_learned", learned, **paper))
        assert found.status == status, learned


def test_the_recipe_claim_needs_a_side_in_table1():
    runs = [run for model in ("conv3x3", "sa_quadratic") for run in seeds("table1_bf16", model, LOW)]
    runs += seeds("table1_bf16", "sa_learned", higher(0.0001))
    for model, accuracies in (("conv3x3", (0.7, 0.7)), ("sa_quadratic", (0.7, 0.7)), ("sa_learned", (0.6, 0.6))):
        runs += seeds("optimizer_bf16", model, accuracies, recipe="paper")
    assert verdict("A5", runs).status == "undecided"


def test_the_sinusoidal_claim_compares_the_sign_with_learned_encodings():
    quadratic = seeds("table1_bf16", "sa_quadratic", LOW)
    for known, other, status in ((-0.02, -0.02, "holds"), (-0.02, 0.02, "does not hold"), (0.02, 0.02, "holds"),
                                 (0.02, -0.02, "does not hold")):  # fmt: skip
        runs = quadratic + seeds("table1_bf16", "sa_learned", higher(known))
        part, _ = verdict("R2", runs + seeds("encodings_bf16", "sa_sinusoidal", higher(other))).parts
        assert part.status == status, (known, other)
    assert verdict("R2", quadratic).parts[0].status == "not run"
    alone = [row("table1_bf16", "sa_learned", 0.801)]
    part, _ = verdict("R2", quadratic + alone + seeds("encodings_bf16", "sa_sinusoidal", higher(-0.02))).parts
    assert part.status == "undecided", "one seed of sa_learned has no side"


def test_the_accuracy_claim_counts_only_attention_and_names_the_best_so_far():
    small = {"scale": "small"}
    control = row("small_bf16", "conv3x3", 0.95, **small)
    best = row("small_bf16", "sa_quadratic", 0.93, **small)
    assert verdict("V1", [control, best]).number == "best so far, `sa_quadratic`: 93.00%, n=1 (bf16)"
    assert verdict("V1", [control, best]).status == "undecided"
    assert verdict("V1", [control, best | {"test_acc": 0.938}]).status == "holds"
    assert verdict("V1", [best | {"test_acc": 0.938, "holdout": 0.1}]).status == "not run"
    for change in ({"device": "NVIDIA H200"}, {"epochs": 300}, {"device": "a CPU, 16 threads"}, {"processes": 3}):
        assert verdict("V1", [best | {"test_acc": 0.938} | change]).status == "not run", change


def test_the_locality_and_sharing_claim_needs_every_model():
    by_model = (("conv3x3", 0.04), ("mlp_mixer", 0.02), ("locally_connected", 0))
    runs = [run for model, by in by_model for run in seeds("mixers_bf16", model, higher(by), fraction=0.25)]
    found = verdict("W1", runs)
    assert [part.status for part in found.parts] == ["holds", "holds", "not run"]
    assert found.status == "undecided"
    more = seeds("mixers_fp32", "conv3x3", (*higher(0.06), 0.86), fraction=0.25, precision="fp32")
    assert verdict("W1", runs + more).parts == found.parts, "one precision for the whole order"


def test_many_comparisons_are_counted_by_status():
    runs = seeds("data_size_steps_1_bf16", "conv3x3", higher(0.05), fraction=0.01)
    for model, by in (("sa_quadratic", 0.03), ("sa_learned", 0.0), ("sa_learned_content", 0.05)):
        runs += seeds("data_size_steps_1_bf16", model, higher(by), fraction=0.01)
    for model in ("conv3x3", "sa_quadratic", "sa_learned"):
        runs += seeds("data_size_epochs_20_bf16", model, LOW, fraction=0.01)
    text = verdict("D1", runs).number
    assert text.startswith("12 comparisons: 2 hold, 3 undecided, 7 not run<br>smallest: `conv3x3` - `"), text


def test_the_accuracy_claim_needs_the_mean_over_seeds():
    runs = seeds("small_bf16", "sa_quadratic", (0.940, 0.930), scale="small")
    found = verdict("V1", runs)
    assert (found.status, found.number) == ("undecided", "best so far, `sa_quadratic`: 93.50%, n=2 (bf16)")
    runs += seeds("small_bf16", "sa_learned", (0.936, 0.936), scale="small")
    assert verdict("V1", runs).number == "best of 2 so far, `sa_learned`: 93.60%, n=2 (bf16)"
