"""Runs survive kills, damaged checkpoints and full disks, and other failures have clear errors."""

import errno
import hashlib
import io
import itertools
import json
import os
import subprocess

import numpy as np
import pytest
import torch

import attnconv.training.trainer as trainer_module
import torture
from attnconv.data.dataset import TrainSplit
from attnconv.errors import ConfigError, Diverged, OutOfMemory, RunFolderError
from attnconv.models.build import build_model
from attnconv.run import run
from attnconv.runs.checkpoint import Progress, load_checkpoint, newest, save_checkpoint
from attnconv.runs.folder import RunFolder, run_folder_path
from attnconv.runs.records import read_lines
from conftest import PYTHON, tiny_below, write_arrays
from processes import CONTEXT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("overrides", "faults"),
    [
        (["epochs=6"], ["none", "flipped bit", "torn line", "none", "truncated"]),
        (["model=resnet18", "recipe=paper", "epochs=4"], ["none", "truncated", "none", "flipped bit", "torn line"]),
    ],
    ids=["epochs=6", "model=resnet18 recipe=paper epochs=4"],
)
def test_a_run_killed_five_times_gives_the_same_bytes(tmp_path, overrides, faults):
    # In a fresh process: it forks, which PyTorch refuses after some operations of other tests, such as torch.export.
    reader, writer = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=torture.torture_without_heads, args=(writer, tmp_path, faults, 1, *overrides))
    process.start()
    process.join()
    assert process.exitcode == 0, "".join(file.read_text() for file in sorted(tmp_path.glob("*.log")))
    assert reader.recv().keys() >= set(torture.FAULTS)


def test_an_error_names_the_checkpoints_if_all_are_damaged(tiny, interrupted_at_step):
    config = tiny("checkpoint_steps=1")
    interrupted_at_step(config, step=3)
    folder = run_folder_path(config) / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 2
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(RunFolderError, match=f"all checkpoints in .* are damaged .{names[1]}, {names[0]}"):
        run(config)


def test_checkpoints_from_newer_versions_and_other_models_are_refused(tiny, tmp_path, monkeypatch):
    small, large = (build_model(tiny(f"scale.width={width}").model, (3, 8, 8), 4) for width in (8, 16))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (small, large)]
    save_checkpoint(tmp_path, small, optimizers[0], Progress(1), 3)
    assert load_checkpoint(tmp_path, small, optimizers[0]) == Progress(1)
    with pytest.raises(RunFolderError, match="is a checkpoint of another model"):
        load_checkpoint(tmp_path, large, optimizers[1])
    monkeypatch.setattr("attnconv.runs.checkpoint.FORMAT", 0)
    with pytest.raises(RunFolderError, match="written by a newer version"):
        load_checkpoint(tmp_path, small, optimizers[0])


def test_epoch_seconds_include_the_time_before_an_interruption(tiny, interrupted_at_step):
    config = tiny("checkpoint_steps=1")
    interrupted_at_step(config, step=2)
    path = newest(run_folder_path(config) / "checkpoints")
    state = torch.load(path, weights_only=True)
    rewrite(path, state | {"position": state["position"] | {"seconds": 1000.0, "cpu_seconds": 1000.0}})
    result, (first, second) = run(config), read_lines(RunFolder(config).path, "timing.jsonl")
    for kind in ("seconds", "cpu_seconds"):
        assert state["position"][kind] > 0
        assert min(result[kind], first[f"train_{kind}"]) > 1000 > second[f"train_{kind}"]


def test_resuming_a_checkpoint_without_cpu_seconds_omits_them_from_the_result(tiny, interrupted_at_step):
    calm, config = tiny("name=calm"), tiny("checkpoint_steps=1")
    run(calm)
    interrupted_at_step(config, step=2)
    path = newest(run_folder_path(config) / "checkpoints")
    state = torch.load(path, weights_only=True)
    del state["position"]["cpu_seconds"], state["run"]
    rewrite(path, state | {"format": 1})
    result = run(config)
    assert result["status"] == "done"
    assert "cpu_seconds" not in result
    first, second = read_lines(RunFolder(config).path, "timing.jsonl")
    assert first["train_cpu_seconds"] is None
    assert second["train_cpu_seconds"] > 0
    for file in ("metrics.jsonl", "weights.safetensors", "predictions.npy"):
        assert (run_folder_path(config) / file).read_bytes() == (run_folder_path(calm) / file).read_bytes()


def rewrite(path, state):
    """Replace the state in a checkpoint, and rename the file to match its new hash."""
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    path.unlink()
    path.with_name(f"{path.name.partition('-')[0]}-{digest}.pt").write_bytes(content.getvalue())


def test_two_checkpoints_are_kept_and_later_steps_are_deleted(tiny, tmp_path):
    folder, model = tmp_path / "checkpoints", build_model(tiny().model, (3, 8, 8), 4)
    folder.mkdir()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2, 3, 9, 4):
        save_checkpoint(folder, model, optimizer, Progress(steps_in_epoch=step), step)
    assert sorted(path.name[4:12] for path in folder.iterdir()) == ["00000003", "00000004"]
    state = torch.load(newest(folder), weights_only=True)
    assert state["position"]["steps_in_epoch"] == 4


@pytest.mark.parametrize(
    ("file", "last", "complaint"),
    [
        ("heads.jsonl", 4, "heads.jsonl has 0 of 2 lines"),
        ("metrics.jsonl", 4, "metrics.jsonl has 0 of 1 line"),
        ("predictions.npy", None, "no predictions.npy"),
        ("predictions.npy", "other", r"predictions.npy has accuracy \S+, and the run recorded \S+; delete the folder"),
    ],
)
def test_a_run_without_its_files_does_not_resume(tiny, monkeypatch, interrupted_at_step, file, last, complaint):
    config = tiny("model=sa_quadratic", "epochs=2", "recipe.batch_size=15")  # 3 steps an epoch
    if last == 4:
        interrupted_at_step(config, step=last)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, "export_weights", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(config)
    path = run_folder_path(config) / file
    path.unlink() if last != "other" else np.save(path, (np.load(path) + 1) % 4)
    with pytest.raises(RunFolderError, match=complaint):
        run(config)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A folder with data, for one undisturbed run that several tests compare with."""
    place = tmp_path_factory.mktemp("disk")
    write_arrays(place / "arrays")
    return place


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (2, errno.ENOSPC),
        (3, errno.ENOSPC),
        (6, errno.ENOSPC),
        (11, errno.EROFS),
        (15, errno.ENOSPC),
        (16, errno.ENOSPC),  # predictions
        (20, errno.ENOSPC),  # attention maps
        (24, errno.ENOSPC),  # result.json
    ],
)
def test_a_run_resumes_after_a_full_or_read_only_disk_error(tiny, disk, monkeypatch, call, code):
    calm, hurt = (
        tiny_below(disk, "model=sa_quadratic", f"name={name}", "checkpoint_steps=2") for name in ("calm", f"hurt{call}")
    )
    if not run_folder_path(calm).exists():
        run(calm)
    calls, real = itertools.count(1), os.fsync

    def full(descriptor):
        if next(calls) >= call:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match=rf"cannot be written: {os.strerror(code)}; (once|set)"):
            run(hurt)
    assert not list(run_folder_path(hurt).glob("**/*.partial")), "half a file would keep the disk full"
    run(hurt)
    torture.assert_same(calm, hurt)


def test_a_sweep_resumes_a_run_that_a_full_disk_stopped(tiny, monkeypatch, start_sweep):
    config, calls, real = tiny(), itertools.count(1), os.fsync

    def full_once(descriptor):
        if next(calls) == 11:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_once)
        with pytest.raises(RunFolderError, match="No space left on device; once it can, rerun the same command"):
            run(config)
    result = json.loads((run_folder_path(config) / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert "No space left on device" in result["reason"]
    assert start_sweep(config) == [config.seed]


def test_a_nonfinite_loss_error_names_the_step_batch_and_checkpoint(tiny, monkeypatch):
    config = tiny("checkpoint_steps=2")
    calls, real = itertools.count(1), TrainSplit.augmented

    def augmented(self, *where):
        images, labels = real(self, *where)
        return (images * np.nan if next(calls) == 5 else images), labels

    monkeypatch.setattr(TrainSplit, "augmented", augmented)
    with pytest.raises(Diverged, match=r"the loss of step 5 \(epoch 2, batch 2 of 3\) is not finite") as raised:
        run(config)
    good = newest(run_folder_path(config) / "checkpoints")
    assert str(good) in str(raised.value)
    assert "step00000003" in good.name, "after epoch 1: nothing is saved once weights are lost"
    result = json.loads((run_folder_path(config) / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["reason"].startswith("Diverged: the loss of step 5")


@pytest.mark.parametrize(
    ("part", "setting"),
    [("train_epoch", r"recipe.batch_size \(now 16\)"), ("evaluate", r"eval_batch_size \(now 250\)")],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_errors_name_the_setting_to_lower(tiny, monkeypatch, part, setting, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(trainer_module, part, fail)
    with pytest.raises(OutOfMemory, match=f"lower {setting}"):
        run(tiny())


def test_a_closed_pipe_behind_stdout_interrupts_a_run(tiny, monkeypatch):
    """`| head` closes it. The run has not failed, so a sweep resumes it."""
    config = tiny()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", gone)
        with pytest.raises(BrokenPipeError):
            run(config)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # for what is still buffered
    assert json.loads((run_folder_path(config) / "result.json").read_text())["status"] == "interrupted"
    assert run(config)["status"] == "done"


def test_compiling_without_a_compiler_is_a_user_error(tiny):
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/absent/c++")}),
        pytest.raises(ConfigError, match=r"compile=true needs a C\+\+ compiler"),
    ):
        run(tiny("compile=true", "epochs=1", "scale.layers=1"))


def test_a_run_folder_in_use_is_refused_and_its_process_is_named(tiny):
    config = tiny()
    owner = RunFolder(config)
    owner.open()
    with pytest.raises(RunFolderError, match=rf"process {os.getpid()} on \S+ is using"):
        run(config)
    owner.close()
    assert run(config)["status"] == "done"
    assert not (run_folder_path(config) / ".owner").exists()


def test_configs_without_newer_settings_resume_but_older_checkpoints_are_refused(tiny, interrupted_at_step):
    config = tiny()
    interrupted_at_step(config, step=2)
    path = run_folder_path(config) / "config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "clutter" not in line))
    assert run(config)["status"] == "done"
    (run_folder_path(config) / "result.json").unlink()
    (run_folder_path(config) / "checkpoints/last.pt").touch()
    with pytest.raises(RunFolderError, match="of an older version"):
        run(config)


def test_wandb_logs_every_epoch_once_across_interruptions(tiny, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny("logger=wandb", "epochs=4", "logger.pictures_every=1")
    real = trainer_module.Dashboard.log
    for killed_at in (2, 3):

        def log(self, epoch, metrics, killed_at=killed_at):
            if epoch == killed_at:
                raise KeyboardInterrupt  # recorded in the run folder, not yet in the dashboard
            real(self, epoch, metrics)

        with monkeypatch.context() as patch:
            patch.setattr(trainer_module.Dashboard, "log", log)
            with pytest.raises(KeyboardInterrupt):
                run(config)
    run(config)
    folders = list((run_folder_path(config) / "wandb").glob("offline-run-*"))
    assert len(folders) == 1, "all starts are one run"
    history = read_wandb(folders[0])
    metrics = [json.loads(line) for line in (run_folder_path(config) / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["test/acc"] for row in history] == [record["test/acc"] for record in metrics]


def read_wandb(folder):
    """Return the history rows of an offline run, read with W&B's own reader."""
    command = [PYTHON, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [record["history"]["item"] for record in map(json.loads, lines) if record["type"] == "history"]


def test_a_checkpoint_is_written_every_checkpoint_minutes(tiny, monkeypatch):
    """Every step takes 25 seconds by the clock."""
    now, saves = [0.0], []
    after_step, save = trainer_module.Trainer._after_step, trainer_module.save_checkpoint

    def slow_step(self, steps_in_epoch):
        now[0] += 25
        after_step(self, steps_in_epoch)

    def noted_save(*arguments):
        saves.append(now[0])
        save(*arguments)

    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(trainer_module.Trainer, "_after_step", slow_step)
    monkeypatch.setattr(trainer_module, "save_checkpoint", noted_save)
    run(tiny("recipe.batch_size=4", "epochs=1", "checkpoint_minutes=1"))  # 10 steps
    assert saves[:3] == [75, 150, 225]
