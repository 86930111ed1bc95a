"""Sweeps on a real one-node Slurm cluster, with jobs that are canceled, time out or are preempted.

    make test-slurm

Installs and starts Slurm on this machine (cluster.sh). Skipped without root and apt-get.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.status import read_state
from conftest import PYTHON, REPOSITORY, TINY_SCALE, write_arrays

pytestmark = pytest.mark.slurm
CLUSTER = Path(__file__).with_name("cluster.sh")

# The duration of a job must not depend on the speed of the machine: these models wait in every training step.
MODULE = """
import time

from attnconv.mixers.convolution import Convolution


class Slow(Convolution):
    def __init__(self, *arguments, seconds, **settings):
        super().__init__(*arguments, **settings)
        self.seconds = seconds

    def forward(self, x):
        if self.training:
            time.sleep(self.seconds)
        return super().forward(x)
"""
CONFIG = """
defaults: [/backbone@_here_, _self_]
name: {name}
mixer: {{_target_: slow.Slow, _partial_: true, kernel_size: 3, seconds: {seconds}}}
"""
EPOCHS = 100  # of 3 steps, each through 2 layers
HANGS = 3600  # seconds, far longer than anything here takes


@pytest.fixture(scope="module")
def cluster():
    """The environment in which Slurm's commands reach the cluster."""
    started = subprocess.run([CLUSTER, "start"], stdout=subprocess.PIPE, text=True)
    if started.returncode == 77:
        pytest.skip("no cluster can be made here: it takes root and apt-get")
    assert started.returncode == 0
    configuration = started.stdout.strip().removeprefix("export SLURM_CONF=")
    yield os.environ | {"SLURM_CONF": configuration}
    subprocess.run([CLUSTER, "stop"], check=True)


@pytest.fixture
def command(tmp_path, cluster):
    """Return a function that starts a sweep over models on tiny data, with one job per model."""
    write_arrays(tmp_path / "arrays")
    (tmp_path / "slow.py").write_text(MODULE)
    (tmp_path / "configs/model").mkdir(parents=True)
    for name, seconds in (("slow_a", 0.16), ("slow_b", 0.05), ("slow_c", 0.08)):
        (tmp_path / f"configs/model/{name}.yaml").write_text(CONFIG.format(name=name, seconds=seconds))
    environment = {key: value for key, value in cluster.items() if key != "OMP_NUM_THREADS"}

    def start(*overrides):
        fixed = ["data=arrays", f"data.root={tmp_path}/arrays", f"output={tmp_path}/outputs", "logger=none"]
        fixed += [f"epochs={EPOCHS}", f"eval_every={EPOCHS}", "recipe.batch_size=16"]
        fixed += ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
        return subprocess.Popen(
            [PYTHON, "train.py", "--config-dir", tmp_path / "configs", "-m", *TINY_SCALE, *fixed, *overrides],
            cwd=REPOSITORY, env=environment | {"PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def slurm(cluster, *command):
    return subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout


def wait_until(condition, process):
    deadline = time.monotonic() + HANGS
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the sweep ended early: {process.communicate()}")
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)


def folder(tmp_path, model):
    return tmp_path / "outputs/default" / model / "mini-modern/frac1/seed0"


def finish(process):
    """Return the exit code, the last summary line of each model, the counts, and stderr."""
    out, err = process.communicate(timeout=HANGS)
    lines = out.splitlines()
    cells = {}
    for line in lines:
        if line.startswith("  ") and "/seed0" in line:
            status, path = line.split()[:2]
            cells[path.split("/default/")[1].split("/")[0]] = status, line.partition(": ")[2]
    return process.returncode, cells, lines[-1] if lines else "", err


def assert_as_if_undisturbed(tmp_path, tiny, model):
    """Check that the metrics are the same bytes as those of a run in this process, on one thread as in the job."""
    undisturbed = tiny(f"epochs={EPOCHS}", f"eval_every={EPOCHS}", "model=conv3x3", "name=undisturbed")
    if not run_folder_path(undisturbed).exists():
        run(undisturbed)
    expected = (run_folder_path(undisturbed) / "metrics.jsonl").read_bytes()
    assert (folder(tmp_path, model) / "metrics.jsonl").read_bytes() == expected


def test_a_sweep_handles_a_job_timeout_and_a_cancellation(tmp_path, tiny, cluster, command):
    models = ["slow_a", "slow_b", "sa_quadratic", "conv3x3", "resnet10"]
    sweep = [f"model={','.join(models)}", "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=60"]
    process = command(*sweep)
    wait_until(lambda: read_state(folder(tmp_path, "slow_b")).epoch >= 1, process)
    (array,) = set(slurm(cluster, "squeue", "--noheader", "--format=%F").split())
    slurm(cluster, "scancel", f"{array}_{models.index('slow_b')}")

    code, cells, counts, err = finish(process)
    states = slurm(cluster, "sacct", "--duplicates", "--noheader", "--parsable2", "--format=JobID,State", "-j", array)
    assert f"{array}_{models.index('slow_a')}|REQUEUED" in states, "it met its time limit"
    assert {model: status for model, (status, _) in cells.items()} == {
        model: "unfinished" if model == "slow_b" else "done" for model in models
    }
    assert f"job {array}_1 ended as CANCELLED" in cells["slow_b"][1]
    assert counts == "sweep of 5 runs: 4 done, 1 unfinished"
    assert code == 1
    assert "1 of 5 runs is not done; rerun the same command to run what is missing" in err
    assert_as_if_undisturbed(tmp_path, tiny, "slow_a")
    result = json.loads((folder(tmp_path, "slow_a") / "result.json").read_text())
    assert result["device"].endswith(", 1 thread"), "as many as the job asked for"

    process = command(*sweep[:1])
    code, cells, counts, err = finish(process)
    assert (code, counts) == (0, "sweep of 5 runs: 4 skipped, 1 done"), err
    assert_as_if_undisturbed(tmp_path, tiny, "slow_b")


def test_a_preempted_job_resumes_and_gives_the_same_result(tmp_path, tiny, cluster, command):
    process = command("model=slow_c")
    wait_until(lambda: read_state(folder(tmp_path, "slow_c")).epoch >= 1, process)
    slurm(cluster, "sbatch", "--partition=urgent", "--ntasks=8", "--output=/dev/null", "--wrap=sleep 1")
    code, cells, _, err = finish(process)
    assert (code, cells["slow_c"][0]) == (0, "done"), err
    (job,) = (path.parent.name for path in tmp_path.glob("outputs/.sweeps/*/.submitit/*/*_submitted.pkl"))
    states = slurm(cluster, "sacct", "--duplicates", "--noheader", "--parsable2", "--format=State", "-j", job)
    assert "PREEMPTED" in states
    assert_as_if_undisturbed(tmp_path, tiny, "slow_c")


def test_an_unknown_partition_is_a_one_line_error(tmp_path, command):
    process = command("seed=0,1", "hydra.launcher.partition=nope")
    code, _, _, err = finish(process)
    assert code == 2
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert error == "error: the cluster rejects the sweep: invalid partition specified: nope"
    assert "Traceback" not in err
