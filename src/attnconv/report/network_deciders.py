"""Decide claims about networks, from conversions, probes, measured costs and the distance task."""

from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from attnconv.errors import counted
from attnconv.files import reading
from attnconv.report.claims import FAILS, HOLDS, NOT_RUN, UNDECIDED, Claim, Decide, Part
from attnconv.report.comparisons import SURE, Row, between, share_of_images
from attnconv.report.evidence import OF_STUDY, SIXTEEN_HEADS, Arm, Evidence
from attnconv.report.examined import CONVERSION, is_corrected, read_examined, read_sweep
from attnconv.report.long_range import read_long_range
from attnconv.report.stats import Estimate, holm, mean, sign
from attnconv.report.tables import read_models, read_table
from attnconv.runs.bounds import AMOUNT

RESIDUAL = "joint_residual"  # of the lemma, over all queries jointly
EARLY, LATE = (1, 2, 3), (4, 5, 6)  # layers
MAPS = (("small", "small"), ("table1", "mini"))  # experiments and their scales, for claims about where heads look
SCALES = {"largest_logit": "the largest logit", "logits_range": "the range of a logit"}
Probes = list[tuple[Row, dict[str, Any]]]


def converted(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if no converted network changes a prediction, and logits stay within the tolerance.

    These are networks of runs, and timm models that a sweep converted; refused models do not count.
    """
    trained = [found for _, found in read_examined(evidence.results, evidence.rows, CONVERSION)]
    done = [row for row in read_sweep(evidence.results) if "refused" not in row]
    tolerance, networks = claim["tolerance"], claim["networks"]
    with reading(evidence.results / "theorem/sweep.json"):
        return [
            _conversion("trained networks, float32", trained, "largest_logit", 1, tolerance),
            _conversion("timm networks, random weights, float64", done, "logits_range", networks, tolerance),
        ]


def _conversion(what: str, found: list[dict[str, Any]], scale: str, needed: int, tolerance: float) -> Part:
    """Return a part for conversions; differences of logits are relative to `scale`, a name in SCALES."""
    if not found:
        return Part(NOT_RUN, what)
    changed = sum(one["predictions_changed"] for one in found)
    worst = max(one["largest_difference"] / one[scale] for one in found)
    fine, few = changed == 0 and worst < tolerance, len(found) < needed
    text = (
        f"{what}: {changed} predictions of {sum(one['images'] for one in found):,} changed, logits differ by at most "
        f"{worst:.1e} of {SCALES[scale]}, n={len(found)}" + (f", {needed} are needed" if few else "")
    )
    return Part(FAILS if not fine else UNDECIDED if few else HOLDS, text)


def error_at_alpha(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if the relative error of a converted layer at an alpha is below the tolerance."""
    path = evidence.results / claim["evidence"]
    if not path.exists():
        return [Part(NOT_RUN, f"alpha = {claim['alpha']}")]
    rows = read_table(path, {"alpha": AMOUNT, "error": AMOUNT}, unique=("alpha",))
    with reading(path):
        error = {row["alpha"]: row["error"] for row in rows}[float(claim["alpha"])]
    text = f"relative error at alpha = {claim['alpha']}: {error:.1e}, n=1"
    return [Part(HOLDS if error < claim["tolerance"] else FAILS, text)]


def early_heads_tight(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if the median 50% radius of each early layer is below that of each late layer, in all seeds.

    The map of scale=small decides, and that of scale=mini is shown.
    """
    parts = []
    for name, scale in MAPS:
        probes = evidence.probes(Arm((name,), "sa_quadratic", scale=scale))
        medians = [_by_layer(found, lambda heads: median(head["radius_50"] for head in heads)) for _, found in probes]
        apart = [max(one[layer] for layer in EARLY) < min(one[layer] for layer in LATE) for one in medians]
        what = f"`sa_quadratic`, {scale}: median 50% radius by layer"
        parts.append(_of_seeds(what, claim["seeds"], probes, medians, apart, decides=scale == "small"))
    return parts


def heads_on_one_pixel(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if at least half of the heads of layers 2 and 3 have a largest probability above 0.5.

    The map of scale=small decides, and that of scale=mini is shown.
    """
    parts = []
    for name, scale in MAPS:
        probes = evidence.probes(Arm((name,), "sa_learned", scale=scale))
        shares = [_by_layer(found, lambda heads: fmean(h["one_pixel"] > 0.5 for h in heads)) for _, found in probes]
        enough = [fmean(one[layer] for layer in (2, 3)) >= 0.5 for one in shares]
        what = f"`sa_learned`, {scale}: share of heads above 0.5 by layer"
        parts.append(_of_seeds(what, claim["seeds"], probes, shares, enough, decides=scale == "small"))
    return parts


def localized_heads_early(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if heads with a 50% radius below 1.5 are more frequent in early layers, with 16 heads."""
    parts = []
    for scale in ("mini", "small"):
        probes = evidence.probes(Arm((SIXTEEN_HEADS[scale],), "sa_quadratic", scale=scale))
        shares = [
            _by_layer(found, lambda heads: fmean(head["radius_50"] < 1.5 for head in heads)) for _, found in probes
        ]
        falls = [fmean(one[layer] for layer in EARLY) > fmean(one[layer] for layer in LATE) for one in shares]
        part = _of_seeds(f"share of localized heads by layer ({scale})", claim["seeds"], probes, shares, falls)
        parts.append(part)
    return parts


def mostly_content(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if more than half of the probabilities' variance depends on the image, in all layers."""
    probes = evidence.probes(Arm(OF_STUDY, "sa_learned_content"))
    shares = [_by_layer(found, lambda heads: fmean(head["by_content"] for head in heads)) for _, found in probes]
    above = [min(one.values()) > 0.5 for one in shares]
    before = [_by_layer(found, lambda heads: fmean(h["by_content"] for h in heads), "initial") for _, found in probes]
    untrained = f" (before training: {_numbers(before)})" if probes else ""
    what = f"`sa_learned_content`, mini: share by content by layer{untrained}"
    return [_of_seeds(what, claim["seeds"], probes, shares, above)]


def more_convolutional(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if training raises the best 3 x 3 share and lowers the joint residual, per encoding, by Holm."""
    changes = [change_in_training(encoding, claim["seeds"], evidence) for encoding in claim["encodings"]]
    return [Part(change.status, change.text, change.folders, value=change.share) for change in changes]


@dataclass(frozen=True)
class Change:
    """How training changes how convolutional a network is, averaged over its layers.

    Args:
        text: what was found.
        folders: of the probed runs; none if there are none.
        share: trained minus initial share of the best 3 x 3 convolution.
        signs: of the changes of that share and of the joint residual; 0 if not significant by Holm, or too few seeds.
    """

    text: str
    folders: tuple[str, ...] = ()
    share: float = 0.0
    signs: tuple[int, int] = (0, 0)

    @property
    def status(self) -> str:
        """Return the verdict: more convolutional by both measures, less by one, or neither significantly."""
        if not self.folders:
            return NOT_RUN
        share, residual = self.signs
        return HOLDS if share > 0 > residual else FAILS if share < 0 or residual > 0 else UNDECIDED


def change_in_training(encoding: str, seeds: int, evidence: Evidence) -> Change:
    """Return how training changes the networks with an encoding of positions; `seeds` are needed for a sign."""
    # Probes before the joint residual measured the shares with a bias.
    probes = evidence.probes(Arm(OF_STUDY, encoding), is_corrected)
    if not probes:
        return Change(f"`{encoding}`")
    share, residual = (mean(_changes(probes, name)) for name in ("conv3", RESIDUAL))
    by_layer = ", ".join(_estimate(mean(change)) for change in zip(*_by_seed(probes, "conv3"), strict=True))
    row, n = probes[0][0], len(probes)
    text = (
        f"`{encoding}`, {share_of_images(row['fraction'])}: 3 x 3 share {_estimate(share)} (by layer {by_layer}), "
        f"joint residual {_estimate(residual)}, n={n} ({row['precision']})"
    )
    if n < seeds:
        text += f", {seeds} are needed"
    signs = (0, 0)
    if n >= seeds and share.p is not None and residual.p is not None:
        of_share, of_residual = (p < SURE for p in holm([share.p, residual.p]))
        signs = (of_share * sign(share.value), of_residual * sign(residual.value))
    return Change(text, tuple(row["run"] for row, _ in probes), share.value, signs)


def _by_seed(probes: Probes, name: str) -> list[list[float]]:
    """Return trained minus initial values by seed and layer."""
    found = []
    for _, probe in probes:
        values = {(row["layer"], row["weights"]): row[name] for row in probe["layers"]}
        layers = sorted({layer for layer, _ in values})
        changes = [(values[layer, "initial"], values[layer, "trained"]) for layer in layers]
        found.append([after - before for before, after in changes if before is not None and after is not None])
    return found


def _changes(probes: Probes, name: str) -> list[float]:
    return [fmean(of_seed) for of_seed in _by_seed(probes, name)]


def _estimate(found: Estimate) -> str:
    return f"{found.value:+.2f}{between(found.interval(), '+.2f')}"


def _by_layer(found: dict[str, Any], statistic: Any, weights: str = "trained") -> dict[int, float]:
    """Return a statistic of the heads of each layer; weights: "initial" or "trained"."""
    heads: dict[int, list[dict[str, Any]]] = {}
    for head in found["heads"]:
        if head["weights"] == weights:
            heads.setdefault(head["layer"], []).append(head)
    return {layer: statistic(of_layer) for layer, of_layer in sorted(heads.items())}


def _numbers(seeds: list[dict[int, float]]) -> str:
    """Return values by seed and layer as text."""
    return "; ".join(" ".join(f"{value:.2f}" for value in by_layer.values()) for by_layer in seeds)


def _of_seeds(
    what: str, needed: int, probes: Probes, values: list[dict[int, float]], fine: list[bool], decides: bool = True
) -> Part:
    """Hold if a condition is true in all seeds."""
    if not probes:
        return Part(NOT_RUN, what, decides=decides)
    few = len(probes) < needed
    text = f"{what}: {_numbers(values)}, n={len(probes)}" + (f", {needed} are needed" if few else "")
    status = UNDECIDED if few else HOLDS if all(fine) else FAILS
    return Part(status, text, tuple(row["run"] for row, _ in probes), decides)


def learns_its_reach(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if the accuracy is above a level at all distances up to the receptive field; the claim names the depth.

    One distance below that level refutes the claim, even if others have not been run.
    """
    path, model, deciding = evidence.results / "long_range.csv", claim["model"], claim["layers"]
    cells: dict[tuple[int, int, str], dict[int, float]] = {}
    if path.exists():
        for row in read_long_range(path):
            if row["model"] == model and row["distance"] <= row["limit"]:
                cell = cells.setdefault((row["layers"], row["limit"], row["precision"]), {})
                cell[row["distance"]] = row["test_acc"]
    parts = []
    for (layers, limit, precision), by_distance in sorted(cells.items()):
        numbers = ", ".join(f"{accuracy:.1%} at {distance}" for distance, accuracy in sorted(by_distance.items()))
        what = f"`{model}`, {counted(layers, 'layer')}, receptive field of {limit} pixels"
        absent = [str(one) for one in claim["distances"] if one <= limit and one not in by_distance]
        lower = min(by_distance.values()) <= claim["accuracy"]
        text = f"{what}: {numbers}, n=1 ({precision})" + (f", not run at {', '.join(absent)}" if absent else "")
        parts.append(Part(FAILS if lower else UNDECIDED if absent else HOLDS, text, decides=layers == deciding))
    known = any(part.decides for part in parts)
    return parts if known else [*parts, Part(NOT_RUN, f"`{model}`, {counted(deciding, 'layer')}")]


def exponents(claim: Claim, evidence: Evidence) -> list[Part]:
    """Hold if all measured exponents of time in the number of pixels are within the margin of the theory."""
    path, needed, parts = evidence.results / "models.csv", claim["repeats"], []
    growth = {row["model"]: row for row in read_models(path)}
    with reading(path):
        for model in claim["models"]:
            theory, measured = growth[model]["growth_theory"], growth[model]["growth_measured"]
            near = [abs(value - theory) <= claim["margin"] for value in measured]
            few = len(measured) < needed
            status = UNDECIDED if few or any(near) != all(near) else HOLDS if all(near) else FAILS
            values = " ".join(f"{value:.2f}" for value in measured)
            text = f"`{model}`: {theory:g} in theory, from 32^2 to 64^2 {values}, n={len(measured)}"
            text += f", {needed} are needed" if few else ""
            parts.append(Part(status, text, value=median(measured)))
    return parts


NETWORK_DECIDERS: dict[str, Decide] = {
    function.__name__: function
    for function in (
        converted, error_at_alpha, early_heads_tight, heads_on_one_pixel, localized_heads_early, mostly_content,
        more_convolutional, learns_its_reach, exponents,
    )
}  # fmt: skip
