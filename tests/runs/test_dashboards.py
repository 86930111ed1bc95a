"""W&B runs, read back from their offline records."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from attnconv.run import run
from attnconv.runs.dashboards import Dashboard
from attnconv.runs.folder import run_folder_path
from conftest import PYTHON, TINY_SCALE

VARIABLES = ("MODE", "PROJECT", "ENTITY", "NAME", "TAGS", "RUN_GROUP", "DIR", "NOTES", "JOB_TYPE", "API_KEY", "RUN_ID",
             "SWEEP_ID", "DISABLED", "BASE_URL")  # fmt: skip


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """Remove the W&B account and settings from the environment, and redirect W&B's own files."""
    wandb = pytest.importorskip("wandb")
    for name in VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    wandb.teardown()  # wandb reads the environment only once
    yield
    wandb.teardown()  # other tests must not use this environment


def read_back(folder):
    """Return the records of one offline run: its start, the last summary, histories, and artifacts by type."""
    (path,) = folder.glob("wandb/offline-run-*")
    command = [PYTHON, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    records = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
    (start,) = [record["run"] for record in records if record["type"] == "run"]
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    artifacts = {record["artifact"]["type"]: record["artifact"] for record in records if record["type"] == "artifact"}
    return start, summary, history, artifacts


def test_wandb_run_has_group_config_summary_and_weights(tiny, monkeypatch):
    for name, value in {"MODE": "offline", "RUN_ID": "", "PROJECT": "", "TAGS": ""}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = tiny("logger=wandb", "logger.weights=true", "seed=3", "data.fraction=0.5", "name=study")
    result = run(config)
    start, summary, _, artifacts = read_back(run_folder_path(config))
    assert (start["project"], start["job_type"]) == ("attnconv", "train")
    assert start["run_group"] == "study/conv3x3/mini-modern/frac0.5", "seeds of one group are averaged"
    assert start["display_name"].startswith("seed3 conv3x3")
    flat = start["config"]["update"]
    assert {key: flat[key] for key in ("model", "recipe", "scale", "fraction", "seed", "name")} == {
        "model": "conv3x3", "recipe": "modern", "scale": "mini", "fraction": 0.5, "seed": 3, "name": "study",
    }  # fmt: skip
    assert flat["recipe.lr"] == config.recipe.lr
    for key in ("parameters", "flops_full", "precision", "device", "commit", "data_hash", "cpu_seconds", "test_acc",
                "images_per_second"):  # fmt: skip
        assert summary[key] == pytest.approx(result[key]), key
    predictions = np.load(run_folder_path(config) / "predictions.npy")
    right = predictions == np.arange(20) % 4
    assert [summary[f"class_accuracy.{label}"] for label in range(4)] == [right[label::4].mean() for label in range(4)]
    assert summary["confusion_matrix_table.nrows"] == 16
    assert artifacts["model"]["manifest"]["contents"][0]["path"] == "weights.safetensors"


def test_settings_override_wandb_variables_which_override_defaults(tiny, monkeypatch, tmp_path):
    asked = {"PROJECT": "mine", "ENTITY": "us", "NAME": "called", "TAGS": "one,two", "RUN_GROUP": "pairs",
             "NOTES": "a remark", "JOB_TYPE": "kind", "MODE": "offline"}  # fmt: skip
    for name, value in asked.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    config = tiny("logger=wandb", "epochs=1", "logger.group=other", "logger.notes=mine")
    run(config)
    start, _, _, artifacts = read_back(tmp_path / "elsewhere")
    found = {key: start[key] for key in ("project", "entity", "display_name", "tags", "run_group", "notes", "job_type")}
    assert found == {
        "project": "mine", "entity": "us", "display_name": "called", "tags": ["one", "two"], "run_group": "other",
        "notes": "mine", "job_type": "kind",
    }  # fmt: skip
    assert "model" not in artifacts, "weights are kept when asked for"
    assert not (run_folder_path(config) / "wandb").exists()


def test_an_invalid_wandb_variable_is_named_and_empty_ones_are_not_set(tiny, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_RUN_ID", "")
    monkeypatch.setenv("WANDB_MODE", "sideways")
    assert run(tiny("logger=wandb", "epochs=1"))["status"] == "done"
    assert "wandb is off for this run (1 validation error for Settings mode Input should be" in capsys.readouterr().err


@pytest.mark.parametrize("variables", [{}, {"WANDB_MODE": "online"}])
def test_a_failed_login_records_offline_and_prints_one_line(tiny, monkeypatch, capsys, variables):
    for name, value in (variables | {"WANDB_API_KEY": "short", "WANDB_BASE_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    config = tiny("logger=wandb", "epochs=1", "data.holdout=0.2", "logger.project=p", "logger.tags=[a]")
    run(config)
    shown = capsys.readouterr()
    (line,) = [line for line in shown.out.splitlines() if "W&B" in line]
    assert line.startswith("W&B: offline (WANDB_API_KEY invalid")
    assert "warning" not in shown.err
    start, summary, history, _ = read_back(run_folder_path(config))
    assert [row["epoch"] for row in history] == [1]
    assert (start["project"], start["job_type"], start["tags"]) == ("p", "tune", ["a"])
    assert "val_acc" in summary


def test_a_preempted_sweep_trial_resumes(command, arrays, monkeypatch, tmp_path):
    """The agent restarts it with its whole configuration as arguments and the same run id."""
    for name, value in {"MODE": "offline", "SWEEP_ID": "sweep", "RUN_ID": "trial1", "PROJECT": "agents"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    fixed = [*TINY_SCALE, "data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "logger=wandb",
             "device=cpu", "recipe.batch_size=16", "epochs=3"]  # fmt: skip
    real = Dashboard.log

    def preempted(self, epoch, metrics):
        if epoch == 2:
            raise KeyboardInterrupt
        real(self, epoch, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Dashboard, "log", preempted)
        assert command("train.py", *fixed, "recipe.lr_scale=0.5").returncode != 0
    (folder,) = tmp_path.glob("outputs/trial_trial1/*/*/*/seed0")
    configuration = read_back(folder)[0]["config"]["update"]
    whole = [f"{key}={value}" for key, value in configuration.items() if key != "_wandb"]
    finished = command("train.py", *fixed, *whole)
    assert finished.returncode == 0, finished.stderr
    assert ", resuming after epoch 1" in finished.stdout
    start, summary, history, _ = read_back(folder)
    assert (start["run_id"], start["project"]) == ("trial1", "agents")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert summary["test_acc"] == json.loads((folder / "result.json").read_text())["test_acc"]


def test_offline_data_of_other_runs_stays_and_long_names_fit_into_tags(tiny, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "dryrun")  # W&B's older word for offline
    config = tiny("logger=wandb", "epochs=1", f"name={'n' * 150}")
    files = run_folder_path(config) / "wandb"
    other = files / "offline-run-20260101_000000-grid-1"
    other.mkdir(parents=True)
    (files.parent / ".wandb-id").write_text("1")
    run(config)
    assert other.exists()
    shutil.rmtree(other)
    start, *_ = read_back(files.parent)
    assert start["tags"][-1] == "n" * 64
    assert "W&B: offline in " in capsys.readouterr().out
