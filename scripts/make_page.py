"""One HTML file to explore runs in: heads, the theorem, a live network, curves. `python scripts/make_page.py [RUN ...]`

Without RUN it shows what results/ has, in docs/index.html. With the folders of finished runs it shows these, in
page.html. The file needs no network and no server: open it from disk, send it, or put it on any web server.

`--choose-images` takes the test images that the page of results/ shows from --data, and keeps them in results/.
"""

import argparse
from pathlib import Path

import torch

from attnconv.config import compose
from attnconv.data.dataset import load_dataset
from attnconv.errors import UserError, one_line_errors
from attnconv.files import write_whole
from attnconv.report.complaints import exit_with
from attnconv.report.page.assemble import assemble
from attnconv.report.page.contents import IMAGES, from_results, from_runs
from attnconv.report.page.images import first_of_each_class, save_images
from attnconv.settings.arguments import ScriptParser, check_target, existing_folder

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 3_000_000  # bytes of the page of results/


def choose_images(results: Path, root: str | None) -> None:
    """Keep test images of CIFAR-10 in results/."""
    config = compose([] if root is None else [f"data.root={root}"]).data
    save_images(first_of_each_class(load_dataset(config, torch.device("cpu")), config.source), results / IMAGES)


def make_page(arguments: argparse.Namespace, errors: list[str]) -> bytes:
    """Return the page that the command line asks for.

    Args:
        errors: takes what is wrong with files of results/ that the page is made without.

    Raises:
        UserError: see `from_results` and `from_runs`; the page of results/ is too large.
    """
    if arguments.runs:
        runs = from_runs(arguments.runs, arguments.data, arguments.out, arguments.results, arguments.trust)
        return assemble(runs).encode()
    page = assemble(from_results(arguments.results, arguments.out, errors)).encode()
    if len(page) >= LIMIT:
        raise UserError(f"the page has {len(page):,} bytes, and {LIMIT:,} is its limit: keep fewer weights in results/")
    return page


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="run folders of finished runs")
    parser.add_argument("--out", type=Path, help="the file to write: docs/index.html, or page.html for RUN")
    parser.add_argument(
        "--results", type=existing_folder, default=REPOSITORY / "results", help="results/ of this repository"
    )
    parser.add_argument("--data", help="folder of the data, if not where the runs found it")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="MODULE", help="a module of yours that a run's model comes from"
    )
    parser.add_argument("--choose-images", action="store_true", help="first choose the images of results/ anew")
    arguments = parser.parse_args()
    arguments.out = arguments.out or (Path("page.html") if arguments.runs else REPOSITORY / "docs" / "index.html")
    check_target(parser, arguments.out)
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
