"""The claims file, all claims on the page and in README, and errors in their evidence."""

import re

import pytest
from fabricated import CLAIMS, LOW, RESULTS, higher, row, seeds, verdict

from attnconv.config import CONFIGS
from attnconv.files import FileError, read_yaml
from attnconv.report.claims import (
    FAILS,
    NOT_RUN,
    Claim,
    Part,
    Verdict,
    claims_page,
    claims_table,
    judge,
    read_claims,
)
from attnconv.report.deciders import DECIDERS
from attnconv.report.evidence import Evidence
from attnconv.sweeps.study import rows
from conftest import REPOSITORY

FAMILIES = {"T": 2, "A": 5, "H": 4, "L": 3, "R": 2, "D": 2, "S": 3, "G": 1, "N": 1, "W": 1, "C": 1, "P": 1, "V": 1}
IDS = [f"{letter}{number}" for letter, count in FAMILIES.items() for number in range(1, count + 1)]
FIELDS = "id: X, claim: c, source: s, decided_by: d, holds_if: h, decide: above, command: c, cost: c"


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


def test_claims_without_runs_state_their_cost():
    for name in IDS:
        if name not in ("C1", "P1"):
            found = verdict(name)
            assert found.status == "not run", name
            assert found.verdict == f"not run: {CLAIMS[name]['cost']}"
    assert verdict("P1").status == "does not hold"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1", "is not a list of claims"),
        ("- {id: X}", "claim X lacks claim, source"),
        ("- {id: X, claim: c, source: s, decided_by: d, holds_if: h, decide: guess, command: c, cost: c}", "'guess'"),
        ("[", "has unexpected content"),
        (f"- {{{FIELDS}, note: a, note: b}}", "has unexpected content (note twice (line 1)"),
        (
            f"- {{{FIELDS}, parts: [{{ours: a/b, theirs: c/d, seeds: 3, show: true}}]}}",
            "claim X: a part has ours, seeds, theirs",
        ),
        (f"- {{{FIELDS}}}\n- {{{FIELDS}}}", "several claims are called X"),
        (f"- {{{FIELDS}, verdict: Holds}}", "claim X: verdict 'Holds' is not one of holds, does not hold"),
        (f"- {{{FIELDS}, parts: [{{ours: tabel1/conv3x3, theirs: table1/vit, seeds: 3}}]}}", "did you mean 'table1'?"),
        (f"- {{{FIELDS}, parts: [{{ours: table1/conv3x3, theirs: table1/vti, seeds: 3}}]}}", "model 'vti' does not"),
        (f"- {{{FIELDS}, arms: [table1/conv3x3, mixer/vit]}}", "experiment 'mixer' does not exist"),
        (
            f"- {{{FIELDS}, parts: [{{ours: table1/vit, theirs: table1/vit, seeds: 3, scale: Mini}}]}}",
            "scale 'Mini' does not exist; did you mean 'mini'?",
        ),
        (f"- {{{FIELDS}, cost: null}}".replace("cost: c, ", ""), "claim X: cost must be text"),
        (f"- {{{FIELDS}, note: null}}", "claim X: note must be text"),
        (f"- {{{FIELDS}, reedme: true}}", "claim X has an unknown key reedme; did you mean 'readme'?"),
        (f"- {{{FIELDS}, readme: 1}}", "claim X: readme must be true or false, not 1"),
        (f"- {{{FIELDS}, tolerance: small}}", "claim X: tolerance must be a number, not 'small'"),
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


def test_readme_table_lists_only_readme_claims_with_links():
    line = claims_table([verdict("A1"), verdict("A4")]).splitlines()
    assert len(line) == 3
    assert line[2].startswith("| [A1](results/claims.md#a1) |")
    assert line[2].endswith("| **not run** |  |")
    partial = Verdict(CLAIMS["L1"], [Part(FAILS, "one"), Part(NOT_RUN, "other")])
    assert "| **does not hold**; some parts not run | one |" in claims_table([partial])


def test_notes_on_a_claim_are_on_its_page():
    noted = [claim for claim in CLAIMS.values() if "note" in claim]
    page = claims_page([Verdict(claim, []) for claim in noted])
    assert noted
    for claim in noted:
        assert f"- Note: {claim['note']}\n" in page
