"""Run identity: when another run may replace the one in a folder, and what the error suggests otherwise."""

import json
import re
import shlex
import shutil

import pytest

from attnconv.errors import Diverged, InUse, RunFolderError, SweepIncomplete
from attnconv.report.collect import gather
from attnconv.run import run
from attnconv.runs.folder import RunFolder, run_folder_path
from attnconv.runs.load import load
from attnconv.runs.records import read_config
from attnconv.runs.status import read_state
from conftest import REPOSITORY

SWEEPS = (REPOSITORY / "docs/sweeps.md").read_text()


def files_in(folder):
    """Return the contents of all files in a run folder that do not depend on timing."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in CLOCKS and "checkpoints" not in name}


CLOCKS = ("timing.jsonl", "result.json")


def test_a_corrected_run_replaces_one_that_failed_before_any_checkpoint(tiny, capsys):
    wrong = tiny("recipe=paper", "recipe.warmup=0", "recipe.lr=1e30", "precision=fp32")
    right = tiny("recipe=paper", "recipe.warmup=0", "recipe.lr=0.01", "precision=fp32")
    said = r"the (loss|gradient) of step \d \(epoch 1, batch \d of 3\) is not finite; lower recipe\.lr \(now 1e\+30\)$"
    with pytest.raises(Diverged, match=said):
        run(wrong)
    folder = run_folder_path(wrong)
    assert read_state(folder).status == "failed"
    for stale in ("heads.png", "probe.json", ".wandb-id"):
        (folder / stale).write_text("of the failed run")
    (folder / "mine").mkdir()
    for own in ("notes.md", "mine/x.npy"):
        (folder / own).write_text("of a person")
    (folder / "timing.jsonl").write_text('{"epoch": 1}\n')
    assert run(right)["status"] == "done"
    assert f"{folder}: starting over; the run there ended before its first checkpoint (recipe.lr: 1e+30 -> 0.01)" in (
        capsys.readouterr().out.splitlines()
    )
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 2
    assert not (folder / "probe.json").exists()
    found = files_in(folder)
    assert [found.pop(own) for own in ("notes.md", "mine/x.npy")] == [b"of a person"] * 2
    shutil.rmtree(folder)
    run(right)
    assert found == files_in(folder), "nothing is left of the other run"


def test_a_run_whose_configuration_is_lost_does_not_resume(tiny, interrupted):
    folder = interrupted(tiny())
    (folder / "config.yaml").unlink()
    for changed in ("recipe.lr=0.02", "recipe.lr=0.01"):
        with pytest.raises(RunFolderError, match=r"is damaged: no config\.yaml; delete the folder to run it again"):
            run(tiny(changed))


def test_a_run_that_starts_over_keeps_no_network_of_an_earlier_one(tiny, interrupted):
    folder = run_folder_path(tiny())
    run(tiny())
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    interrupted(tiny(), 2)
    left = {path.name for path in folder.iterdir()}
    assert not left & {"weights.safetensors", "predictions.npy"}, left
    with pytest.raises(RunFolderError, match=r"has no weights\.safetensors: the run is not finished"):
        load(folder)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tiny, interrupted):
    folder = interrupted(tiny())
    for name in ("metrics.jsonl", *[path.relative_to(folder) for path in folder.glob("checkpoints/*.pt")]):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(name if "/" not in str(name) else (folder / name).name)  # a link to itself
        with pytest.raises(RunFolderError, match=r"cannot be read.*Too many levels.*; rerun once it can be read"):
            run(tiny())
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    assert run(tiny())["status"] == "done"


def test_a_moved_folder_suggests_no_name_from_its_path(tiny, interrupted):
    folder = interrupted(tiny())
    shutil.copytree(folder, run_folder_path(tiny("name=moved")))
    with pytest.raises(RunFolderError, match=r"name: default -> moved\); choose another name=, or delete the folder"):
        run(tiny("name=moved"))


def test_a_run_with_a_checkpoint_is_not_replaced(tiny, interrupted):
    folder = interrupted(tiny())
    for killed in (False, True):
        (folder / "result.json").unlink(missing_ok=killed)
        with pytest.raises(RunFolderError, match="holds an unfinished run of another configuration"):
            run(tiny("recipe.lr=0.01"))


@pytest.mark.parametrize("killed", [False, True])
def test_a_sweep_replaces_a_run_that_ended_before_its_first_checkpoint(tiny, interrupted, start_sweep, killed):
    folder = interrupted(tiny("epochs=1"), 1)
    if killed:
        (folder / "result.json").unlink()
    assert start_sweep(tiny("epochs=1", "recipe.lr=0.01")) == [0]
    assert read_config(folder)["recipe"]["lr"] == 0.01


def test_a_folder_in_use_or_with_weights_is_not_replaced(tiny, start_sweep):
    other = RunFolder(tiny())
    other.open()
    for begin in (run, start_sweep):
        with pytest.raises(RunFolderError, match=r"holds an unfinished run .*\(recipe.lr: 0.015 -> 0.01\)"):
            begin(tiny("recipe.lr=0.01"))
    with pytest.raises(InUse):
        run(tiny())
    other.close()
    other.weights.write_bytes(b"somebody deleted the rest, and kept these")
    with pytest.raises(RunFolderError, match="holds an unfinished run of another configuration"):
        run(tiny("recipe.lr=0.01"))


def test_a_sweep_reruns_a_failed_run_with_corrected_settings(tiny, tmp_path, interrupted, start_sweep):
    folder = interrupted(tiny("epochs=1"), 1)
    failed = json.loads((folder / "result.json").read_text()) | {"status": "failed"}
    (folder / "result.json").write_text(json.dumps(failed))
    with pytest.raises(SweepIncomplete):
        start_sweep(tiny("epochs=1"))
    assert start_sweep(tiny("epochs=1", "recipe.lr=0.01")) == [0]


def test_hydra_job_chdir_does_not_move_outputs(train, tmp_path):
    moved = ["hydra.job.chdir=true", f"data.root=../../{tmp_path.name}/arrays"]
    assert train("-m", "seed=0,1", *moved)[0] == 0
    assert (tmp_path / "here/outputs/default/conv3x3/mini-modern/frac1/seed1/result.json").exists()
    code, shown, _ = train("-m", "seed=0,1", *moved)
    assert (code, shown.splitlines()[-1]) == (0, "sweep of 2 runs: 2 skipped")
    code, _, errors = train("hydra.job.chdir=true")
    assert (code, "seed0 is already finished" in errors) == (2, True)
    assert gather(tmp_path / "here/outputs", tmp_path / "here/results").added
    code, shown, _ = train("-m", "seed=0", "collected=results", "output=new", *moved)
    assert (code, shown.splitlines()[-1]) == (0, "sweep of 1 run: 1 skipped")


def test_the_documented_hyperparameter_sweep_works(train, tmp_path):
    (example,) = re.findall(r"^python train\.py (-m .*\$\{recipe\.lr\}.*)$", SWEEPS, flags=re.MULTILINE)
    code, shown, _ = train(*shlex.split(example))
    assert (code, shown.splitlines()[-1]) == (0, "sweep of 3 runs: 3 done")
    folders = [path.parent for path in tmp_path.glob("here/outputs/**/result.json")]
    rates = sorted(float(read_config(folder)["recipe"]["lr"]) for folder in folders)
    assert rates == [0.005, 0.015, 0.045]


def test_errors_suggest_a_name_for_hyperparameters_not_in_the_path(train):
    assert train()[0] == 0
    hint = "name='NAME_${recipe.lr}'"
    code, _, errors = train("recipe.lr=0.5")
    assert (code, f"choose another name=, such as {hint}, or delete the folder" in errors) == (2, True)
    code, _, errors = train("-m", "recipe.lr=0.5,0.6", "seed=1")
    assert (code, f"they differ only in recipe.lr, which is not part of the path; set {hint}" in errors) == (2, True)
    assert train("recipe.lr=0.5", *shlex.split(hint))[0] == 0
    hint = "name='NAME_${data.fraction}'"
    code, _, errors = train("-m", "data.fraction=0.5000001,0.5000002")
    assert (code, f"in data.fraction, and the path has only its first six digits; set {hint}" in errors) == (2, True)
    code, _, errors = train("data.fraction=0.9999999")
    assert (code, f"choose another name=, such as {hint}, or delete the folder" in errors) == (2, True)
