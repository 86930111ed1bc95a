"""The study's W&B workspace, as far as it can be tested without an account."""

import json

import pytest

from attnconv.report.workspace import build
from conftest import REPOSITORY


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    for name in ("API_KEY", "PROJECT", "ENTITY", "MODE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()  # wandb reads the environment only once


def test_a_dry_run_prints_the_workspace(command, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    finished = command("scripts/wandb_dashboard.py", "--dry-run")
    shown = json.loads(finished.stdout)
    assert (finished.returncode, shown["project"]) == (0, "mine")
    panels = {section["name"]: section["panels"] for section in shown["sections"]}
    assert [panel["y"] for panel in panels["Curves"]][:2] == [["test/acc"], ["test/loss"]]
    assert panels["Data size"][0]["x"] == "config:fraction"
    assert panels["Heads and confusion matrix"][0]["media_keys"] == ["heads"]
    (claims,) = panels["Claims"]
    assert "| With little data, convolution wins. | **" in claims["markdown"]


def test_an_invalid_wandb_variable_is_a_one_line_error_that_names_it(command, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    finished = command("scripts/wandb_dashboard.py")
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert finished.stderr.startswith("error: W&B cannot be used (1 validation error for Settings mode Input should be")


@pytest.mark.parametrize(("project", "fault"), [("", "1 to 128 characters; '' has 0"), ("a/b", "not contain /")])
def test_a_project_that_wandb_would_refuse_is_an_error(command, project, fault):
    finished = command("scripts/wandb_dashboard.py", "--dry-run", "--project", project)
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert finished.stderr.startswith("error: --project")
    assert fault in finished.stderr


def test_without_a_login_the_error_suggests_local_alternatives(command):
    finished = command("scripts/wandb_dashboard.py")
    assert finished.returncode == 2
    assert "W&B is not logged in (run wandb login); without an account: make dashboard" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_workspace_builds_with_wandb_workspaces():
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces: pip install 'attnconv[workspaces]'")
    workspace = build(REPOSITORY / "results", "us", "mine")
    assert workspace.sections[0].name == "Curves"
    assert workspace._to_model().model_dump_json()
