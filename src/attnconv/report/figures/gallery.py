"""results/figures/: all figures as PNG and PDF, their data digests (index.json), and a page that shows them.

A figure is stale if its data has changed since it was drawn, or if its files have changed.
"""

import hashlib
import json
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnconv.errors import DataError, UserError, nearest
from attnconv.files import read_json, require_targets, write_whole
from attnconv.report.complaints import noting
from attnconv.report.figures.catalog import Entry, entries
from attnconv.report.figures.data import digest
from attnconv.report.figures.results import Results

FORMATS = ("png", "pdf")
INTRODUCTION = """# Figures

Made by `make figures` from results/, without training. Each PNG has a PDF of the same name. Captions of the paper's
figures say what the paper shows, as we recall it. Figures at scale=mini and scale=small show smaller networks than the
paper's.
"""


@dataclass
class Made:
    """What became of the figures, by name: drawn, without runs, or kept because they cannot be drawn here.

    `errors` says what is wrong with files in results/, whose figures were kept as well.
    """

    drawn: list[str] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def make_figures(results: Path, only: Iterable[str] = (), said: Callable[[str], None] = print) -> Made:
    """Draw the figures whose runs results/ has, into results/figures/.

    Args:
        results: the folder results/.
        only: names of figures; all of them if empty.
        said: called with the path of each figure that is drawn.

    Raises:
        UserError: a figure does not exist, or the index of the figures is damaged.
    """
    folder, source, made = results / "figures", Results(results), Made()
    before, chosen = read_index(results), choose(only)
    check_results(results)
    names = [f"{entry.name}.{kind}" for entry in chosen for kind in FORMATS]
    require_targets(*(folder / name for name in (*names, "index.json", "README.md")))
    folder.mkdir(parents=True, exist_ok=True)
    index = dict(before)
    for entry in chosen:
        with noting(made.errors):
            data = entry.load(source)
            if data is None:
                made.missing.append(entry)
                index.pop(entry.name, None)
                continue
            try:
                figure = resolve(entry.draw)() if data == () else resolve(entry.draw)(data)
            except DataError as error:  # the images that it shows are not on this machine
                made.kept[entry.name] = str(error)
                continue
            resolve("figures.style:save")(figure, folder, entry.name)
            index[entry.name] = {"data": digest(data), **_hashes(folder, entry.name)}
            made.drawn.append(entry.name)
            said(f"{folder / entry.name}.png")
    known = [entry.name for entry in entries()]
    kept = {name: index[name] for name in known if name in index}
    for name in before.keys() - kept.keys():
        _remove(folder, name)
    write_whole(folder / "index.json", (json.dumps(kept, indent=1) + "\n").encode())
    write_whole(folder / "README.md", page(kept).encode())
    return made


def check_results(results: Path) -> None:
    """Raise UserError for a folder that is not results/, which may be empty or incomplete."""
    there = {path.name for path in results.iterdir()}
    if there and not there & {"runs.csv", "runs", "claims.yaml", "figures"}:
        raise UserError(f"{results} is not a results folder: it has no runs.csv, but {min(there)}")


def stale_figures(results: Path, errors: list[str]) -> list[str]:
    """Name the figures in results/figures/ that `make figures` would change, and those that it would add.

    Args:
        errors: receives what is wrong with files in results/.

    Raises:
        UserError: the index of the figures is damaged.
    """
    source, index, folder = Results(results), read_index(results), results / "figures"
    stale = [name for name in index if name not in {entry.name for entry in entries()}]
    for entry in entries():
        with noting(errors):
            data, record = entry.load(source), index.get(entry.name)
            if (data is None) != (record is None) or (
                record is not None and record != {"data": digest(data), **_hashes(folder, entry.name)}
            ):
                stale.append(entry.name)
    shown = folder / "README.md"
    if not shown.exists() or shown.read_text("utf-8") != page(index):
        stale.append("README.md")
    return stale


def read_index(results: Path) -> dict[str, dict[str, str]]:
    """Return the data digest of each figure and the hashes of its files; empty if nothing was drawn yet."""
    path = results / "figures" / "index.json"
    return read_json(path) if path.exists() else {}


def choose(only: Iterable[str]) -> list[Entry]:
    """Return the entries of these names, or all.

    Raises:
        UserError: a figure does not exist.
    """
    by_name = {entry.name: entry for entry in entries()}
    for name in only:
        if name not in by_name:
            raise UserError(f"unknown figure {name}{nearest(name, by_name, 'make_figures.py --list')}")
    return [entry for name, entry in by_name.items() if name in set(only)] or list(by_name.values())


def page(index: dict[str, dict[str, str]]) -> str:
    """Return the page that shows the figures, and the commands for the missing ones."""
    shown = [entry for entry in entries() if entry.name in index]
    others = [entry for entry in entries() if entry.name not in index]
    parts = [INTRODUCTION]
    parts += [f"\n## {entry.name}\n\n{entry.caption}\n\n![{entry.name}]({entry.name}.png)\n" for entry in shown]
    if others:
        parts.append("\n## Not drawn yet\n\nTheir runs are missing. Train and collect them, then `make figures`.\n\n")
        parts += [f"- {entry.name}: `{entry.command}`\n" for entry in others]
    return "".join(parts)


def resolve(draw: str) -> Callable[..., Any]:
    """Return the drawing function of that name; this imports matplotlib."""
    function: Callable[..., Any] = pkgutil.resolve_name(f"attnconv.report.{draw}")
    return function


def _hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the hashes of a figure's files by their kind; empty if a file does not exist."""
    files = {kind: folder / f"{name}.{kind}" for kind in FORMATS}
    return {
        kind: hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else ""
        for kind, file in files.items()
    }


def _remove(folder: Path, name: str) -> None:
    for kind in FORMATS:
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
