"""Check that the published numbers match the files: `make verify`. It trains nothing and takes under a minute.

Checks the hash of each file in results/, rebuilds and compares runs.csv, all pages including README's tables and
docs/index.html, and counts the parameters and FLOPs of the paper's models again. Prints a line for each check and each
difference; exit code 1 if there is a difference.
"""

import sys

from attnconv.config import REPOSITORY
from attnconv.errors import UserError, one_line_errors
from attnconv.report.verify import CHECKS
from attnconv.settings.arguments import ScriptParser, existing_folder


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--repository", type=existing_folder, default=REPOSITORY, help="the folder that contains results/"
    )
    repository = parser.parse_args().repository
    if not (repository / "results").is_dir():
        parser.error(f"{repository} has no folder results/")
    failed = False
    for name, check in CHECKS.items():
        try:
            differences = list(check(repository))
        except UserError as error:
            differences = [str(error)]
        print(f"{'FAILED' if differences else 'ok':<7} {name}")
        for difference in differences:
            print(f"        {difference}")
        failed |= bool(differences)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
