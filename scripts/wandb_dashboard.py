"""Build the study's workspace in W&B: curves, accuracy against the share of the images, heads and claims.

    python scripts/wandb_dashboard.py --dry-run     print the workspace as JSON: needs no account and no network
    pip install -e '.[workspaces]'
    wandb login
    python scripts/wandb_dashboard.py               save it, and print its address

Project and user come from WANDB_PROJECT and WANDB_ENTITY unless given.
"""

import json
import os

from attnconv.config import RESULTS
from attnconv.errors import UserError, one_line_errors
from attnconv.files import in_one_line
from attnconv.report.workspace import GROUP_BY, NAME, build, sections
from attnconv.settings.arguments import ScriptParser
from attnconv.settings.limits import check_wandb_project

LOCAL = "without an account: make dashboard, or wandb leet RUN/wandb, or open docs/index.html"


def save(entity: str | None, project: str) -> str:
    """Save the workspace and return its address.

    Raises:
        UserError: the package is missing, W&B has no login, or it cannot be reached.
    """
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise UserError(f"W&B is not logged in (run wandb login); {LOCAL}")
        return str(build(RESULTS, entity or wandb.Api().default_entity or "", project).save().url)
    except ImportError as error:
        raise UserError("wandb-workspaces is not installed: pip install -e '.[workspaces]'") from error
    except UserError:
        raise
    except Exception as error:  # whatever the library raises
        raise UserError(f"W&B cannot be used ({in_one_line(error)}); {LOCAL}") from error


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT") or "attnconv", help="W&B's project")
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team; default: your own")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace without saving it")
    arguments = parser.parse_args()
    check_wandb_project("--project", arguments.project)
    if arguments.dry_run:
        shown = {"name": NAME, "project": arguments.project, "group by": GROUP_BY, "sections": sections(RESULTS)}
        print(json.dumps(shown, indent=1))
    else:
        print(save(arguments.entity, arguments.project))


if __name__ == "__main__":
    with one_line_errors():
        main()
