"""Decide claims about accuracy: functions from a claim and the runs to the claim's parts.

`DECIDERS` lists them by their names in results/claims.yaml.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from attnconv.errors import UserError
from attnconv.report.claims import FAILS, HOLDS, NOT_RUN, UNDECIDED, Claim, Decide, Part, Verdict, judge, read_claims
from attnconv.report.comparisons import REFERENCE, SURE, ByBlock, Row, between, share_of_images
from attnconv.report.evidence import PRECISIONS, Arm, Contrast, Evidence
from attnconv.report.network_deciders import NETWORK_DECIDERS, change_in_training
from attnconv.report.protocols import Protocol, protocols
from attnconv.report.stats import Estimate, holm, sign

STEPS_A_PASS = 391  # over all images, at the batch size of recipe=modern
TABLE1_SEEDS = 3  # a side that two models take in table1 counts from this many seeds on


def within(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if the whole interval of each difference is within the margin."""

    def status(contrast: Contrast) -> str:
        interval = contrast.gap.interval
        if interval is None:
            return UNDECIDED
        return HOLDS if interval.within(claim["margin"]) else FAILS if interval.outside(claim["margin"]) else UNDECIDED

    return [compared(part, contrast, status) for part, contrast in contrasts(claim, evidence)]


def above(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if each difference is above 0, with Holm's correction over the deciding ones."""
    found = list(contrasts(claim, evidence))
    deciding = [(part, contrast) for part, contrast in found if not part.get("shown", False)]
    sure: dict[int, bool] = {}
    for pick in (lambda contrast: contrast, lambda contrast: contrast.other):  # what decides, and what may contradict
        tested = [(part, pick(contrast)) for part, contrast in deciding if contrast]
        enough = [one.gap.estimate for part, one in tested if one and one.seeds >= part["seeds"]]
        sure |= significant(enough, len(deciding))

    def status(contrast: Contrast) -> str:
        estimate = contrast.gap.estimate
        return signed(estimate.value) if sure.get(id(estimate)) else UNDECIDED

    return [compared(part, contrast, status) for part, contrast in found]


def contrasts(claim: Claim, evidence: Evidence) -> Iterator[tuple[dict[str, Any], Contrast | None]]:
    """Yield each comparison of a claim, with lists expanded, and its result."""
    for listed in claim["parts"]:
        keys = ("ours", "theirs", "fraction")
        given = {"fraction": 1.0} | listed
        choices = ([given[key]] if not isinstance(given[key], list) else given[key] for key in keys)
        for chosen in itertools.product(*choices):
            part = given | dict(zip(keys, chosen, strict=True))
            where = {"fraction": float(part["fraction"]), "scale": part.get("scale", "mini")}
            yield part, evidence.contrast(Arm.parse(part["ours"], **where), Arm.parse(part["theirs"], **where))


def compared(part: dict[str, Any], contrast: Contrast | None, status: Callable[[Contrast], str]) -> Part:
    """Return a part for a comparison; it is undecided with too few seeds, and if the two precisions contradict."""
    models = " - ".join(f"`{part[side].partition('/')[2]}`" for side in ("ours", "theirs"))
    label = f"{part['label']}, " if "label" in part else ""
    text = f"{models} ({label}{part.get('scale', 'mini')}, {share_of_images(part['fraction'])})"
    decides = not part.get("shown", False)
    if contrast is None:
        return Part(NOT_RUN, text, decides=decides)
    few = contrast.seeds < part["seeds"]
    text = f"{text}: {contrast}" + (f", {part['seeds']} are needed" if few else "")
    verdicts = {status(one) for one in (contrast, contrast.other) if one and one.seeds >= part["seeds"]}
    verdict = UNDECIDED if few or {HOLDS, FAILS} <= verdicts else status(contrast)
    return Part(verdict, text, _all_folders(contrast), decides, contrast.gap.value)


def _all_folders(contrast: Contrast) -> tuple[str, ...]:
    return contrast.folders + (contrast.other.folders if contrast.other else ())


def significant(known: list[Estimate], family: int) -> dict[int, bool]:
    """Return for each estimate, by its id(), whether it is significant with Holm's correction over the family.

    Args:
        family: number of comparisons. Those that have not been made count with p = 1, so that making them later
            cannot take a verdict back.
    """
    tested = [(estimate, estimate.p) for estimate in known if estimate.p is not None]
    adjusted = holm([p for _, p in tested] + [1.0] * (family - len(tested)))
    return {id(estimate): p < SURE for (estimate, _), p in zip(tested, adjusted, strict=False)}


def signed(value: float) -> str:
    """Return the verdict of a significant value on the claim that it is above 0."""
    return HOLDS if value > 0 else FAILS


def gap_closes(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if more images close the gap to the control, for each attention model and protocol, by Holm.

    The slope counts if enough seeds have run at the smallest and the largest fraction that the claim names.
    """
    of_claim = {name: _protocol(name, protocols(evidence.rows)) for name in claim["protocols"]}
    slopes = {
        (name, model): protocol.slope(model)
        for name, protocol in of_claim.items()
        for model in claim["models"]
        if protocol is not None
    }
    known = [
        one for (name, model), one in slopes.items() if one is not None and not _lacks(claim, of_claim[name], model)
    ]
    sure = significant(known, len(claim["protocols"]) * len(claim["models"]))
    parts = []
    for name, model in itertools.product(claim["protocols"], claim["models"]):
        protocol, estimate = of_claim[name], slopes.get((name, model))
        what = f"`{model}` - `{REFERENCE}` after {protocol.title if protocol else _title(name)}"
        if protocol is None or estimate is None:
            parts.append(Part(NOT_RUN, what))
            continue
        ends = between(estimate.interval(), "+.3f")
        slope = f"{estimate.value:+.3f}{ends} logits per doubling, n={estimate.n}"
        status = signed(estimate.value) if sure.get(id(estimate)) else UNDECIDED
        images = [rows[0]["train_images"] for rows in protocol.paired(model).values()]
        text = f"{what}, {min(images):,} to {max(images):,} images: {slope} ({protocol.precision})"
        text += _lacks(claim, protocol, model)
        parts.append(Part(status, text, _folders(protocol, model), value=estimate.value))
    return parts


def _lacks(claim: Claim, protocol: Protocol | None, model: str) -> str:
    """Return ", ... are needed" if a slope lacks seeds, or one of the fractions that the claim names; else nothing."""
    paired = {} if protocol is None else protocol.paired(model)
    seeds = [len({row["seed"] for row in paired.get(fraction, [])}) for fraction in claim["fractions"]]
    if min(seeds) >= claim["seeds"]:
        return ""
    return f", {claim['seeds']} seeds at {' and '.join(map(str, claim['fractions']))} of the images are needed"


def _title(name: str) -> str:
    """Return the title of a protocol that was not run."""
    equal, _, epochs = name.partition("_")
    return f"{epochs} epochs" if equal == "epochs" else f"{STEPS_A_PASS * int(epochs):,} steps"


def _protocol(name: str, found: list[Protocol]) -> Protocol | None:
    """Return the protocol called EQUAL_EPOCHS, in the precision with more runs."""
    equal, _, epochs = name.partition("_")
    wanted = equal, int(epochs), "mini", "modern"
    alike = [one for one in found if (one.equal, one.epochs, one.scale, one.recipe) == wanted]
    return max(alike, key=lambda one: (len(one.rows), -PRECISIONS.index(one.precision)), default=None)


def _folders(protocol: Protocol, model: str) -> tuple[str, ...]:
    rows = (row for row in protocol.rows if row["model"] in (model, REFERENCE))
    return tuple(dict.fromkeys(row["run"].rpartition("/frac")[0] for row in rows))


def same_order(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if the sign of a difference under the paper's recipe is the same as in table1, in all seeds."""
    parts = []
    for other in ("sa_quadratic", REFERENCE):
        text = f"`sa_learned` - `{other}`"
        learned, against = (Arm(("optimizer",), model, recipe="paper") for model in ("sa_learned", other))
        known = evidence.contrast(Arm(("table1",), "sa_learned"), Arm(("table1",), other))
        contrast = evidence.contrast(learned, against)
        if known is None or contrast is None:
            parts.append(Part(NOT_RUN, text))
            continue
        sides = set()
        for one in (contrast, contrast.other):
            if one and one.seeds >= claim["seeds"]:
                a, b = (evidence.runs(arm, one.precision) for arm in (learned, against))
                sides |= {sign(a[key]["test_acc"] - b[key]["test_acc"]) for key in a if key in b}
        few = contrast.seeds < claim["seeds"]
        side = sure_sign(known, TABLE1_SEEDS)
        undecided = few or not side or len(sides) > 1 or 0 in sides
        status = UNDECIDED if undecided else HOLDS if sides == {side} else FAILS
        text += f": {contrast}; in table1 {known}"
        parts.append(Part(status, text, _all_folders(contrast)))
    return parts


def sure_sign(contrast: Contrast, seeds: int) -> int:
    """Return the sign of a difference, or 0 if it is not significant, has fewer seeds, or the precisions contradict."""
    p = contrast.gap.estimate.p
    found = sign(contrast.gap.value) if contrast.seeds >= seeds and p is not None and p < SURE else 0
    contradicted = contrast.other is not None and sure_sign(contrast.other, seeds) == -found
    return 0 if contradicted else found


def same_signs(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if sa_sinusoidal is below sa_quadratic, as sa_learned is, and changes in training in the same way."""
    learned, sinusoidal, quadratic = (
        Arm((name,), model)
        for name, model in (("table1", "sa_learned"), ("encodings", "sa_sinusoidal"), ("table1", "sa_quadratic"))
    )
    text, known, contrast = (
        "`sa_sinusoidal` - `sa_quadratic`",
        evidence.contrast(learned, quadratic),
        evidence.contrast(sinusoidal, quadratic),
    )
    if known is None or contrast is None:
        parts = [Part(NOT_RUN, text)]
    else:
        signs = [(sure_sign(known, TABLE1_SEEDS), sure_sign(contrast, claim["seeds"]))]
        parts = [Part(alike(signs), f"{text}: {contrast}; `sa_learned`: {known}", _all_folders(contrast))]
    changes = [change_in_training(name, claim["seeds"], evidence) for name in ("sa_learned", "sa_sinusoidal")]
    text = "; ".join(change.text for change in changes)
    if not all(change.folders for change in changes):
        return [*parts, Part(NOT_RUN, text)]
    signs = list(zip(*(change.signs for change in changes), strict=True))
    return [*parts, Part(alike(signs), text, changes[1].folders)]


def alike(signs: list[tuple[int, int]]) -> str:
    """Return the verdict on the claim that the two signs of each pair are equal; 0 is a sign that is not known."""
    if any(one * other < 0 for one, other in signs):
        return FAILS
    return HOLDS if all(one * other > 0 for one, other in signs) else UNDECIDED


def ordered(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if each model differs from the next one in the order of accuracy, with Holm's correction."""
    arms = [Arm.parse(text, fraction=claim["fraction"]) for text in claim["arms"]]
    by_precision = {precision: {arm: evidence.runs(arm, precision) for arm in arms} for precision in PRECISIONS}
    # One precision for all, because accuracies of two precisions are never compared.
    precision = max(PRECISIONS, key=lambda precision: _completeness(by_precision[precision].values()))
    means = {
        arm: fmean(row["test_acc"] for row in runs.values()) for arm, runs in by_precision[precision].items() if runs
    }
    known = sorted(means, key=lambda arm: -means[arm])
    pairs = [(pair, evidence.contrast(*pair, [precision])) for pair in itertools.pairwise(known)]
    tested = [c.gap.estimate for _, c in pairs if c is not None and c.seeds >= claim["seeds"]]
    sure = significant(tested, len(arms) - 1)
    parts = []
    for (ours, theirs), contrast in pairs:
        apart = contrast is not None and sure.get(id(contrast.gap.estimate)) and contrast.gap.value > 0
        text = f"`{ours.model}` - `{theirs.model}`: {contrast or 'no pairs'}"
        if contrast is not None and contrast.seeds < claim["seeds"]:
            text += f", {claim['seeds']} are needed"
        parts.append(Part(HOLDS if apart else UNDECIDED, text, contrast.folders if contrast else ()))
    return parts + [Part(NOT_RUN, f"`{arm.model}`") for arm in arms if arm not in means]


def _completeness(arms: Iterable[ByBlock]) -> tuple[int, int]:
    """Return how many arms have runs, and how many runs the arm with the fewest has."""
    counts = list(map(len, arms))
    return sum(map(bool, counts)), min(counts)


def reaches(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if an attention-only network reaches an accuracy at scale=small, averaged over its seeds.

    It trains on two cores at most, for fewer epochs than the claim names. The best network counts; a lower best result
    so far does not refute the claim.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in evidence.rows:
        whole = row["data"] == "cifar10" and row["fraction"] == 1 and not row["holdout"]
        short = row["epochs"] < claim["epochs"] and _cores(row) <= 2
        if whole and short and row["scale"] == "small" and row["model"].startswith("sa_"):
            groups.setdefault((row["run"].rpartition("/seed")[0], row["precision"]), []).append(row)
    if not groups:
        return [Part(NOT_RUN, f"{claim['accuracy']:.1%} at scale=small")]
    runs = max(groups.values(), key=lambda rows: fmean(row["test_acc"] for row in rows))
    accuracy = fmean(row["test_acc"] for row in runs)
    status = HOLDS if accuracy >= claim["accuracy"] else UNDECIDED
    of_all = f"of {len(groups)} " if len(groups) > 1 else ""
    text = f"best {of_all}so far, `{runs[0]['model']}`: {accuracy:.2%}, n={len(runs)} ({runs[0]['precision']})"
    return [Part(status, text, tuple(row["run"] for row in runs))]


def _cores(row: Row) -> float:
    """Return the number of CPU threads that trained a run; infinity for a GPU."""
    threads = re.search(r", (\d+) threads?$", row["device"])
    return int(threads[1]) * (row.get("processes") or 1) if threads else math.inf


def by_hand(claim: Claim, evidence: Evidence) -> list[Part]:
    """Return a result that was found outside of this repository, without a file here."""
    return [Part(claim["verdict"], claim["number"])]


DECIDERS: dict[str, Decide] = {
    function.__name__: function
    for function in (within, above, gap_closes, same_order, same_signs, ordered, reaches, by_hand)
} | NETWORK_DECIDERS


def judged(results: Path, rows: list[Row]) -> tuple[list[Verdict], list[UserError]]:
    """Return the verdicts on all claims of results/claims.yaml, and the problems with files (see `judge`)."""
    return judge(read_claims(results / "claims.yaml", DECIDERS), Evidence(results, rows), DECIDERS)
