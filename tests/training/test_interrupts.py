"""Signals with existing handlers, process pools that have died, and a run's share of a machine."""

import json
import signal

import pytest

from attnconv.errors import Stopped
from attnconv.run import run
from attnconv.runs.checkpoint import newest
from attnconv.runs.folder import RunFolder
from attnconv.training import device as share
from attnconv.training.interrupts import Interrupts


def test_signals_are_passed_on_to_existing_handlers(monkeypatch):
    """As under submitit, which installs its handlers before the run."""
    seen = []
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR2)}

    def requeue(signum, frame):
        raise SystemExit(-1)

    try:
        signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
        signal.signal(signal.SIGUSR2, requeue)
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # the second signal must not end the run at once
            assert interrupts.signum == signal.SIGTERM
            assert seen == []
            interrupts.end(signal.SIGTERM)
            assert seen == [signal.SIGTERM]
            assert interrupts.signum is None, "the run goes on"
            signal.raise_signal(signal.SIGUSR2)
            with pytest.raises(SystemExit):
                interrupts.end(signal.SIGUSR2)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_handler_that_raises_ends_the_run_as_interrupted(tiny, monkeypatch):
    def give_up(signum, frame):
        raise RuntimeError("timed out too many times")

    before = signal.signal(signal.SIGUSR2, give_up)
    try:
        real = Interrupts.__enter__

        def enter(self):
            real(self)
            signal.raise_signal(signal.SIGUSR2)
            return self

        monkeypatch.setattr(Interrupts, "__enter__", enter)
        with pytest.raises(Stopped, match="timed out too many times"):
            run(tiny())
    finally:
        signal.signal(signal.SIGUSR2, before)
    result = json.loads((RunFolder(tiny()).path / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["reason"] == "timed out too many times"


def test_a_closed_terminal_stops_and_saves_a_run(tiny, monkeypatch):
    real = Interrupts.__enter__

    def enter(self):
        real(self)
        signal.raise_signal(signal.SIGHUP)  # the terminal and the shell each send one
        signal.raise_signal(signal.SIGHUP)
        return self

    monkeypatch.setattr(Interrupts, "__enter__", enter)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(Stopped, match="SIGHUP") as stopped:
            run(tiny())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped.value.exit_code == 129
    folder = RunFolder(tiny())
    assert json.loads((folder.path / "result.json").read_text())["status"] == "interrupted"
    assert newest(folder.checkpoints) is not None


def test_signals_that_the_parent_ignores_stay_ignored():
    """As under nohup, and in a background job of a script."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGHUP, signal.SIGINT)}
    try:
        with Interrupts() as interrupts:
            for signum in before:
                signal.raise_signal(signum)
            assert interrupts.signum is None
        assert all(signal.getsignal(signum) is signal.SIG_IGN for signum in before)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_run_stops_when_its_process_pool_has_died(tiny, monkeypatch):
    monkeypatch.setattr(share, "runs_at_once", lambda: 2)
    monkeypatch.setenv(share.POOL, "7")
    parents = iter([7, 7])  # the parent changes after two steps
    monkeypatch.setattr("os.getppid", lambda: next(parents, 1))
    with pytest.raises(Stopped, match="SIGTERM"):
        run(tiny())
    result = json.loads((RunFolder(tiny()).path / "result.json").read_text())
    assert result["status"] == "interrupted"


def test_slurm_job_uses_its_allocated_cores(monkeypatch):
    given = []
    monkeypatch.setattr(share.torch, "set_num_threads", given.append)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share.take_threads()
    assert given == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    share.take_threads()
    assert given == [3]


@pytest.mark.parametrize(("at_once", "job", "gpu"), [(1, 5, None), (4, 0, None), (4, 1, 1), (4, 3, 1), (4, 4, 0)])
def test_concurrent_runs_are_distributed_over_the_gpus(monkeypatch, at_once, job, gpu):
    class Hydra:
        class job:
            num = job

    monkeypatch.setattr(share, "runs_at_once", lambda: at_once)
    monkeypatch.setattr(share.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: Hydra)
    assert share.take_gpu().index == gpu
