"""Draw the figures from results/ to results/figures/, without training: `python scripts/make_figures.py`

    python scripts/make_figures.py --list                    list all figures, and the commands for missing runs
    python scripts/make_figures.py --only overview growth    draw some of them
    python scripts/make_figures.py --run RUN                 draw all figures of one of your runs, into RUN/figures

RUN is a run folder, finished or not: outputs/NAME/MODEL/SCALE-RECIPE/fracF/seedS.
"""

from pathlib import Path

from attnconv.config import RESULTS
from attnconv.errors import one_line_errors
from attnconv.report.collect import changing
from attnconv.report.complaints import exit_with
from attnconv.report.figures.catalog import entries
from attnconv.report.figures.gallery import make_figures, read_index
from attnconv.settings.arguments import ScriptParser, a_path, a_place


def show_list(results: Path) -> None:
    """Print all figures, and for those without data the command that makes their runs."""
    drawn = read_index(results)
    for entry in entries():
        print(f"{entry.name:45}{'drawn' if entry.name in drawn else entry.command}")


def draw_all(results: Path, only: list[str]) -> list[str]:
    """Draw figures of results/, print which could not be drawn and why, and return the problems with files."""
    with changing(results):
        made = make_figures(results, only)
    for name, reason in made.kept.items():
        print(f"{name}: not changed: {reason}")
    if made.missing:
        print("\nnot drawn, because their runs are missing:")
    for entry in made.missing:
        print(f"  {entry.name:45}{entry.command}")
    return made.errors


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_results()
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="draw only these figures")
    parser.add_argument("--list", action="store_true", help="list the figures and draw none")
    parser.add_argument("--run", type=a_path, metavar="RUN", help="draw the figures of this run")
    parser.add_argument("--out", type=a_path, metavar="FOLDER", help="with --run: for its figures (RUN/figures)")
    parser.add_argument(
        "--data", type=a_place, metavar="FOLDER", help="with --run: folder of its images, if they were moved"
    )
    parser.add_trust()
    arguments = parser.parse_args()
    if arguments.run and (arguments.only or arguments.list):
        parser.error("--run draws all figures of one run: leave out --only and --list")
    if not arguments.run and (arguments.out or arguments.data or arguments.trust):
        parser.error("--out, --data and --trust need --run")
    if arguments.run and arguments.results != RESULTS:
        parser.error("--results is for the figures of the study: leave it out with --run")
    if arguments.list and arguments.only:
        parser.error("--list shows all figures: leave out --only")
    errors: list[str] = []
    if arguments.list:
        show_list(arguments.results)
    elif arguments.run:
        from attnconv.report.figures.of_run import figures_of_run  # imports torch

        figures_of_run(arguments.run, arguments.out, arguments.data, arguments.trust)
    else:
        errors = draw_all(arguments.results, arguments.only)
    exit_with(errors)


if __name__ == "__main__":
    with one_line_errors():
        main()
