"""Make all pages of results/ and the tables of README and docs/; a page that fails does not stop the others."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from attnconv.files import UNFINISHED, read_json_lines, reading
from attnconv.report.claims import Verdict, claims_page, claims_table
from attnconv.report.comparisons import Row
from attnconv.report.complaints import note, noting
from attnconv.report.cpu10_page import cpu10_lines, cpu10_table
from attnconv.report.data_size import data_size_page, read_trials
from attnconv.report.deciders import judged
from attnconv.report.long_range import long_range_table, read_long_range
from attnconv.report.page.command import own_settings
from attnconv.report.runs_table import read_runs
from attnconv.report.tables import bench_table, fill, models_table, paper_table, read_models, read_paper, runs_table
from attnconv.report.theorem_page import theorem_page
from attnconv.runs.records import read_config
from attnconv.runs.status import collected_folder

MANIFEST = "MANIFEST.sha256"
MODEL_SCALES = ("paper", "mini")
SHOWN = ("seed", "epochs", "data.fraction", "eval_every")  # by columns of README's table of runs, or not worth one
Made = TypeVar("Made")
# by name: the file of results/ that it needs, and the function that makes it
Tables = dict[str, tuple[str, Callable[[], str]]]


@dataclass
class Pages:
    """The pages of a repository.

    Args:
        errors: problems with files of results/, each once, in order.
    """

    repository: Path
    errors: list[str] = field(default_factory=list)

    @property
    def results(self) -> Path:
        """Return the results folder; its path is absolute, so that errors name files in one way."""
        return self.repository.resolve() / "results"

    def made(self) -> dict[str, str]:
        """Return the texts of all pages that can be made, by their paths in the repository."""
        pages = {
            "README.md": self._filled("README.md", self._readme()),
            "docs/speed.md": self._filled("docs/speed.md", self._speed()),
            "results/data_size.md": self._try("runs.csv", self._data_size),
            "results/claims.md": self._try("claims.yaml", lambda: claims_page(self.verdicts)),
            "results/theorem.md": self._try("runs.csv", lambda: theorem_page(self.results, self.runs)),
            "results/models.md": self._filled("results/models.md", self._models()),
            "results/long_range.md": self._filled("results/long_range.md", self._long_range()),
            "results/cpu10.md": self._filled("results/cpu10.md", self._cpu10()),
        }
        return {name: text for name, text in pages.items() if text is not None}

    def stale(self, made: dict[str, str]) -> list[str]:
        """Return the pages that are missing, or differ from what was made now."""
        paths = {name: self.repository / name for name in made}
        return [name for name, path in paths.items() if not path.exists() or path.read_text("utf-8") != made[name]]

    @cached_property
    def runs(self) -> list[Row]:
        """Return the rows of runs.csv that may be published."""
        return read_runs(self.results / "runs.csv")

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Return the verdicts on all claims; damaged files are recorded as errors."""
        verdicts, errors = judged(self.results, self.runs)
        note(self.errors, errors)
        return verdicts

    def _data_size(self) -> str:
        return data_size_page(self.runs, read_trials(self.results / "mini_recipe_trials.csv"))

    def _readme(self) -> Tables:
        return {
            "claims": ("claims.yaml", lambda: claims_table(self.verdicts)),
            "runs": ("runs.csv", lambda: runs_table(self.runs, self._own_settings)),
            "paper": ("paper.csv", lambda: paper_table(read_paper(self.results / "paper.csv"), self.runs)),
        }

    def _own_settings(self, row: Row) -> list[str]:
        """Return the settings of a run that its row in README does not show otherwise."""
        own = own_settings(read_config(collected_folder(self.results, row["run"])))
        return list(dict.fromkeys(key.rpartition(".")[2] for key in own if key not in SHOWN))

    def _speed(self) -> Tables:
        return {
            "bench": ("bench.jsonl", lambda: bench_table(read_json_lines(self.results / "bench.jsonl", needed=True)))
        }

    def _models(self) -> Tables:
        return {scale: ("models.csv", partial(self._of_scale, scale)) for scale in MODEL_SCALES}

    def _of_scale(self, scale: str) -> str:
        return models_table(read_models(self.results / "models.csv"), scale)

    def _long_range(self) -> Tables:
        path = self.results / "long_range.csv"
        return {"long_range": (path.name, lambda: long_range_table(read_long_range(path)))}

    def _cpu10(self) -> Tables:
        return {"cpu10": ("cpu10.jsonl", lambda: cpu10_table(cpu10_lines(self.results)))}

    def _filled(self, name: str, tables: Tables) -> str | None:
        """Return a page with its tables rebuilt and its own text unchanged; tables that fail stay as they are."""
        path = self.results.parent / name
        made = {table: self._try(source, make) for table, (source, make) in tables.items()}
        return self._try(path, lambda: fill(path.read_text(encoding="utf-8"), made))

    def _try(self, source: str | Path, make: Callable[[], Made]) -> Made | None:
        """Return the result of `make`; if its file is missing or damaged, record the error and return None."""
        with noting(self.errors), reading(self.results / source):
            return make()
        return None


def manifest(results: Path) -> str:
    """Return the text of results/MANIFEST.sha256, for `sha256sum --check`: all other files below results/."""
    files = sorted(
        path
        for path in results.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(UNFINISHED)
    )
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(results).as_posix()}\n" for path in files
    )
