"""Verdicts on trained networks: probes and conversions against the thresholds of results/claims.yaml."""

import json

import pytest
from fabricated import CLAIMS, probed, row, verdict
from scipy.stats import ttest_1samp

from attnconv.report.claims import Claim, judge, said
from attnconv.report.deciders import DECIDERS
from attnconv.report.evidence import Evidence
from attnconv.report.examined import CONVERSION, KEYS


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
    assert verdict("R2", runs, tmp_path).parts[1].status == status


def test_probe_claims_are_judged_by_layer_and_seed(tmp_path):
    small = [row("small_bf16", "sa_quadratic", 0.9, seed, scale="small", run=f"small/{seed}") for seed in (0, 1)]
    probed(tmp_path, small[0], radius_50=[1, 1.2, 1.1, 1.3, 2, 3])
    assert verdict("H1", small, tmp_path).status == "undecided", "one seed of two"
    probed(tmp_path, small[1], radius_50=[1, 1.2, 1.1, 1.1, 2, 3])
    assert verdict("H1", small, tmp_path).status == "does not hold", "layer 4 of the second seed"
    learned = probed(tmp_path, row("small_bf16", "sa_learned", 0.9, scale="small"), one_pixel=[0.1, 0.6, 0.7, 0, 0, 0])
    assert verdict("H2", [learned], tmp_path).status == "holds"
    half = probed(tmp_path, row("small_bf16", "sa_learned", 0.9, 1, scale="small"), one_pixel=[0, 0.6, 0.4, 0, 0, 0])
    assert verdict("H2", [half], tmp_path).status == "holds", "half of the heads are enough"
    content = probed(tmp_path, row("table1_bf16", "sa_learned_content", 0.9), by_content=[0.9, 0.9, 0.9, 0.9, 0.9, 0.5])
    assert verdict("H4", [content], tmp_path).status == "does not hold"
    wide = probed(tmp_path, row("encodings_16_heads_bf16", "sa_quadratic", 0.9), radius_50=[1, 1, 2, 2, 2, 1])
    assert [part.status for part in verdict("H3", [wide], tmp_path).parts] == ["holds", "not run"]


@pytest.mark.parametrize(
    ("claim", "model", "heads"),
    [("H1", "sa_quadratic", {"radius_50": [1, 1, 1, 2, 2, 2]}), ("H2", "sa_learned", {"one_pixel": [0.9] * 6})],
)
def test_probes_at_mini_scale_are_shown_and_do_not_decide(tmp_path, claim, model, heads):
    runs = [probed(tmp_path, row("table1_bf16", model, 0.8, seed), **heads) for seed in (0, 1)]
    found = verdict(claim, runs, tmp_path)
    assert (found.status, [part.decides for part in found.parts]) == ("not run", [True, False])
    assert said(found.parts[1]) == "for comparison"
    assert "mini" in found.parts[1].text


def test_the_theorem_claim_needs_unchanged_predictions_in_every_network(tmp_path):
    run = row("quarter", "resnet18", 0.8)
    (tmp_path / "runs" / run["run"]).mkdir(parents=True)
    (tmp_path / "theorem").mkdir()
    found = dict.fromkeys(KEYS[CONVERSION], 1) | {"dirty": False, "predictions_changed": 0, "largest_difference": 1e-6}
    (tmp_path / "runs" / run["run"] / "conversion.json").write_text(json.dumps(found))
    assert [part.status for part in verdict("T1", [run], tmp_path).parts] == ["holds", "not run"]
    network = {"model": "x", "images": 10, "predictions_changed": 0, "largest_difference": 1e-6, "logits_range": 0.5}
    for rows_of_sweep, status in (
        ([network] * 20, "holds"),
        ([network] * 19 + [{"model": "y", "refused": "no"}], "undecided"),
        ([network] * 19 + [network | {"predictions_changed": 1}], "does not hold"),
        ([network] * 19 + [network | {"logits_range": 1e-3}], "does not hold"),
    ):
        (tmp_path / "theorem/sweep.json").write_text(json.dumps({"rows": rows_of_sweep, "dirty": False}))
        assert verdict("T1", [run], tmp_path).status == status
        (tmp_path / "theorem/sweep.json").write_text(json.dumps({"rows": rows_of_sweep, "dirty": True}))
        assert verdict("T1", [run], tmp_path).parts[1].status == "not run", "uncommitted changes"
    (tmp_path / "theorem/sweep.json").write_text('{"rows": [{}], "dirty": false}')
    errors = judge([CLAIMS["T1"]], Evidence(tmp_path, [run]), DECIDERS)[1]
    assert str(errors[0]).startswith(f"{tmp_path}/theorem/sweep.json lacks")


def test_the_convolutional_claim_is_judged_for_each_encoding(tmp_path):
    runs = [
        probed(tmp_path, row("table1_bf16", model, 0.8, seed), conv3=[0.5 + by + 0.01 * seed] * 6,
               residual=[0.5 - by - 0.01 * seed] * 6)
        for model, by in (("sa_quadratic", 0.2), ("sa_learned", -0.2)) for seed in range(3)
    ]  # fmt: skip
    claim = Claim(CLAIMS["L1"] | {"encodings": ["sa_quadratic", "sa_learned", "sa_distance"]})
    (found,), _ = judge([claim], Evidence(tmp_path, runs), DECIDERS)
    assert [part.status for part in found.parts] == ["holds", "does not hold", "not run"]
    assert "by layer +0.21 [+0.19, +0.23], +0.21" in found.parts[0].text
    assert found.parts[0].text.startswith("`sa_quadratic`, all images: ")


def test_older_probes_do_not_hide_newer_ones(tmp_path):
    new, old = (
        [probed(tmp_path, row(f"table1_{precision}", "sa_quadratic", 0.8, seed, precision=precision),
                conv3=[0.6 + 0.01 * seed] * 6, residual=[0.4 - 0.01 * seed] * 6) for seed in range(3)]
        for precision in ("fp32", "bf16")
    )  # fmt: skip
    for run in old:
        path = tmp_path / "runs" / run["run"] / "probe.json"
        probe = json.loads(path.read_text())
        for layer in probe["layers"]:
            del layer["joint_residual"]
        path.write_text(json.dumps(probe))
    assert "n=3 (fp32)" in verdict("L1", new + old, tmp_path).parts[0].text


@pytest.mark.parametrize(("residual_falls_by", "status"), [(0.2, "holds"), (0.0, "undecided"), (-0.2, "does not hold")])
def test_a_larger_convolution_share_decides_only_with_a_smaller_residual(tmp_path, residual_falls_by, status):
    runs = [
        probed(tmp_path, row("table1_bf16", "sa_quadratic", 0.8, seed), conv3=[0.7 + 0.01 * seed] * 6,
              residual=[0.5 - residual_falls_by + 0.01 * (seed - 1)] * 6)
        for seed in range(3)
    ]  # fmt: skip
    claim = Claim(CLAIMS["L1"] | {"encodings": ["sa_quadratic"]})
    (found,), _ = judge([claim], Evidence(tmp_path, runs), DECIDERS)
    assert found.status == status


@pytest.mark.parametrize("changes", [(0.2, 0.201), (0.1, 0.15, 0.22)])
def test_a_change_in_training_needs_three_seeds_and_significance_of_both_measures_together(tmp_path, changes):
    """Alone, each measure has p < 0.05, but not after Holm's correction for two, or in two seeds only."""
    p = ttest_1samp(changes, 0).pvalue
    assert p < 0.025 if len(changes) == 2 else 0.025 < p < 0.05
    runs = [
        probed(tmp_path, row("table1_bf16", "sa_quadratic", 0.8, seed), conv3=[0.5 + change] * 6,
               residual=[0.5 - change] * 6)
        for seed, change in enumerate(changes)
    ]  # fmt: skip
    claim = Claim(CLAIMS["L1"] | {"encodings": ["sa_quadratic"]})
    (found,), _ = judge([claim], Evidence(tmp_path, runs), DECIDERS)
    assert found.status == "undecided"


@pytest.mark.parametrize(
    ("accuracies", "statuses"),
    [
        ({(2, 4): 0.95, (2, 8): 0.95, (2, 12): 0.95, (2, 16): 0.9}, ["does not hold"]),
        ({(2, 4): 0.95, (2, 16): 0.95}, ["undecided"]),
        ({(2, 4): 0.95, (2, 8): 0.95, (2, 12): 0.95, (2, 16): 0.91, (2, 20): 0.5}, ["holds"]),
        ({(1, 4): 0.95, (2, 4): 0.95, (2, 16): 0.6}, ["for comparison", "does not hold"]),
        ({(1, 4): 0.5}, ["for comparison", "not run"]),
        ({}, ["not run"]),
    ],
)
def test_reach_is_judged_for_stacked_layers_up_to_the_limit(tmp_path, accuracies, statuses):
    lines = [f"local_attention,{layers},{distance},{8 * layers},0.5,fp32,{accuracy}"
             for (layers, distance), accuracy in accuracies.items()]  # fmt: skip
    text = "\n".join(["model,layers,distance,limit,counting,precision,test_acc", "conv3x3,1,4,8,0.5,fp32,0.5", *lines])
    (tmp_path / "long_range.csv").write_text(text + "\n")
    found = verdict("S3", (), tmp_path)
    assert [said(part) for part in found.parts] == statuses
    assert found.status == statuses[-1]
    if (2, 16) in accuracies and (1, 4) in accuracies:
        of_two = "`local_attention`, 2 layers, receptive field of 16 pixels: 95.0% at 4, 60.0% at 16, n=1 (fp32)"
        assert found.parts[1].text == f"{of_two}, not run at 8, 12"


@pytest.mark.parametrize(
    ("measured", "statuses"),
    [
        (("2.1 2 1.9", "1.2 1.3 0.7", "1.4 1.5 1.6"), ["holds", "does not hold", "holds"]),
        (("2.1 2 1.9", "1.1 1.2 1", "1.4 1.5"), ["holds", "undecided", "undecided"]),
        (("2.1", "1.2", "1.4"), ["undecided"] * 3),
    ],
)
def test_exponents_are_compared_with_theory(tmp_path, measured, statuses):
    rows = ["model,growth_theory,growth_measured,scale,parameters,flops_paper,flops_full,activation_bytes,shift_error"
            ",permutation_error,field_theory,field_effective"]  # fmt: skip
    rows += [f"{model},{exponents},paper,1,1,1,1,0,0,3,3" for model, exponents in zip(
        ("sa_learned_content,2", "local_attention,1", "sa_quadratic,1.5"), measured, strict=True)]  # fmt: skip
    (tmp_path / "models.csv").write_text("\n".join(rows) + "\n")
    found = verdict("C1", (), tmp_path)
    assert [part.status for part in found.parts] == statuses
    assert found.status == ("does not hold" if "does not hold" in statuses else "undecided")


def test_one_wide_head_does_not_refute_that_early_heads_are_tight(tmp_path):
    small = [row("small_bf16", "sa_quadratic", 0.9, seed, scale="small", run=f"small/{seed}") for seed in (0, 1)]
    for run in small:
        probed(tmp_path, run, radius_50=[1, 1, 1, 3, 3, 3])
        path = tmp_path / "runs" / run["run"] / "probe.json"
        found = json.loads(path.read_text())
        first = next(head for head in found["heads"] if (head["layer"], head["weights"]) == (1, "trained"))
        found["heads"] += [first | {"head": 2}, first | {"head": 3, "radius_50": 50}]
        path.write_text(json.dumps(found))
    assert verdict("H1", small, tmp_path).status == "holds"
