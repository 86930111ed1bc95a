"""A sweep skips finished runs, runs the missing ones, and finally reports how each run ended."""

import fcntl
import json
import re
import signal

import pytest

from attnconv.errors import CellFailed, ConfigError, RunFolderError, Stopped, SweepIncomplete
from attnconv.report.collect import gather
from attnconv.run import run, run_in_sweep
from attnconv.runs.folder import RunFolder, run_name
from attnconv.runs.status import noted_cells, read_state, survey
from attnconv.sweeps.grid import Cell, clash, run_cells


@pytest.fixture
def sweep(tiny, tmp_path):
    """Return a function that runs a sweep over seeds in this process and returns the seeds that were run."""

    def start(*seeds, overrides=(), fail=None, launch=None):
        cells = [Cell([f"seed={seed}"], tiny("epochs=1", f"seed={seed}", *overrides)) for seed in seeds]
        ran = []

        def launch_here(overrides):
            reasons = []
            for ((seed,),) in ((one,) for one in overrides):
                (cell,) = (cell for cell in cells if cell.overrides == [seed])
                ran.append(cell.config.seed)
                try:
                    if fail:
                        fail(cell)
                    run(cell.config)
                    reasons.append(None)
                except RuntimeError as error:
                    reasons.append(str(error))
            return reasons

        try:
            run_cells(cells, launch or launch_here, tmp_path / "outputs" / ".sweeps" / "now")
        finally:
            start.ran = ran
        return ran

    return start


def folders(tiny, *seeds):
    return [RunFolder(tiny("epochs=1", f"seed={seed}")).path for seed in seeds]


def summary(capsys):
    """Return the status and detail of each run in the last summary, by seed, and the line with the counts."""
    lines = capsys.readouterr().out.splitlines()
    counts = max(index for index, line in enumerate(lines) if line.startswith("sweep of "))
    cells = {}
    for line in lines[:counts]:
        if "/seed" in line and line.startswith("  "):
            status, _, rest = line.strip().partition(" ")
            seed, _, detail = rest.rpartition("/seed")[2].partition(": ")
            cells[int(seed)] = status, detail
    return cells, lines[counts]


def test_finished_runs_are_skipped(sweep, capsys):
    assert sweep(0, 1) == [0, 1]
    assert sweep(0, 1, 2) == [2]
    cells, counts = summary(capsys)
    assert {seed: status for seed, (status, _) in cells.items()} == {0: "skipped", 1: "skipped", 2: "done"}
    assert counts == "sweep of 3 runs: 2 skipped, 1 done"
    assert sweep(0, 1, 2) == []


def test_collected_runs_count_in_the_means(sweep, tmp_path, capsys):
    sweep(0)
    gather(tmp_path / "outputs", tmp_path / "results")
    again = sweep(0, 1, overrides=[f"collected={tmp_path}/results", f"output={tmp_path}/again"])
    assert again == [1]
    out = capsys.readouterr().out
    assert "sweep of 2 runs: 1 skipped, 1 done" in out
    assert re.search(r"^test accuracy over seeds:\n.*, n=2$", out, re.MULTILINE)


def test_a_damaged_collected_run_does_not_count_as_done(tiny, tmp_path, capsys):
    config = tiny(f"collected={tmp_path}/results")
    folder = tmp_path / "results/runs" / run_name(config)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{")
    assert Cell([], config).collected is None
    assert f"warning: {folder} is damaged" in capsys.readouterr().err


def test_a_plot_that_fails_does_not_hide_the_summary(sweep, capsys, monkeypatch):
    def plot(*_):
        raise ValueError("no such\nletter")

    monkeypatch.setattr("attnconv.sweeps.grid.plot", plot)
    assert sweep(0) == [0]
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "sweep of 1 run: 1 done"
    assert err.splitlines()[-1].endswith("accuracy.png cannot be drawn: no such letter")


def test_outputs_cannot_be_swept(tiny, start_sweep, tmp_path):
    with pytest.raises(ConfigError, match="output cannot be swept"):
        start_sweep(tiny(f"output={tmp_path}/a"), tiny(f"output={tmp_path}/b"))


def test_failed_runs_are_retried_only_on_request(sweep, tiny, capsys):
    def write_failure(cell):
        if cell.config.seed == 1:
            folder = RunFolder(cell.config)
            folder.open()
            folder.write_result({"status": "failed", "reason": "Diverged: the loss"})
            folder.close()
            raise RuntimeError("the loss")

    with pytest.raises(SweepIncomplete, match="1 of 2 runs is not done; retry_failed=true retries failed runs"):
        sweep(0, 1, fail=write_failure)
    cells, counts = summary(capsys)
    assert cells[1] == ("failed", "the loss")
    assert counts == "sweep of 2 runs: 1 done, 1 failed"
    with pytest.raises(SweepIncomplete):
        sweep(0, 1)
    assert sweep.ran == []
    assert summary(capsys)[0][1] == ("failed", "failed before; retry_failed=true retries it: Diverged: the loss")
    assert sweep(0, 1, overrides=["retry_failed=true"]) == [1]

    def refuse(cell):
        raise RuntimeError("less than one image")

    with pytest.raises(SweepIncomplete, match="1 of 1 run is not done; see above"):  # it is retried anyway
        sweep(2, fail=refuse)


def test_a_stopped_sweep_prints_its_summary_and_can_continue(sweep, tiny, capsys):
    def stop(cell):
        if cell.config.seed == 1:
            raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        sweep(0, 1, 2, fail=stop)
    cells, counts = summary(capsys)
    assert counts == "sweep of 3 runs: 1 done, 2 waiting"
    assert cells[0][0] == "done"
    assert sweep(0, 1, 2) == [1, 2]


def test_a_run_held_by_another_process_is_skipped(sweep, tiny, capsys):
    folder = RunFolder(tiny("epochs=1", "seed=1"))
    folder.open()
    try:
        with pytest.raises(SweepIncomplete, match="rerun the same command to run what is missing"):
            sweep(0, 1)
        assert sweep.ran == [0]
        status, detail = summary(capsys)[0][1]
        assert status == "running"
        assert detail.startswith("process ")
        run_in_sweep(tiny("epochs=1", "seed=1"))  # another process took it after the sweep began
        assert "skipped: process" in capsys.readouterr().out
    finally:
        folder.close()
    assert sweep(0, 1) == [1]


def test_a_damaged_folder_is_reported_and_not_rerun(sweep, tiny, capsys):
    sweep(0)
    (folder,) = folders(tiny, 0)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(SweepIncomplete, match="see above"):
        sweep(0)
    assert summary(capsys)[0][0] == (
        "damaged",
        "metrics.jsonl has 0 of 1 line; delete the folder to run it again",
    )


def test_a_folder_with_another_configuration_stops_the_sweep_before_any_run(sweep):
    sweep(0)
    with pytest.raises(
        RunFolderError, match=r"holds a finished run of another configuration \(recipe\.lr: 0\.015 -> 0\.5\)"
    ):
        sweep(1, 0, overrides=["recipe.lr=0.5"])
    assert sweep.ran == []


def test_a_failing_launcher_is_reported(sweep, capsys):
    def give_up(overrides):
        raise OSError("a worker was killed")

    with pytest.raises(SweepIncomplete, match="1 of 1 run is not done; rerun the same command"):
        sweep(0, launch=give_up)
    assert "error: the launcher failed: OSError: a worker was killed" in capsys.readouterr().err


def test_the_error_of_a_failed_run_has_no_chained_exception(tiny):
    """A chained exception would keep its frames in memory, and with them the model and the data."""
    with pytest.raises(CellFailed, match="less than one image") as failed:
        run_in_sweep(tiny("data.fraction=0.001"))
    assert failed.value.__context__ is None
    assert failed.value.__cause__ is None


def test_run_states_are_read_from_their_folders(sweep, tiny, tmp_path):
    outputs = tmp_path / "outputs"
    sweep(0, 1, 2, 3, 4)
    waiting, failed, interrupted, killed, newer = folders(tiny, 5, 1, 2, 3, 4)
    result = json.loads((newer / "result.json").read_text())
    (failed / "result.json").write_text('{"status": "failed", "reason": "because"}')
    (interrupted / "result.json").write_text('{"status": "interrupted"}')
    (killed / "result.json").unlink()
    (newer / "result.json").write_text(json.dumps(result | {"format": 99}))
    states = survey(outputs, noted_cells(outputs))
    found = {folder.name: (state.status, state.epoch, state.epochs) for folder, state in states.items()}
    assert found == {
        "seed0": ("done", 1, 1),
        "seed1": ("failed", 1, 1),
        "seed2": ("interrupted", 1, 1),
        "seed3": ("unfinished", 1, 1),
        "seed4": ("damaged", 0, 0),
    }
    assert states[failed].detail == "because"
    assert "of a newer version" in states[newer].detail
    assert read_state(waiting).status == "waiting"


def test_a_killed_retry_is_unfinished_not_failed(tiny):
    folder = RunFolder(tiny())
    folder.open()
    folder.write_result({"status": "failed", "reason": "OutOfMemory"})
    folder.close()
    assert read_state(folder.path).status == "failed"
    again = RunFolder(tiny())
    again.open()
    again.close()  # as the operating system does for a killed process
    assert read_state(folder.path).status == "unfinished"


def test_a_run_that_cannot_start_records_the_reason(tiny, monkeypatch):
    config = tiny()

    def damaged(*arguments):
        raise RunFolderError("no checkpoint is sound\nand more")

    monkeypatch.setattr("attnconv.training.trainer.load_checkpoint", damaged)
    with pytest.raises(RunFolderError):
        run(config)
    state = read_state(RunFolder(config).path)
    assert (state.status, state.detail) == ("failed", "RunFolderError: no checkpoint is sound")


def test_two_processes_may_read_the_status_at_once(tiny):
    folder = RunFolder(tiny())
    folder.open()
    folder.close()
    with (folder.path / ".lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        assert read_state(folder.path).status == "unfinished"


def test_symbolic_links_are_followed(sweep, tmp_path):
    sweep(0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "outputs/default")
    assert [state.status for state in survey(tmp_path / "elsewhere", {}).values()] == ["done"]


def test_a_run_under_a_shorter_linked_name_is_not_waiting(sweep, tmp_path):
    sweep(0)
    outputs = tmp_path / "outputs"
    (outputs / "d").symlink_to("default")
    (folder,) = outputs.glob("default/**/seed0")
    (shown,) = survey(outputs, {folder: {"folder": "default"}}).items()
    assert (shown[0].relative_to(outputs).parts[0], shown[1].status) == ("d", "done")


def test_runs_of_one_folder_that_differ_in_an_argument_are_not_the_same_run(tiny):
    one, other = (Cell([], tiny("model=conv3x3", *more)) for more in ([], ["+model.padding_mode=circular"]))
    assert "they differ only in model.padding_mode" in clash(one, other)


@pytest.mark.parametrize("file", [".lock", "result.json"])
def test_an_unreadable_run_does_not_hide_the_others(sweep, tiny, tmp_path, file):
    sweep(0, 1)
    folder, _ = folders(tiny, 0, 1)
    (folder / file).unlink()
    (folder / file).mkdir()  # a folder cannot be read as a file, even by root
    states = survey(tmp_path / "outputs", {})
    assert [state.status for state in states.values()] == ["unreadable" if file == ".lock" else "damaged", "done"]
    assert file in states[folder].detail


@pytest.mark.parametrize(
    ("file", "content", "detail"),
    [
        ("timing.jsonl", None, "timing.jsonl has 0 of 1 line"),
        ("result.json", "{", "result.json has unexpected content (Expecting"),
        ("result.json", "[]", "result.json has unexpected content (found a list instead"),
        ("config.yaml", "a: [", "config.yaml has unexpected content (while parsing"),
        ("config.yaml", None, "no config.yaml"),
        ("metrics.jsonl", '{"epoch": 1\n', "metrics.jsonl has unexpected content (Expecting"),
        ("metrics.jsonl", '{"epoch": 1, "test/acc": 2}\n', "result.json says test/acc 0"),
    ],
)
def test_damaged_files_are_reported_and_other_runs_still_run(sweep, tiny, file, content, detail):
    sweep(0)
    (folder,) = folders(tiny, 0)
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    state = read_state(folder)
    assert state.status == "damaged"
    assert detail in state.detail
    with pytest.raises(SweepIncomplete, match="1 of 2 runs is not done; see above"):
        sweep(0, 1)
    assert sweep.ran == [1]
