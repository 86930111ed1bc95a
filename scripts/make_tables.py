"""Write what is made from results/ anew: README's tables, data_size.md, theorem.md. `python scripts/make_tables.py`

`--check` only compares. The tables of runs are those of results/runs.csv (scripts/collect.py).
"""

import sys
from pathlib import Path

from attnconv.errors import one_line_errors
from attnconv.files import read_csv, read_json_lines, reading
from attnconv.report.collect import read_runs
from attnconv.report.data_size import data_size_page
from attnconv.report.tables import bench_table, fill, models_table, paper_table, runs_table
from attnconv.report.theorem_page import theorem_page
from attnconv.settings.arguments import ScriptParser

REPOSITORY = Path(__file__).resolve().parents[1]


def regenerate(readme: str, results: Path) -> dict[str, str]:
    """The text of every generated file, by its place in the repository."""
    runs, tables = read_runs(results / "runs.csv"), {}
    with reading(results / "runs.csv"):
        tables["runs"], data_size = runs_table(runs), data_size_page(runs)
    with reading(results / "paper.csv"):
        tables["paper"] = paper_table(read_csv(results / "paper.csv"), runs)
    with reading(results / "models.csv"):
        tables["models"] = models_table(read_csv(results / "models.csv"), "paper")
    with reading(results / "bench.jsonl"):
        tables["bench"] = bench_table(read_json_lines(results / "bench.jsonl"))
    return {
        "README.md": fill(readme, tables),
        "results/data_size.md": data_size,
        "results/theorem.md": theorem_page(results, runs),
    }


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if they are not what results/ says")
    arguments = parser.parse_args()
    with one_line_errors([]):
        made = regenerate((REPOSITORY / "README.md").read_text(), REPOSITORY / "results")
    for name, text in made.items():
        path = REPOSITORY / name
        if not arguments.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{name} is stale: python scripts/make_tables.py")


if __name__ == "__main__":
    main()
