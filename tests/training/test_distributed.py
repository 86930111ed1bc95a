"""Runs in separate processes: signals that stop them, and torchrun with several processes."""

import json
import shutil
import signal
import socket
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attnconv.errors import ConfigError, counted
from attnconv.run import run
from attnconv.runs.checkpoint import newest
from attnconv.runs.folder import run_folder_path
from conftest import ENVIRONMENT, PYTHON, REPOSITORY, TINY_SCALE, own_predictions, write_arrays
from processes import Script

pytestmark = pytest.mark.slow


def fixed(tmp_path):
    return ["data=arrays", f"data.root={tmp_path}/arrays", f"output={tmp_path}/outputs", "logger=none", "device=cpu"]


def start(tmp_path, *overrides):
    """Start train.py in the background, on tiny arrays."""
    if not (tmp_path / "arrays").exists():
        write_arrays(tmp_path / "arrays")
    return Script("train.py", *TINY_SCALE, *fixed(tmp_path), *overrides, cwd=REPOSITORY, env=ENVIRONMENT)


PLACES = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 needs RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: start the run with"),
        (PLACES, "WORLD_SIZE=2 needs RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT: start the run with torchrun"),
        (PLACES | {"MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, "MASTER_PORT=abc is not a number"),
        (PLACES | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many is not a number"),
    ],
)
def test_incomplete_variables_of_torchrun_are_refused(tiny, monkeypatch, variables, complaint):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=complaint):
        run(tiny())
    monkeypatch.setenv("WORLD_SIZE", "")
    assert run(tiny("epochs=1"))["processes"] == 1


LONG = ("epochs=2", "recipe.batch_size=1")  # an epoch of 3,000 steps


def begun(tmp_path, *overrides):
    """Start a run and wait until the middle of its first epoch."""
    write_arrays(tmp_path / "arrays", train=3000)
    process = start(tmp_path, *LONG, *overrides)
    process.stdout.readline(), process.stdout.readline()  # it catches signals before it prints these lines
    return process


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_a_mid_epoch_checkpoint_from_which_the_run_resumes(tmp_path, signum, code):
    process = begun(tmp_path)
    process.send_signal(signum)
    finished = process.finish()
    assert finished.returncode == code
    assert finished.stderr.splitlines()[-1] == f"stopped by {signum.name}; rerun the same command to resume"
    (result,) = (tmp_path / "outputs").glob("**/result.json")
    assert json.loads(result.read_text())["status"] == "interrupted"
    position = torch.load(newest(result.parent / "checkpoints"), weights_only=True)["position"]
    assert position["epochs_done"] == 0
    assert position["steps_in_epoch"] == position["images"] > 0, "no step is lost"
    again = start(tmp_path, *LONG)
    again.stdout.readline()
    opening = again.stdout.readline()
    again.send_signal(signal.SIGKILL)
    assert again.finish().returncode == -signal.SIGKILL
    assert f"resuming after epoch 0 and {counted(position['steps_in_epoch'], 'step')}" in opening


def test_second_signal_ends_the_run_immediately(tmp_path):
    process = begun(tmp_path)
    process.send_signal(signal.SIGSTOP)  # so that both arrive before the loop checks
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    finished = process.finish()
    assert finished.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "stopped by" not in finished.stderr
    assert not list((tmp_path / "outputs").glob("**/result.json"))
    assert not list((tmp_path / "outputs").glob("**/*.pt"))


def of_ranks():
    """Return the environment variables that torchrun sets in each of two processes, as far as train.py reads them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [about | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def torchrun(tmp_path, *overrides):
    """Run train.py in two processes, as `torchrun --nproc_per_node=2` does, but with libraries already imported."""
    command = ["train.py", *TINY_SCALE, *fixed(tmp_path), "precision=fp32", *overrides]
    ranks = [Script(*command, cwd=REPOSITORY, env=ENVIRONMENT | variables) for variables in of_ranks()]
    first, second = (process.finish() for process in ranks)
    assert first.returncode == second.returncode
    return first


SHOWS = """
import json, os, sys
with open(f"{sys.argv[1]}/{os.environ['RANK']}.json", "w") as file:
    json.dump({name: os.environ[name] for name in sys.argv[2:]}, file)
"""


def test_torchrun_sets_the_variables_with_which_these_tests_imitate_it(tmp_path):
    (tmp_path / "shows.py").write_text(SHOWS)
    imitated = of_ranks()
    command = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["shows.py", str(tmp_path), *imitated[0]]
    finished = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    true = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        assert [one[name] for one in true] == [one[name] for one in imitated]
    for both in (true, imitated):
        assert both[0]["MASTER_PORT"].isdecimal()
        assert socket.getaddrinfo(both[0]["MASTER_ADDR"], both[0]["MASTER_PORT"])
        assert [both[1][name] == both[0][name] for name in ("MASTER_ADDR", "MASTER_PORT")] == [True, True]


@pytest.mark.parametrize("model", ["sa_quadratic", "sa_learned_content recipe.cutmix=1"])
def test_two_processes_train_the_same_model_as_one(tmp_path, tiny, model):
    # The last batch has 15 images, not divisible by 2: one process gets 8 of them, as many as of a full batch.
    write_arrays(tmp_path / "arrays", train=47)
    overrides = [*f"model={model}".split(), "epochs=3", "recipe.batch_size=16", "recipe.lr=0.01"]
    overrides += ["data.flip=true", "eval_mirrored=true"]
    finished = torchrun(tmp_path, *overrides, "name=two", "warm_up=true")
    assert finished.returncode == 0, finished.stderr
    one, both = tiny(*overrides, "precision=fp32"), tiny(*overrides, "name=two")
    shutil.rmtree(run_folder_path(one), ignore_errors=True)
    run(one)
    losses = [
        [json.loads(line) for line in (run_folder_path(config) / "metrics.jsonl").read_text().splitlines()]
        for config in (one, both)
    ]
    for alone, together in zip(*losses, strict=True):
        for key in alone:
            assert together[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-6), key
    weights = [load_file(run_folder_path(config) / "weights.safetensors") for config in (one, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=1e-3)
    result = json.loads((run_folder_path(both) / "result.json").read_text())
    assert result["processes"] == 2
    predictions = np.load(run_folder_path(both) / "predictions.npy")
    expected, labels = own_predictions(run_folder_path(both))
    assert predictions.tolist() == expected, "in the order of the split, whichever process predicted them"
    assert np.mean(predictions == labels.numpy()) == result["test_acc"]


def test_torchrun_refuses_sweeps(command, arrays, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():  # as torchrun starts a process
        monkeypatch.setenv(name, value)
    settings = [*TINY_SCALE, "data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "logger=none"]
    finished = command("train.py", "-m", *settings, "device=cpu", "model=conv3x3", "seed=0,1")
    assert finished.returncode != 0
    assert "torchrun trains one run at a time; start a sweep (-m) without it" in finished.stdout + finished.stderr


def test_more_processes_than_images_in_a_batch_are_refused(tmp_path):
    write_arrays(tmp_path / "arrays", train=33)
    finished = torchrun(tmp_path, "recipe.batch_size=16")
    assert finished.returncode != 0
    assert "torchrun started 2 processes, but a batch has only 1 image (33 images in batches of 16)" in finished.stderr
    assert not (tmp_path / "outputs").exists()
