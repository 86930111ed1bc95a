"""Write README's tables anew from results/: `python scripts/make_tables.py` (`--check` only compares)."""

import argparse
import sys
from pathlib import Path

from attnconv.study.tables import fill, models_table, paper_table, read_csv, read_results, runs_table

REPOSITORY = Path(__file__).resolve().parents[1]


def regenerate(readme: str, results: Path) -> str:
    """README's text with its tables made from `results`."""
    runs = read_results(results / "runs")
    tables = {
        "paper": paper_table(read_csv(results / "paper.csv"), runs),
        "runs": runs_table(runs),
        "models": models_table(read_csv(results / "models.csv"), "paper"),
    }
    return fill(readme, tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if README is not what results/ says")
    arguments = parser.parse_args()
    path = REPOSITORY / "README.md"
    before = path.read_text()
    after = regenerate(before, REPOSITORY / "results")
    if arguments.check:
        sys.exit("README.md is stale: python scripts/make_tables.py" if before != after else 0)
    path.write_text(after)


if __name__ == "__main__":
    main()
