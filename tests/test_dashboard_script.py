"""The local dashboard: recorded runs are added to Trackio once, under names that begin with their seeds."""

import json
import os
import sqlite3
from functools import partial

import pytest

from attnconv.run import run
from conftest import REPOSITORY
from processes import run_script

pytest.importorskip("trackio")


def test_recorded_runs_are_imported_into_trackio_once(tiny, tmp_path):
    """In a separate process, because Trackio reads its data folder at import."""
    for seed in (0, 1):
        run(tiny(f"seed={seed}", "data.fraction=0.5", "name=study"))
    (folder,) = tmp_path.glob("outputs/*/*/*/*/seed1")
    damaged = folder.with_name("seed7")
    damaged.mkdir()
    (damaged / "metrics.jsonl").write_text("{}\n")
    place = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    command = ["scripts/dashboard.py", tmp_path / "outputs", "--no-show"]
    add = partial(run_script, *command, cwd=REPOSITORY, env=place)
    lines = (folder / "metrics.jsonl").read_text()
    other = "".join(json.dumps(json.loads(line) | {"test/acc": 0.125}) + "\n" for line in lines.splitlines())
    for text in (other, lines, lines):  # first, another run of the same name
        (folder / "metrics.jsonl").write_text(text)
        shown = add()
        assert shown.stdout.splitlines()[-1] == "2 runs in the project attnconv"
        assert f"skipped: {damaged}" in shown.stdout
        assert shown.returncode == 1, "not all could be read"
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY run_name, step").fetchall()
        configs = dict(connection.execute("SELECT run_name, config FROM configs").fetchall())
    name = "conv3x3 frac0.5 mini-modern study"
    assert [row[:2] for row in rows] == [(f"seed{seed} {name}", epoch) for seed in (0, 1) for epoch in (1, 2)]
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [json.loads(row[2])["test/acc"] for row in rows[2:]] == [line["test/acc"] for line in recorded]
    config = json.loads(configs[f"seed1 {name}"])
    assert (config["model"], config["data.fraction"], config["seed"]) == ("conv3x3", 0.5, 1)
    assert config["_Group"] == "study/conv3x3/mini-modern/frac0.5"


STARTS = """
import sys
from pathlib import Path
from attnconv.config import compose
from attnconv.runs.dashboards import Dashboard
config = compose(["scale=mini", "logger=trackio", f"output={sys.argv[1]}"])
for history, logged in (([], [1, 2]), ([(1, {"test/acc": 0.1}), (2, {"test/acc": 0.2})], [2, 3])):
    dashboard = Dashboard(config, Path(sys.argv[1]), history)
    for epoch in logged:
        dashboard.log(epoch, {"test/acc": epoch / 10})
    dashboard.finish("interrupted")
"""


def test_a_resumed_run_has_each_epoch_once(tmp_path):
    """Also epochs that an earlier start recorded without Trackio, or logged before it was killed."""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    (tmp_path / "starts.py").write_text(STARTS)
    shown = run_script("starts.py", tmp_path, cwd=tmp_path, env=environment)
    assert "warning" not in shown.stderr, shown.stderr
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_id, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(step, json.loads(metrics)) for _, step, metrics in rows] == [(n, {"test/acc": n / 10}) for n in (1, 2, 3)]
    assert len({run for run, _, _ in rows}) == 1


def test_a_folder_without_runs_is_an_error(command, tmp_path):
    finished = command("scripts/dashboard.py", tmp_path, "--no-show")
    assert finished.returncode == 2
    assert finished.stderr == f"error: no readable runs in {tmp_path}; train one with python train.py\n"
