"""Write what is made from results/ anew: README's tables, data_size.md, theorem.md. `python scripts/make_tables.py`

`--check` only compares. The tables of runs are those of results/runs.csv (scripts/collect.py).
"""

import json
import sys
from pathlib import Path

from attnconv.command import ScriptParser
from attnconv.study.collect import read_runs
from attnconv.study.data_size import data_size_page
from attnconv.study.tables import bench_table, fill, models_table, paper_table, read_csv, runs_table
from attnconv.study.theorem_page import theorem_page

REPOSITORY = Path(__file__).resolve().parents[1]


def regenerate(readme: str, results: Path) -> dict[str, str]:
    """The text of every generated file, by its place in the repository."""
    runs = read_runs(results / "runs.csv")
    bench = [json.loads(line) for line in (results / "bench.jsonl").read_text().splitlines()]
    tables = {
        "paper": paper_table(read_csv(results / "paper.csv"), runs),
        "runs": runs_table(runs),
        "models": models_table(read_csv(results / "models.csv"), "paper"),
        "bench": bench_table(bench),
    }
    return {
        "README.md": fill(readme, tables),
        "results/data_size.md": data_size_page(runs),
        "results/theorem.md": theorem_page(results, runs),
    }


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if they are not what results/ says")
    arguments = parser.parse_args()
    for name, text in regenerate((REPOSITORY / "README.md").read_text(), REPOSITORY / "results").items():
        path = REPOSITORY / name
        if not arguments.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{name} is stale: python scripts/make_tables.py")


if __name__ == "__main__":
    main()
