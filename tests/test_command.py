"""train.py as a user runs it: one-line errors, sweeps, dashboards and the progress bar."""

import contextlib
import fcntl
import importlib
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from hydra.core.plugins import Plugins

from attnconv.run import run
from attnconv.runs.status import read_state
from conftest import ENVIRONMENT, PYTHON, REPOSITORY, TINY_SCALE
from processes import run_script

pytestmark = pytest.mark.slow


@pytest.fixture
def train_in(command, arrays, tmp_path, monkeypatch):
    """Return a function that runs train.py on tiny arrays in this process, with a mode (--run or -m) and overrides."""
    monkeypatch.chdir(REPOSITORY)
    fixed = ["data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "epochs=1", "logger=none"]
    fixed += ["model=conv3x3", "device=cpu"]
    return lambda mode, *overrides: command("train.py", mode, *TINY_SCALE, *fixed, *overrides)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("epohcs=3", "unknown setting 'epohcs'; did you mean 'epochs'?"),
        ("model=sa_quadratik", "model=sa_quadratik does not exist; did you mean 'sa_quadratic'?"),
        ("experiment=quickstat", "experiment=quickstat does not exist; did you mean 'quickstart'?"),
        ("epochs=many", "epochs must be a whole number, not 'many'"),
        ("model.mixer.kernel_siz=3", "did you mean 'model.mixer.kernel_size'?"),
        ("scale.heads=0", "scale.heads must be at least 1, not 0"),
        ("device=cuda:99", "this machine has"),
        ("scale.patch=3", "do not divide into patches"),
    ],
)
def test_invalid_settings_exit_2_with_one_error_line(train_in, tmp_path, override, complaint):
    finished = train_in("--run", override)
    assert finished.returncode == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint in errors[0]
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_finished_run_is_not_run_again(train_in):
    assert train_in("--run").returncode == 0
    again = train_in("--run")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "is already finished" in again.stderr
    assert again.stderr.count("\n") == 1, "Hydra prints nothing itself"


@pytest.mark.parametrize("mode", ["--run", "-m"])
def test_an_unwritable_output_folder_is_a_one_line_error(train_in, tmp_path, mode):
    (tmp_path / "file").write_text("")
    finished = train_in(mode, f"output={tmp_path}/file/deep")
    assert finished.returncode == 2
    assert len([line for line in finished.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in finished.stderr


def test_each_run_of_a_sweep_has_its_own_folder(train_in, tmp_path):
    finished = train_in("-m", "model=conv3x3,mlp_mixer", "seed=0,1", "data.fraction=0.5,1")
    assert finished.returncode == 0, finished.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("**/result.json")]
    cells = {(result["model"], result["seed"], result["fraction"]) for result in results}
    assert len(results) == len(cells) == 8
    assert {result["train_images"] for result in results} == {20, 40}


def test_a_repeated_sweep_runs_only_missing_runs_and_reports_failures(train_in, command, tmp_path):
    assert train_in("-m", "seed=0").returncode == 0
    again = train_in("-m", "seed=0,1")
    assert again.returncode == 0, again.stderr
    skipped, done, counts = again.stdout.splitlines()[-3:]
    assert re.fullmatch(r"  skipped     \S+/seed0: done before, test accuracy \d+\.\d\d%", skipped)
    assert re.fullmatch(r"  done        \S+/seed1: test accuracy \d+\.\d\d%", done)
    assert counts == "sweep of 2 runs: 1 skipped, 1 done"

    partly = train_in("-m", "seed=2", "scale.patch=3,4", "name=patch${scale.patch}")
    assert partly.returncode == 1
    assert partly.stderr.count("error: model=conv3x3: images of 8x8 pixels do not divide into patches of 3x3") == 1
    assert "Traceback" not in partly.stderr
    assert len(list((tmp_path / "outputs").glob("patch4/**/result.json"))) == 1, "the others are run"
    assert partly.stdout.splitlines()[-1] == "sweep of 2 runs: 1 done, 1 failed"

    shown = command("scripts/status.py", tmp_path / "outputs").stdout
    assert shown.splitlines()[-1] == "4 runs: 3 done, 1 failed", "and nothing is left to wait for"
    assert re.search(r"^failed +patch3/\S+ +model=conv3x3: images of 8x8", shown, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model=glob(nothing_is_called_so*)"], "the sweep is empty"),
        (["seed=range(3,3)"], "the sweep is empty"),
        (["epohcs=1,2"], "unknown setting 'epohcs'; did you mean 'epochs'?"),
        (["seed=0,-1"], "seed must be at least 0, not -1"),
        (["data.subset_seed=0,1", "data.fraction=0.5"], "they differ only in data.subset_seed"),
        (["seed=0,0"], "they are the same run"),
        (["hydra/launcher=nope", "seed=0,1"], "hydra/launcher=nope does not exist"),
    ],
)
def test_invalid_sweeps_are_refused_before_the_first_run(train_in, tmp_path, overrides, complaint):
    finished = train_in("-m", *overrides)
    assert finished.returncode == 2
    (error,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert complaint in error
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "outputs").exists()


def test_joblib_trains_in_parallel_and_divides_the_threads(train_in, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    from joblib.externals.loky import get_reusable_executor

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    at_once = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    finished = train_in("-m", "seed=0,1", "data.fraction=1,0.001", "name=f_${data.fraction}", *at_once)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-1] == "sweep of 4 runs: 2 done, 2 failed"
    assert "f_1.0/conv3x3/mini-modern/frac1/seed1: epoch 1/1" in finished.stderr, "each line names its run"
    results = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("**/result.json")]
    get_reusable_executor().shutdown(wait=True)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [result["cpu"]["threads"] for result in results] == [threads] * 2


@pytest.mark.slow
def test_ctrl_c_lets_the_runs_of_joblib_save_themselves(arrays, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    settings = [*TINY_SCALE, "data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "logger=none"]
    settings += ["device=cpu", "model=conv3x3", "epochs=1000000", "checkpoint_minutes=1000", "seed=0,1,2"]
    at_once = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [PYTHON, "train.py", "-m", *settings, *at_once],
        cwd=REPOSITORY, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    folders = [tmp_path / f"outputs/default/conv3x3/mini-modern/frac1/seed{seed}" for seed in range(3)]
    while not all(read_state(folder).epoch for folder in folders[:2]):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert [read_state(folder).status for folder in folders] == ["interrupted", "interrupted", "waiting"]
    assert out.splitlines()[-1] == "sweep of 3 runs: 1 waiting, 2 interrupted"
    assert err.splitlines()[-1] == "stopped by SIGINT; rerun the same command to resume"


@pytest.mark.parametrize("setting", ["n_jobs=0", "batch_size=0", "pre_dispatch=some"])
def test_invalid_settings_of_joblib_are_one_line_errors(train_in, setting):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    finished = train_in("-m", "seed=0,1", "hydra/launcher=joblib", f"hydra.launcher.{setting}")
    assert finished.returncode == 2
    (error,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: hydra.launcher: ")
    assert "Traceback" not in finished.stderr


def test_a_slurm_sweep_without_slurm_is_a_one_line_error(train_in, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "/nowhere")
    finished = train_in("-m", "seed=0,1", "hydra/launcher=submitit_slurm")
    assert finished.returncode == 2
    (error,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith('error: the sweep cannot be submitted: Could not detect "srun"')
    assert "Traceback" not in finished.stderr


def test_a_slurm_sweep_without_a_cluster_is_a_one_line_error(train_in, monkeypatch, tmp_path):
    """The last line of Slurm says that there is none; those before it are about where it searched."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    said = "sbatch: error: _establish_config_source: failed to fetch config\nsbatch: fatal: Could not find a source"
    for command in ("srun", "sbatch"):
        path = tmp_path / "bin" / command
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    finished = train_in("-m", "seed=0,1", "hydra/launcher=submitit_slurm")
    assert finished.returncode == 2
    (error,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert error == "error: sbatch finds no cluster from this machine: Could not find a source"


def test_dashboards_need_no_account_and_do_not_prompt(arrays, tmp_path):
    """Run in a separate process without a terminal, because both libraries cache what they find at import."""
    environment = ENVIRONMENT | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        environment.pop(name, None)
    settings = [*TINY_SCALE, "data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "device=cpu"]
    settings += ["model=conv3x3", "epochs=1", "logger=wandb,trackio", "name=${logger.name}"]
    finished = run_script("train.py", "-m", *settings, cwd=REPOSITORY, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert "warning" not in finished.stderr
    assert list((tmp_path / "outputs").glob("wandb/**/offline-run-*/*.wandb"))
    assert list((tmp_path / "trackio").glob("**/attnconv*.db"))


def test_cfg_and_help_show_the_configuration(command):
    assert "optimizer: sgd" in command("train.py", "--cfg", "job", "--resolve").stdout
    helped = command("train.py", "--help").stdout
    assert "recipe: modern, paper" in helped
    assert "recipe_for_model" not in helped  # selected by the model and the recipe together
    common = ("model=", "scale=", "recipe=", "seed=", "epochs=", "data.fraction=", "match=", "name=")
    places = [helped.index(f"\n  {key}") for key in common]
    assert places == sorted(places)
    assert "sa_quadratic_generalized" in helped


def test_a_terminal_shows_a_progress_bar(tiny):
    config = tiny("epochs=5", "model=conv3x3")
    child, terminal = pty.fork()
    if not child:
        run_in_a_terminal(config)
    shown = b""
    with contextlib.suppress(OSError):  # raised by Linux when the other end closes
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, shown.decode()
    bars = [line for line in shown.decode().split("\r") if "epoch" in line and "img/s" in line]
    assert bars, shown.decode()
    # Time left, speed, loss and accuracy: "[00:01<00:09, 271img/s, train loss 2.400 acc 7.8%".
    assert re.search(r"<[\d:?]+, .*img/s, train loss [\d.]+ acc [\d.]+%", bars[-1]), bars[-1]
    assert "test accuracy" in shown.decode().strip().splitlines()[-1]


def run_in_a_terminal(config):
    """Run `config` in this forked process, in a terminal 130 columns wide, and end the process."""
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    try:
        with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
            run(config)
    except BaseException:
        os._exit(1)
    os._exit(0)


SEARCH = """
from hydra_plugins.attnconv_sweeper import *

class Search(BasicSweeper):
    def __init__(self, direction):
        super().__init__(max_batch_size=None, params=None)

    def sweep(self, arguments):
        trials = [[*arguments, f"seed={seed}"] for seed in (0, 1)]
        print("returned", [job.return_value for job in self.launcher.launch(trials, initial_job_idx=0)])

@dataclass
class SearchConf:
    _target_: str = "hydra_plugins.search_sweeper.Search"
    direction: str = "minimize"

ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="search")
"""


@pytest.fixture
def search(train_in, tmp_path, monkeypatch):
    """Return a function that runs train.py -m with overrides and the sweeper of a plugin."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/search_sweeper.py").write_text(SEARCH)
    monkeypatch.syspath_prepend(tmp_path)

    def run(*overrides):
        monkeypatch.delitem(sys.modules, "hydra_plugins.search_sweeper", raising=False)
        Plugins.instance().register(importlib.import_module("hydra_plugins.search_sweeper").Search)
        return train_in("-m", "hydra/sweeper=search", *overrides)

    return run


def test_optimizing_sweepers_get_validation_accuracy_never_test_accuracy(search, tmp_path):
    for settings, complaint in (
        (["hydra.sweeper.direction=maximize"], "needs a validation set: set data.holdout=0.1"),
        (["data.holdout=0.2"], "would minimize the accuracy: set hydra.sweeper.direction=maximize"),
    ):
        refused = search(*settings)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert complaint in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not list((tmp_path / "outputs").glob("**/config.yaml")), "before any trial"

    settings = ["hydra.sweeper.direction=maximize", "data.holdout=0.2"]
    searched = search(*settings)
    assert searched.returncode == 0, searched.stderr
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "outputs").glob("**/result.json"))]
    assert [result["seed"] for result in results] == [0, 1]
    returned = f"returned {[result['val_acc'] for result in results]}"
    assert searched.stdout.splitlines()[-1] == returned
    assert search(*settings).stdout.splitlines()[-1] == returned, "what is finished is not run again"
