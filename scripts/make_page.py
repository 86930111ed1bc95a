"""Make one HTML file to explore runs: heads, the theorem, a live network, curves.

`python scripts/make_page.py [RUN ...]`

Without RUN, the page shows the contents of results/ and is written to docs/index.html. With the folders of finished
runs, it shows these runs and is written to page.html. The file needs no network and no server: open it from disk, send
it to somebody, or put it on any web server.

`--choose-images` selects the test images for the page of results/ from --data, and stores them in results/.
"""

import argparse
from pathlib import Path

from attnconv.config import REPOSITORY, compose
from attnconv.data.root import move_root
from attnconv.errors import UserError, one_line_errors
from attnconv.files import write_whole
from attnconv.report.complaints import exit_with
from attnconv.report.page.assemble import assemble
from attnconv.settings.arguments import ScriptParser, a_path, check_target

LIMIT = 3_000_000  # bytes of the page of results/


def choose_images(results: Path, root: str | None) -> None:
    """Store test images of CIFAR-10 in results/."""
    import torch  # --help does not need it

    from attnconv.data.dataset import load_dataset
    from attnconv.report.page.contents import IMAGES
    from attnconv.report.page.images import first_of_each_class, save_images

    config = compose().data
    if root is not None:
        move_root(config, root)
    save_images(first_of_each_class(load_dataset(config, torch.device("cpu")), config.source), results / IMAGES)


def make_page(arguments: argparse.Namespace, errors: list[str]) -> bytes:
    """Return the page that the command line asks for.

    Args:
        errors: receives a message for each file of results/ that the page had to leave out.

    Raises:
        UserError: see `from_results` and `from_runs`; the page of results/ is too large.
    """
    from attnconv.report.page.contents import from_results, from_runs  # imports torch

    if arguments.runs:
        runs = from_runs(arguments.runs, arguments.data, arguments.out, arguments.results, arguments.trust)
        return assemble(runs).encode()
    page = assemble(from_results(arguments.results, arguments.out, errors)).encode()
    if len(page) >= LIMIT:
        raise UserError(
            f"the page has {len(page):,} bytes, more than its limit of {LIMIT:,}: keep fewer weights in results/"
        )
    return page


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_runs()
    parser.add_argument(
        "--out", type=a_path, metavar="FILE", help="the file to write: docs/index.html, or page.html for RUN"
    )
    parser.add_results()
    parser.add_data()
    parser.add_trust()
    parser.add_argument("--choose-images", action="store_true", help="first select the images of results/ again")
    arguments = parser.parse_args()
    arguments.out = arguments.out or (Path("page.html") if arguments.runs else REPOSITORY / "docs" / "index.html")
    check_target(parser, arguments.out)
    if not arguments.runs and (arguments.trust or (arguments.data and not arguments.choose_images)):
        parser.error("--trust needs RUN, and --data needs RUN or --choose-images")
    if arguments.runs and arguments.choose_images:
        parser.error("--choose-images is for the page of results/: leave out RUN")
    errors: list[str] = []
    if arguments.choose_images:
        choose_images(arguments.results, arguments.data)
    page = make_page(arguments, errors)
    write_whole(arguments.out, page)
    print(f"{arguments.out}: {len(page) / 1e6:.2f} MB")
    exit_with(errors)


if __name__ == "__main__":
    with one_line_errors():
        main()
