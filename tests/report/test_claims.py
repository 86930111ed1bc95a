"""Verdicts: the thresholds of results/claims.yaml applied to runs, and all claims on the page."""

import json
import re

import numpy as np
import pytest
from fabricated import row, seeds

from attnconv.config import CONFIGS
from attnconv.files import FileError, read_yaml
from attnconv.report.claims import Claim, claims_page, claims_table, judge, read_claims
from attnconv.report.deciders import DECIDERS
from attnconv.report.evidence import Arm, Evidence
from attnconv.sweeps.study import rows
from conftest import REPOSITORY

RESULTS = REPOSITORY / "results"
CLAIMS = {claim["id"]: claim for claim in read_claims(RESULTS / "claims.yaml", DECIDERS)}
FAMILIES = {"T": 2, "A": 5, "H": 4, "L": 3, "R": 2, "D": 2, "S": 3, "G": 1, "N": 1, "W": 1, "C": 1, "P": 1, "V": 1}
IDS = [f"{letter}{number}" for letter, count in FAMILIES.items() for number in range(1, count + 1)]
FIELDS = "id: X, claim: c, source: s, decided_by: d, holds_if: h, decide: above, command: c, cost: c"
LOW = (0.800, 0.802, 0.801)


def higher(by):
    return tuple(accuracy + by + wobble for accuracy, wobble in zip(LOW, (0.0005, -0.0005, 0), strict=True))


@pytest.fixture
def verdict(tmp_path):
    """Return a function that judges one claim, given by its id, on these runs alone."""

    def decide(name, runs=()):
        verdicts, errors = judge([CLAIMS[name]], Evidence(tmp_path, list(runs)), DECIDERS)
        assert errors == []
        return verdicts[0]

    return decide


def probed(results, run, layers=6, **of_layer):
    """Write the probe.json of a run with one head per layer, from lists of values by layer."""
    heads = [
        {
            "weights": "trained",
            "layer": layer + 1,
            "head": 1,
            **{name: values[layer] for name, values in of_layer.items()},
        }
        for layer in range(layers)
    ]
    found = [
        {"layer": layer + 1, "weights": weights, "conv3": conv3, "joint_residual": residual}
        for layer in range(layers)
        for weights, conv3, residual in (("initial", 0.5, 0.5), ("trained", of_layer.get("conv3", [0.5] * 6)[layer],
                                                                  of_layer.get("residual", [0.5] * 6)[layer]))
    ]  # fmt: skip
    path = results / "runs" / run["run"] / "probe.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"dirty": False, "images": 8, "heads": heads, "layers": found}))
    return run


def test_every_claim_is_listed_once_and_on_the_page():
    assert list(CLAIMS) == IDS
    assert sum(bool(claim.get("readme")) for claim in CLAIMS.values()) == 10
    page = (RESULTS / "claims.md").read_text()
    runs = dict(re.findall(r"^\| \[(\w+)\]\(#\w+\) \| ([^|]+) \|", page, flags=re.MULTILINE))
    assert runs == {name: claim["claim"] for name, claim in CLAIMS.items()}
    assert re.findall(r"^## (\w+)$", page, flags=re.MULTILINE) == IDS
    for claim in CLAIMS.values():
        assert f"- Holds if: {claim['holds_if']}." in page
    table = (REPOSITORY / "README.md").read_text().split("<!-- table: claims -->")[1].split("<!-- end table -->")[0]
    assert table.count("](results/claims.md#") == 10


def pattern(text, precision):
    """Return a regular expression for a name with interpolations."""
    parts = re.split(r"\$\{([\w.]+)\}", text.strip("'"))
    return "".join(
        re.escape(part) if place % 2 == 0 else precision if part == "precision" else r"[\w.]+"
        for place, part in enumerate(parts)
    )


def studied(precision):
    """Yield patterns of "NAME/MODEL" for all runs of the study in a precision."""
    for sweep in (sweep for of_row in rows(precision).values() for sweep in of_row):
        file = read_yaml(CONFIGS / f"experiment/{sweep.experiment}.yaml")
        given = dict(override.split("=", 1) for override in sweep.overrides)
        models = given.get("model.name", given.get("model", file["hydra"]["sweeper"]["params"]["model"]))
        for model in models.split(","):
            yield f"{pattern(given.get('name', file['name']), precision)}/{pattern(model, precision)}"


def test_every_compared_arm_is_a_run_of_the_study():
    parts = [part for claim in CLAIMS.values() for part in claim.get("parts", ())]
    sides = [part[side] for part in parts for side in ("ours", "theirs")]
    arms = {arm for side in sides for arm in (side if isinstance(side, list) else [side])}
    assert len(arms) > 40
    made = "|".join([*studied("bf16"), "data_size_steps_1/\\w+"])  # the runs with one pass are in results/
    for experiments, _, model in (arm.partition("/") for arm in arms):
        names = [name for experiment in experiments.split(",") for name in (experiment, f"{experiment}_bf16")]
        assert any(re.fullmatch(made, f"{name}/{model}") for name in names), (experiments, model)
    in_fp32 = "|".join(studied("fp32"))
    for name in ("table1_fp32/sa_learned", "data_size_steps_5_fp32/conv3x3", "frozen_heads_fp32/sa_quadratic_copied"):
        assert re.fullmatch(in_fp32, name)


def test_claims_without_runs_state_their_cost(verdict):
    for name in IDS:
        if name not in ("C1", "P1"):
            found = verdict(name)
            assert found.status == "not run", name
            assert found.verdict == f"not run: {CLAIMS[name]['cost']}"
    assert verdict("P1").status == "does not hold"


@pytest.mark.parametrize(
    ("by", "status"), [(0.0, "holds"), (0.03, "does not hold"), (-0.03, "does not hold"), (0.009, "undecided")]
)
def test_equality_claims_need_the_whole_interval_within_the_margin(verdict, by, status):
    runs = seeds("table1_bf16", "conv3x3", LOW) + seeds("table1_bf16", "sa_quadratic", higher(by))
    assert verdict("A1", runs).status == status


def test_two_of_three_seeds_leave_a_claim_undecided(verdict):
    runs = seeds("table1_bf16", "conv3x3", LOW[:2]) + seeds("table1_bf16", "sa_quadratic", higher(0)[:2])
    found = verdict("A1", runs)
    assert found.status == "undecided"
    assert "n=2 (bf16), 3 are needed" in found.number


def test_superiority_claims_need_every_deciding_comparison(verdict):
    learned = seeds("table1_bf16", "sa_learned", higher(0.02))
    matched = seeds("table1_bf16", "sa_learned_content", LOW)
    wide = seeds("encodings_full_width_bf16", "sa_learned_content", LOW, parameters=900_000)
    assert verdict("A3", learned + matched + wide).status == "holds"
    partly = verdict("A3", learned + matched)
    assert partly.status == "undecided"
    assert partly.verdict.startswith("undecided; some parts not run (all parts: ")
    below = seeds("encodings_full_width_bf16", "sa_learned_content", higher(0.04))
    assert verdict("A3", learned + matched + below).status == "does not hold"


def test_comparisons_that_are_missing_count_in_the_family(verdict):
    near = [accuracy + by for accuracy, by in zip(LOW, (0.005, 0.006, 0.0022), strict=True)]  # p = 0.045 alone
    runs = seeds("table1_bf16", "sa_learned", near) + seeds("table1_bf16", "sa_learned_content", LOW)
    assert [part.status for part in verdict("A3", runs).parts] == ["undecided", "not run"]


def test_external_copies_of_a_run_are_not_more_seeds(verdict):
    runs = [row("table1_bf16", model, accuracy) for model, accuracy in (("conv3x3", 0.8), ("sa_quadratic", 0.801))]
    copies = [one | {"source": lab} for one in runs for lab in ("a", "b")]
    assert verdict("A1", runs + copies).number.count("n=1 (bf16), 3 are needed") == 1
    elsewhere = [one | {"source": lab, "test_acc": one["test_acc"] + by} for lab, by in (("a", 0.001), ("b", 0.002))
                 for one in runs]  # fmt: skip
    found = verdict("A1", runs + elsewhere)
    assert "n=3 (2 external) (bf16), 3 are needed" in found.number, "one seed on three machines"
    assert found.status == "undecided"


def test_runs_of_different_length_are_not_paired(verdict):
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


def test_frozen_heads_in_fp32_decide_one_part_of_a_claim(verdict):
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
    assert shown.text.startswith("`sa_quadratic` - `sa_quadratic_shifts` (mini, 0.1 of the images): -1.0")


def test_precisions_are_not_mixed_and_the_one_with_more_pairs_is_used(tmp_path):
    few = seeds("table1_bf16", "conv3x3", LOW[:2]) + seeds("table1_bf16", "sa_quadratic", higher(0.05)[:2])
    fp32 = {"precision": "fp32"}
    many = seeds("table1_fp32", "conv3x3", LOW, **fp32) + seeds("table1_fp32", "sa_quadratic", higher(0), **fp32)
    evidence = Evidence(tmp_path, few + many)
    found = evidence.contrast(Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3"))
    assert (found.precision, found.gap.estimate.n) == ("fp32", 3)
    crossed = Evidence(tmp_path, seeds("table1_bf16", "conv3x3", LOW) + many[3:])
    assert crossed.contrast(Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")) is None


def test_mcnemar_uses_stored_predictions_for_gaps_below_one_point(tmp_path):
    labels = np.zeros(1_000, dtype=np.uint8)
    np.save(tmp_path / "test_labels.npy", labels)
    runs = []
    for model, wrong in (("conv3x3", 200), ("sa_quadratic", 204)):
        for seed in range(3):
            predictions = labels.copy()
            predictions[:wrong] = 1
            runs.append(row("table1_bf16", model, 1 - wrong / 1_000, seed))
            folder = tmp_path / "runs" / runs[-1]["run"]
            folder.mkdir(parents=True)
            np.save(folder / "predictions.npy", predictions)
    evidence = Evidence(tmp_path, runs)
    arms = Arm(("table1",), "sa_quadratic"), Arm(("table1",), "conv3x3")
    found = evidence.contrast(*arms).mcnemar
    assert (found.only_ours, found.only_theirs) == (0, 12)
    assert found.p == pytest.approx(0.0455, abs=1e-4), "four images, not twelve"
    np.save(folder / "predictions.npy", labels)
    with pytest.raises(FileError, match=r"predictions.npy has accuracy 1.0, result.json 0.796"):
        evidence.contrast(*arms)
    (folder / "predictions.npy").unlink()
    assert evidence.contrast(*arms).mcnemar is None


def test_a_widening_gap_refutes_the_claim_that_it_closes(verdict):
    name, runs = "data_size_steps_5", []
    for fraction, gain in ((0.01, 0.0), (0.05, 0.02), (0.25, 0.05)):
        runs += seeds(name, "conv3x3", LOW, fraction=fraction)
        runs += seeds(name, "sa_quadratic", higher(gain), fraction=fraction)
        runs += seeds(name, "sa_learned", higher(-gain), fraction=fraction)
    parts = {part.text.partition(":")[0]: part.status for part in verdict("D2", runs).parts}
    assert parts["`sa_quadratic` - `conv3x3` after 1,955 steps"] == "holds"
    assert parts["`sa_learned` - `conv3x3` after 1,955 steps"] == "does not hold"
    assert parts["`sa_learned_content` - `conv3x3` after 1,955 steps"] == "not run"
    assert parts["`sa_quadratic` - `conv3x3` after 391 steps"] == "not run"
    assert verdict("D2", runs).status == "does not hold"


def test_the_recipe_claim_needs_the_same_ranking_in_every_seed(verdict):
    runs = seeds("table1_bf16", "conv3x3", higher(0.02)) + seeds("table1_bf16", "sa_quadratic", higher(0.02))
    runs += seeds("table1_bf16", "sa_learned", LOW)
    paper = {"recipe": "paper"}
    others = [
        run for model in ("conv3x3", "sa_quadratic") for run in seeds("optimizer_bf16", model, (0.7, 0.7), **paper)
    ]
    for learned, status in (((0.6, 0.6), "holds"), ((0.6, 0.8), "undecided"), ((0.8, 0.8), "does not hold")):
        found = verdict("A5", runs + others + seeds("optimizer_bf16", "sa_learned", learned, **paper))
        assert found.status == status


def test_the_recipe_claim_needs_a_side_in_table1(verdict):
    runs = [run for model in ("conv3x3", "sa_quadratic") for run in seeds("table1_bf16", model, LOW)]
    runs += seeds("table1_bf16", "sa_learned", higher(0.0001))
    for model, accuracies in (("conv3x3", (0.7, 0.7)), ("sa_quadratic", (0.7, 0.7)), ("sa_learned", (0.6, 0.6))):
        runs += seeds("optimizer_bf16", model, accuracies, recipe="paper")
    assert verdict("A5", runs).status == "undecided"


def test_the_sinusoidal_claim_compares_the_sign_with_learned_encodings(verdict, tmp_path):
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


@pytest.mark.parametrize(
    ("share", "residual", "status"), [(-0.2, -0.2, "holds"), (0.2, 0.2, "does not hold"), (-0.2, 0.2, "does not hold")]
)
def test_the_sinusoidal_claim_compares_both_measures_with_learned_encodings(tmp_path, share, residual, status):
    runs = [
        probed(tmp_path, row(f"{name}_bf16", model, 0.8, seed), conv3=[0.5 + of_share + 0.01 * seed] * 6,
               residual=[0.5 + of_residual + 0.01 * seed] * 6)
        for name, model, of_share, of_residual in (
            ("table1", "sa_learned", -0.2, -0.2), ("encodings", "sa_sinusoidal", share, residual)
        ) for seed in range(3)
    ]  # fmt: skip
    (verdict,), _ = judge([CLAIMS["R2"]], Evidence(tmp_path, runs), DECIDERS)
    assert verdict.parts[1].status == status


def test_probe_claims_are_judged_by_layer_and_seed(verdict, tmp_path):
    small = [row("small_bf16", "sa_quadratic", 0.9, seed, scale="small", run=f"small/{seed}") for seed in (0, 1)]
    probed(tmp_path, small[0], radius_50=[1, 1.2, 1.1, 1.3, 2, 3])
    assert verdict("H1", small).status == "undecided", "one seed of two"
    probed(tmp_path, small[1], radius_50=[1, 1.2, 1.1, 1.1, 2, 3])
    assert verdict("H1", small).status == "does not hold", "layer 4 of the second seed"
    learned = probed(tmp_path, row("small_bf16", "sa_learned", 0.9, scale="small"), one_pixel=[0.1, 0.6, 0.7, 0, 0, 0])
    assert verdict("H2", [learned]).status == "holds"
    content = probed(tmp_path, row("table1_bf16", "sa_learned_content", 0.9), by_content=[0.9, 0.9, 0.9, 0.9, 0.9, 0.5])
    assert verdict("H4", [content]).status == "does not hold"
    wide = probed(tmp_path, row("encodings_16_heads_bf16", "sa_quadratic", 0.9), radius_50=[1, 1, 2, 2, 2, 1])
    assert [part.status for part in verdict("H3", [wide]).parts] == ["holds", "not run"]


def test_the_theorem_claim_needs_unchanged_predictions_in_every_network(verdict, tmp_path):
    run = row("quarter", "resnet18", 0.8)
    (tmp_path / "runs" / run["run"]).mkdir(parents=True)
    (tmp_path / "theorem").mkdir()
    found = {"dirty": False, "images": 10, "predictions_changed": 0, "largest_difference": 1e-6, "largest_logit": 8.0}
    (tmp_path / "runs" / run["run"] / "conversion.json").write_text(json.dumps(found))
    assert [part.status for part in verdict("T1", [run]).parts] == ["holds", "not run"]
    network = {"model": "x", "images": 10, "predictions_changed": 0, "largest_difference": 1e-6, "logits_range": 0.5}
    for rows_of_sweep, status in (
        ([network] * 20, "holds"),
        ([network] * 19 + [{"model": "y", "refused": "no"}], "undecided"),
        ([network] * 19 + [network | {"predictions_changed": 1}], "does not hold"),
        ([network] * 19 + [network | {"logits_range": 1e-3}], "does not hold"),
    ):
        (tmp_path / "theorem/sweep.json").write_text(json.dumps({"rows": rows_of_sweep}))
        assert verdict("T1", [run]).status == status
    (tmp_path / "theorem/sweep.json").write_text('{"rows": [{}]}')
    errors = judge([CLAIMS["T1"]], Evidence(tmp_path, [run]), DECIDERS)[1]
    assert str(errors[0]).startswith(f"{tmp_path}/theorem/sweep.json lacks")


def test_the_convolutional_claim_is_judged_for_each_encoding(tmp_path):
    runs = [
        probed(tmp_path, row("table1_bf16", model, 0.8, seed), conv3=[0.5 + by + 0.01 * seed] * 6,
               residual=[0.5 - by - 0.01 * seed] * 6)
        for model, by in (("sa_quadratic", 0.2), ("sa_learned", -0.2)) for seed in range(3)
    ]  # fmt: skip
    claim = Claim(CLAIMS["L1"] | {"encodings": ["sa_quadratic", "sa_learned", "sa_distance"]})
    (verdict,), _ = judge([claim], Evidence(tmp_path, runs), DECIDERS)
    assert [part.status for part in verdict.parts] == ["holds", "does not hold", "not run"]
    assert "by layer +0.21 [+0.19, +0.23], +0.21" in verdict.parts[0].text
    assert verdict.parts[0].text.startswith("`sa_quadratic`, all images: ")


@pytest.mark.parametrize(("residual_falls_by", "status"), [(0.2, "holds"), (0.0, "undecided"), (-0.2, "does not hold")])
def test_a_larger_convolution_share_decides_only_with_a_smaller_residual(tmp_path, residual_falls_by, status):
    runs = [
        probed(tmp_path, row("table1_bf16", "sa_quadratic", 0.8, seed), conv3=[0.7 + 0.01 * seed] * 6,
              residual=[0.5 - residual_falls_by + 0.01 * (seed - 1)] * 6)
        for seed in range(3)
    ]  # fmt: skip
    claim = Claim(CLAIMS["L1"] | {"encodings": ["sa_quadratic"]})
    (verdict,), _ = judge([claim], Evidence(tmp_path, runs), DECIDERS)
    assert verdict.status == status


def test_the_accuracy_claim_counts_only_attention_and_names_the_best_so_far(verdict):
    small = {"scale": "small"}
    control = row("small_bf16", "conv3x3", 0.95, **small)
    best = row("small_bf16", "sa_quadratic", 0.93, **small)
    assert verdict("V1", [control, best]).number == "best so far, `sa_quadratic`: 93.00%, n=1 (bf16)"
    assert verdict("V1", [control, best]).status == "undecided"
    assert verdict("V1", [control, best | {"test_acc": 0.938}]).status == "holds"
    assert verdict("V1", [best | {"test_acc": 0.938, "holdout": 0.1}]).status == "not run"


def test_the_locality_and_sharing_claim_needs_every_model(verdict):
    by_model = (("conv3x3", 0.04), ("mlp_mixer", 0.02), ("locally_connected", 0))
    runs = [run for model, by in by_model for run in seeds("mixers_bf16", model, higher(by), fraction=0.25)]
    found = verdict("W1", runs)
    assert [part.status for part in found.parts] == ["holds", "holds", "not run"]
    assert found.status == "undecided"
    more = seeds("mixers_fp32", "conv3x3", (*higher(0.06), 0.86), fraction=0.25, precision="fp32")
    assert verdict("W1", runs + more).parts == found.parts, "one precision for the whole order"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1", "is not a list of claims"),
        ("- {id: X}", "claim X lacks claim, source"),
        ("- {id: X, claim: c, source: s, decided_by: d, holds_if: h, decide: guess, command: c, cost: c}", "'guess'"),
        ("[", "has unexpected content"),
        (
            f"- {{{FIELDS}, parts: [{{ours: a/b, theirs: c/d, seeds: 3, show: true}}]}}",
            "claim X: a part has ours, seeds, theirs",
        ),
        (f"- {{{FIELDS}}}\n- {{{FIELDS}}}", "several claims are called X"),
        (f"- {{{FIELDS}, cost: null}}".replace("cost: c, ", ""), "claim X: cost must be text"),
    ],
)
def test_an_invalid_claims_file_is_a_one_line_error(tmp_path, text, complaint):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(FileError, match=re.escape(complaint)) as refused:
        read_claims(tmp_path / "claims.yaml", DECIDERS)
    assert "\n" not in str(refused.value)


def test_damaged_evidence_is_named_and_other_claims_are_still_judged(tmp_path):
    run = row("table1_bf16", "sa_learned_content", 0.8)
    folder = tmp_path / "runs" / run["run"]
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text("{")
    runs = [run, *seeds("table1_bf16", "conv3x3", LOW), *seeds("table1_bf16", "sa_quadratic", higher(0))]
    verdicts, errors = judge([CLAIMS["H4"], CLAIMS["A1"]], Evidence(tmp_path, runs), DECIDERS)
    assert [verdict.status for verdict in verdicts] == ["undecided", "holds"]
    assert str(folder / "probe.json") in str(errors[0])
    assert "its evidence is damaged" in claims_page(verdicts)
    lacking = Claim({key: value for key, value in CLAIMS["A1"].items() if key != "margin"})
    incomplete = [{key: value for key, value in one.items() if key != "holdout"} for one in runs[1:]]
    assert "claim A1: its fields" in str(judge([CLAIMS["A1"]], Evidence(tmp_path, incomplete), DECIDERS)[1][0])
    assert "claim A1 lacks margin" in str(judge([lacking], Evidence(tmp_path, runs), DECIDERS)[1][0])


def test_readme_table_lists_only_readme_claims_with_links(verdict):
    line = claims_table([verdict("A1"), verdict("A4")]).splitlines()
    assert len(line) == 3
    assert line[2].endswith("| **not run** |  | [A1](results/claims.md#a1) |")
