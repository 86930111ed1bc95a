"""Collecting a run that replaces another one of the same name."""

import shutil

import pytest

from attnconv.report.collect import gather
from attnconv.run import run
from attnconv.runs.folder import run_folder_path


@pytest.mark.parametrize("measured", [True, False])
def test_a_replaced_run_does_not_pass_on_what_was_measured_of_it(tmp_path, tiny, measured):
    results, one = tmp_path / "results", tmp_path / "outputs"
    run(tiny())
    (run_folder_path(tiny()) / "probe.json").write_text('{"dirty": false}')
    gather(one, results)
    shutil.rmtree(one)
    run(tiny("recipe.lr=0.1"))
    if measured:
        (run_folder_path(tiny()) / "probe.json").write_text('{"dirty": true}')
    (name,) = gather(one, results, replace=True).added
    probe = results / "runs" / name / "probe.json"
    assert probe.read_text() == '{"dirty": true}' if measured else not probe.exists()
