"""Claims and their verdicts: results/claims.md and README's table, from results/claims.yaml and the runs.

A claim has one or several parts, and each is decided separately. The claim holds if all parts hold, does not hold if
one part does not, and is otherwise undecided or not run.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from attnconv.config import CONFIGS
from attnconv.errors import UserError, nearest
from attnconv.files import UNREADABLE, FileError, in_one_line, read_yaml, reading
from attnconv.report.evidence import Evidence
from attnconv.report.tables import markdown

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
PLURALS = {HOLDS: "hold", FAILS: "do not hold", UNDECIDED: "undecided", NOT_RUN: "not run"}
KEYS = ("id", "claim", "source", "decided_by", "holds_if", "decide", "command", "cost")
TEXTS = (*KEYS, "note", "evidence")  # the last two may be left out
COUNTS = ("alpha", "epochs", "fraction", "margin", "networks", "repeats", "seeds", "tolerance")  # read by rules
OTHERS = ("accuracy", "arms", "distances", "encodings", "fractions", "layers", "model", "models", "number", "parts",
          "protocols", "readme", "verdict")  # fmt: skip
NEEDED_OF_PART = {"ours", "theirs", "seeds"}
OF_PART = NEEDED_OF_PART | {"fraction", "scale", "label", "shown"}
BY_LAYER = re.compile(r" \(by layer [^)]*\)")  # in results/claims.md only
SHORT = 3  # the table of all claims shows up to this many parts in full


@dataclass(frozen=True)
class Part:
    """One comparison or measurement behind a claim.

    Args:
        status: its verdict on the claim.
        text: the comparison, with the number, its interval and n.
        folders: of the runs behind it, relative to results/runs.
        decides: whether it counts for the verdict; else it is only shown.
        value: the number, for ordering the parts.
    """

    status: str
    text: str
    folders: tuple[str, ...] = ()
    decides: bool = True
    value: float = 0.0


class Claim(dict[str, Any]):
    """A claim and the rule that decides it, with the fields of results/claims.yaml.

    `note` and `evidence` may be left out, and each rule (`decide`) reads fields of its own.
    """

    def __missing__(self, key: str) -> NoReturn:
        raise FileError(f"claims.yaml: claim {self.get('id', '?')} lacks {key}")


@dataclass(frozen=True)
class Verdict:
    """A claim with the results of its parts."""

    claim: Claim
    parts: list[Part]

    @property
    def status(self) -> str:
        """Return holds, does not hold, undecided or not run."""
        statuses = {part.status for part in self.parts if part.decides}
        if FAILS in statuses:
            return FAILS
        return statuses.pop() if len(statuses) == 1 else UNDECIDED

    @property
    def missing(self) -> bool:
        """Return whether a deciding part has not been run."""
        return any(part.status == NOT_RUN for part in self.parts if part.decides)

    @property
    def caveat(self) -> str:
        """Return "; some parts not run" if that limits the verdict."""
        return "; some parts not run" if self.missing and self.status != NOT_RUN else ""

    @property
    def verdict(self) -> str:
        """Return the status, and the cost of missing runs."""
        if self.status == NOT_RUN:
            return f"not run: {self.claim['cost']}"
        return f"{self.status}{self.caveat} (all parts: {self.claim['cost']})" if self.missing else self.status

    @property
    def number(self) -> str:
        """Return the results of the parts; if there are many, how many have which status, and the extremes."""
        deciding = [part for part in self.parts if part.decides]
        known = [part for part in deciding if part.status != NOT_RUN]
        if len(known) <= SHORT:
            return "<br>".join(part.text for part in known)
        counts = Counter(part.status for part in deciding)
        of_each = ", ".join(
            f"{counts[status]} {status if counts[status] == 1 else plural}"
            for status, plural in PLURALS.items()
            if counts[status]
        )
        least, most = (end(known, key=lambda part: part.value).text for end in (min, max))
        return f"{len(deciding)} comparisons: {of_each}<br>smallest: {least}<br>largest: {most}"


Decide = Callable[[Claim, Evidence], list[Part]]


def read_claims(path: Path, functions: Iterable[str]) -> list[Claim]:
    """Return the claims in claims.yaml.

    Args:
        functions: names of the deciding functions.

    Raises:
        FileError: the file is missing or damaged, or a claim lacks a field or names an unknown function.
    """
    with reading(path):
        listed = read_yaml(path)
    if not isinstance(listed, list) or not all(isinstance(fields, dict) for fields in listed):
        raise FileError(f"{path} is not a list of claims")
    known = set(functions)
    for fields in listed:
        lacking = [key for key in KEYS if key not in fields]
        if lacking:
            raise FileError(f"{path}: claim {fields.get('id', '?')} lacks {', '.join(lacking)}")
        where = f"{path}: claim {fields['id']}"
        if unknown := fields.keys() - {*TEXTS, *COUNTS, *OTHERS}:
            key = min(map(str, unknown))
            raise FileError(f"{where} has an unknown key {key}{nearest(key, (*TEXTS, *COUNTS, *OTHERS))}")
        if not_text := [key for key in TEXTS if key in fields and not (isinstance(fields[key], str) and fields[key])]:
            raise FileError(f"{where}: {', '.join(not_text)} must be text")
        if wrong := [key for key in COUNTS if key in fields and type(fields[key]) not in (int, float)]:
            raise FileError(f"{where}: {wrong[0]} must be a number, not {fields[wrong[0]]!r}")
        if not isinstance(fields.get("readme", True), bool):
            raise FileError(f"{where}: readme must be true or false, not {fields['readme']!r}")
        if fields["decide"] not in known:
            raise FileError(f"{where} is decided by {fields['decide']!r}, which does not exist")
        if fields.get("verdict", HOLDS) not in PLURALS:
            raise FileError(f"{where}: verdict {fields['verdict']!r} is not one of {', '.join(PLURALS)}")
        parts = fields.get("parts", [])
        for part in parts if isinstance(parts, list) else [parts]:
            if not isinstance(part, dict) or not OF_PART >= part.keys() >= NEEDED_OF_PART:
                raise FileError(f"{where}: a part has {', '.join(sorted(NEEDED_OF_PART))}, and if needed "
                                f"{', '.join(sorted(OF_PART - NEEDED_OF_PART))}, not {part}")  # fmt: skip
            _check_names(where, part)
        _check_names(where, {"ours": fields.get("arms", [])})
    names = [fields["id"] for fields in listed]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FileError(f"{path}: several claims are called {', '.join(sorted(twice))}")
    return [Claim(fields) for fields in listed]


def _check_names(where: str, part: dict[str, Any]) -> None:
    """Raise FileError for an experiment, a model or a scale that does not exist, which would never have a run."""
    experiments, models, scales = (
        {path.stem for path in (CONFIGS / group).glob("*.yaml")} for group in ("experiment", "model", "scale")
    )
    if (scale := part.get("scale", "mini")) not in scales:
        raise FileError(f"{where}: scale {scale!r} does not exist{nearest(str(scale), scales)}")
    for side in ("ours", "theirs"):
        for arm in part.get(side, []) if isinstance(part.get(side, []), list) else [part[side]]:
            names, _, model = str(arm).partition("/")
            for name in names.split(","):
                if not any(name == one or name.startswith(f"{one}_") for one in experiments):
                    raise FileError(f"{where}: experiment {name!r} does not exist{nearest(name, experiments)}")
            if model not in models and not re.fullmatch(r"conv\dx\d", model):
                raise FileError(f"{where}: model {model!r} does not exist{nearest(model, models)}")


def judge(
    claims: Iterable[Claim], evidence: Evidence, functions: dict[str, Decide]
) -> tuple[list[Verdict], list[UserError]]:
    """Return the verdicts on all claims, and the problems with their files; the affected claims stay undecided."""
    verdicts, errors = [], []
    for claim in claims:
        try:
            parts = functions[claim["decide"]](claim, evidence)
        except UserError as error:
            errors.append(error)
            parts = [Part(UNDECIDED, "its evidence is damaged")]
        except UNREADABLE as error:
            what = f"claim {claim['id']}: its fields in claims.yaml or its evidence are damaged ({in_one_line(error)})"
            errors.append(FileError(what))
            parts = [Part(UNDECIDED, "its evidence is damaged")]
        verdicts.append(Verdict(claim, parts))
    return verdicts, errors


INTRODUCTION = """# Claims and verdicts

Made by `python scripts/make_tables.py` from results/claims.yaml, which has the rule for each claim, and results/runs.
Verdicts: **holds**; **does not hold**; **undecided**: the interval allows both, or runs are missing; **not run**, with
the core-hours that the experiment's header estimates for bf16, and the claims that the same runs serve (`python
scripts/study.py --list` estimates from finished runs: in bf16 up to 1.8 times as much, in fp32 2 to 4 times as much
again). A comparison that decides nothing is marked "for comparison". A claim holds if all of its deciding comparisons
hold, and does not hold if one of them does not. We quote the paper from memory.

Differences are in percentage points of test accuracy after the last epoch, paired by seed, with Student's 95% interval
from a standard deviation that is pooled over the models and fractions of the experiment; this assumes equal noise at
all fractions and of all models; data_size.md shows the noise of each fraction, and without each model. Intervals are
computed on the logit of accuracy, and converted to points at the mean accuracy of the second model; data_size.md
converts at that of `conv3x3`, so its limits can differ by 0.1. The precision with more pairs decides (bf16 if both have
as many); a comparison of two models also shows the other one, and is undecided if the two contradict each other. "Above
0, by Holm": significant at 5% with Holm's correction over the comparisons of the claim; those that have not run count
as p = 1. An interval can therefore exclude 0 while its comparison is undecided. "Within 1 point": the whole interval
lies between -1 and +1. n: pairs of runs, or runs. For differences under 1 point, McNemar's test compares the
predictions on the test images, where they were kept. It often finds a difference even between two seeds of one model,
and no verdict depends on it.

No threshold has changed since 2026-11-25, but some rules have. On 2026-11-29, Holm's correction, D2 and V1 became
stricter; since then, D1 is undecided. On the same day, two verdicts of "does not hold" were withdrawn: C1 now needs
three measurements, and two layers now decide S3; by runs since then, neither holds. On 2026-11-30, the wording of P1
and A5 was narrowed to what their rules decide, and the rules of D1, R1, S2, V1 and W1 were worded as the code decides
them. The notes below and [LOG.md](../LOG.md) give the reasons.

"""


def claims_page(verdicts: list[Verdict]) -> str:
    """Return results/claims.md: a table of all claims, then the comparisons behind each one."""
    rows = [
        [
            f"[{verdict.claim['id']}](#{verdict.claim['id'].lower()})",
            verdict.claim["claim"],
            verdict.claim["source"],
            f"**{verdict.status}**{verdict.verdict.removeprefix(verdict.status)}",
            verdict.number,
            f"`{verdict.claim['command']}`",
            evidence_text(verdict),
        ]
        for verdict in verdicts
    ]
    header = ["id", "claim", "source", "verdict", "number, interval, n", "command", "evidence"]
    return "".join([INTRODUCTION, markdown(header, rows, numbers=False), *map(details, verdicts)])


def details(verdict: Verdict) -> str:
    """Return the comparisons behind one claim."""
    claim = verdict.claim
    lines = [f"- {part.text}: {said(part)}{links(part)}" for part in verdict.parts]
    about = [
        f"{claim['claim']}\n",
        f"- Decided by: {claim['decided_by']}.",
        f"- Holds if: {claim['holds_if']}.",
        *([f"- Note: {claim['note']}"] if "note" in claim else []),
        f"- Verdict: **{verdict.verdict}**.\n",
    ]
    return "\n".join([f"\n## {claim['id']}\n", *about, *lines]) + "\n"


def said(part: Part) -> str:
    """Return the status of a part."""
    return part.status if part.decides or part.status == NOT_RUN else "for comparison"


def links(part: Part) -> str:
    """Return links to the runs behind a part."""
    return "".join(f" [{place}](runs/{folder})" for place, folder in enumerate(part.folders, 1))


def evidence_text(verdict: Verdict) -> str:
    """Return a link to the page or the runs that the verdict is based on."""
    if "evidence" in verdict.claim:
        return f"[{Path(verdict.claim['evidence']).name}]({verdict.claim['evidence']})"
    folders = dict.fromkeys(folder.partition("/")[0] for part in verdict.parts for folder in part.folders)
    return ", ".join(f"[{folder}](runs/{folder})" for folder in folders)


def claims_table(verdicts: Iterable[Verdict]) -> str:
    """Return README's table of the most important claims."""
    rows = [
        [
            f"[{verdict.claim['id']}](results/claims.md#{verdict.claim['id'].lower()})",
            verdict.claim["claim"],
            f"**{verdict.status}**{verdict.caveat}",
            BY_LAYER.sub("", verdict.number).replace("<br>", "; "),
        ]
        for verdict in verdicts
        if verdict.claim.get("readme")
    ]
    return markdown(["id", "claim", "verdict", "number, interval, n"], rows, numbers=False)
