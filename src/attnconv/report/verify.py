"""Check that a repository's numbers match its files, without training: `make verify`."""

from collections.abc import Callable, Iterator
from pathlib import Path

from attnconv.files import reading
from attnconv.report.figures.gallery import stale_figures
from attnconv.report.pages import MANIFEST, Pages, manifest
from attnconv.report.runs_table import runs_csv
from attnconv.report.tables import read_paper

SUFFIXES = {"B": 1e9, "M": 1e6}


def check_manifest(repository: Path) -> Iterator[str]:
    """Check that each file of results/ has its recorded hash, and that none is missing or new."""
    results = repository / "results"
    with reading(results / MANIFEST):
        lines = (results / MANIFEST).read_text("utf-8").splitlines()
        recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {name: digest for digest, _, name in (line.partition("  ") for line in manifest(results).splitlines())}
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            how = "is missing" if name not in found else "is not listed" if name not in recorded else "was changed"
            yield f"results/{name} {how}"


def check_runs(repository: Path) -> Iterator[str]:
    """Check that runs.csv matches the run folders, and that none of them is damaged."""
    text, damaged = runs_csv(repository / "results")
    yield from (f"results/{name} is damaged: {reason}" for name, reason in damaged.items())
    path = repository / "results/runs.csv"
    published = path.read_text(encoding="utf-8") if path.exists() else ""
    if published != text:
        yield "results/runs.csv does not match the run folders; rebuild it with python scripts/collect.py OUTPUTS"
        known = {name.removeprefix("runs/").replace("external/", "../external/", 1) for name in damaged}
        gone = sorted(_names(published) - _names(text) - known)
        yield from (f"results/runs.csv lists {run}, but its folder does not exist" for run in gone)


def _names(table: str) -> set[str]:
    """Return the runs in the text of a runs.csv, by the names of their folders."""
    return {line.partition(",")[0] for line in table.splitlines()[1:]}


def check_pages(repository: Path) -> Iterator[str]:
    """Check that all pages, and README's tables, match results/."""
    pages = Pages(repository)
    stale = pages.stale(pages.made())
    yield from pages.errors
    yield from (f"{name} is stale; run python scripts/make_tables.py" for name in stale)


def check_explorer(repository: Path) -> Iterator[str]:
    """Check that docs/index.html shows the current results."""
    page = repository / "docs" / "index.html"
    if not page.exists():
        yield "docs/index.html is missing; run make page"
        return
    from attnconv.report.page.assemble import assemble  # the other checks do not need torch
    from attnconv.report.page.contents import from_results

    errors: list[str] = []
    made = assemble(from_results(repository / "results", page, errors)).encode()
    yield from errors
    if made != page.read_bytes():
        yield "docs/index.html is stale; run make page"


def check_figures(repository: Path) -> Iterator[str]:
    """Check that all figures were drawn from the current data."""
    errors: list[str] = []
    stale = stale_figures(repository / "results", errors)
    yield from errors
    yield from (f"results/figures/{name} is stale; run make figures" for name in stale)


def check_costs(repository: Path) -> Iterator[str]:
    """Check that the published models, built now, have the paper's parameters and FLOPs."""
    import torch

    from attnconv.config import compose
    from attnconv.models.cost import build_unfilled, flops_paper, parameters

    image = torch.zeros(1, 3, 32, 32, device="meta")
    path = repository / "results/paper.csv"
    for row in read_paper(path):
        model = build_unfilled(compose([f"model={row['model']}"]).model, (3, 32, 32), 10)
        found, flops, published = parameters(model), flops_paper(model, image), row["flops_published"]
        with reading(path):
            wanted, right = row["parameters"], rounds_to(flops, published)
        if found != wanted:
            yield f"{row['model']} has {found:,} parameters; results/paper.csv says {wanted:,}"
        if not right:
            yield f"{row['model']} needs {flops:,} FLOPs; the paper says {published}"


def rounds_to(count: int, published: str) -> bool:
    """Return whether a count, rounded to the same number of digits, equals a number such as 6.2B."""
    digits = len(published[:-1].partition(".")[2])
    return f"{count / SUFFIXES[published[-1]]:.{digits}f}" == published[:-1]


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "results/MANIFEST.sha256": check_manifest,
    "results/runs.csv": check_runs,
    "pages and README": check_pages,
    "figures": check_figures,
    "docs/index.html": check_explorer,
    "parameters and FLOPs": check_costs,
}
