"""Rebuild everything that is made from results/: its pages, README's tables and MANIFEST.sha256.

    python scripts/make_tables.py

`python scripts/verify.py` only compares them. scripts/collect.py makes results/runs.csv. A problem with a file of
results/ is reported in one line, with exit code 2; pages that do not need the file are made anyway.
"""

from attnconv.config import REPOSITORY
from attnconv.errors import one_line_errors
from attnconv.files import require_targets, write_whole
from attnconv.report.collect import changing
from attnconv.report.complaints import exit_with
from attnconv.report.pages import MANIFEST, Pages, manifest
from attnconv.settings.arguments import ScriptParser, existing_folder


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--repository", type=existing_folder, default=REPOSITORY, help="the folder that contains results/"
    )
    arguments = parser.parse_args()
    pages = Pages(arguments.repository)
    with changing(pages.results):
        made = pages.made()
        different = pages.stale(made)
        require_targets(*(arguments.repository / name for name in different), pages.results / MANIFEST)
        for name in different:
            write_whole(arguments.repository / name, made[name].encode())
            print(f"changed: {name}")
        if pages.results.is_dir():
            write_whole(pages.results / MANIFEST, manifest(pages.results).encode())
    exit_with(pages.errors)


if __name__ == "__main__":
    with one_line_errors():
        main()
