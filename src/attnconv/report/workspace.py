"""The study's workspace in W&B: curves, accuracy by data, heads and claims, as plain data and as wandb-workspaces."""

from pathlib import Path
from typing import Any

from attnconv.report.deciders import judged
from attnconv.report.runs_table import read_runs
from attnconv.report.tables import markdown

NAME = "attnconv: attention and convolution"
GROUP_BY = ("model", "scale", "recipe", "fraction")  # configuration keys; runs of a group differ only in the seed
CURVES = {"Test accuracy": "test/acc", "Test loss": "test/loss", "Training accuracy": "train/acc",
          "Training loss": "train/loss"}  # fmt: skip


def sections(results: Path) -> list[dict[str, Any]]:
    """Return the sections with their panels: a kind, and its arguments in wandb-workspaces.

    Names that begin with `config:` are in the configuration, and those with `summary:` are in result.json.

    Args:
        results: folder with claims.yaml and the runs.

    Raises:
        UserError: a file behind a claim is damaged.
    """
    curve = {"kind": "LinePlot", "x": "epoch", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    return [
        {"name": "Curves", "panels": [curve | {"title": title, "y": [key]} for title, key in CURVES.items()]},
        {
            "name": "Data size",
            "panels": [
                {"kind": "ScatterPlot", "title": "Test accuracy by share of the images", "x": "config:fraction",
                 "y": "summary:test_acc", "log_x": True},
                {"kind": "BarPlot", "title": "Test accuracy", "metrics": ["test_acc"], "groupby_aggfunc": "mean",
                 "groupby_rangefunc": "stddev"},
                {"kind": "ScatterPlot", "title": "Test accuracy by CPU seconds", "x": "summary:cpu_seconds",
                 "y": "summary:test_acc", "log_x": True},
            ],
        },
        {
            "name": "Heads and confusion matrix",
            "panels": [{"kind": "MediaBrowser", "title": "Where the heads look", "media_keys": ["heads"]},
                       {"kind": "MediaBrowser", "title": "Tables", "media_keys": ["confusion_matrix_table",
                                                                                  "class_accuracy_table"]}],
        },
        {"name": "Claims", "panels": [{"kind": "MarkdownPanel", "markdown": claims(results)}]},
    ]  # fmt: skip


def claims(results: Path) -> str:
    """Return the verdicts on all claims in one short table."""
    verdicts, errors = judged(results, read_runs(results / "runs.csv"))
    if errors:
        raise errors[0]
    return markdown(
        ["claim", "verdict"], [[one.claim["claim"], f"**{one.status}**"] for one in verdicts], numbers=False
    )


def build(results: Path, entity: str, project: str) -> Any:
    """Return the workspace as an unsaved object of wandb-workspaces.

    Raises:
        ImportError: the package is not installed.
    """
    from wandb_workspaces import workspaces
    from wandb_workspaces.expr import Config

    built = [
        workspaces.Section(name=section["name"], panels=[_panel(**panel) for panel in section["panels"]], is_open=True)
        for section in sections(results)
    ]
    runs = workspaces.RunsetSettings(groupby=[Config(key) for key in GROUP_BY])
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=built, runset_settings=runs)


def _panel(kind: str, **arguments: Any) -> Any:
    from wandb_workspaces.reports import v2

    for axis in ("x", "y"):
        place, _, name = str(arguments.get(axis)).partition(":")
        if place in ("config", "summary"):
            arguments[axis] = {"config": v2.Config, "summary": v2.SummaryMetric}[place](name)
    return getattr(v2, kind)(**arguments)
