"""The device and arithmetic of a run, and what it takes of a machine on which other runs train."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager

import torch

from attnconv.config import POOL
from attnconv.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Resolve `device=`.

    Raises:
        ConfigError: the device is unknown, or this machine has no such device.
    """
    if name == "auto":
        return take_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; try device=auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this machine has no Metal device; try device=auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={name} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than float32 on this device: native instructions, not emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX2":  # by hardware, or by environment
        # Without these instructions a CPU emulates bf16, slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `precision=` to "bf16" or "fp32"."""
    if name != "auto":
        return name
    return "bf16" if computes_in_bf16(device) else "fp32"


def precision_here(device: str) -> str:
    """What `precision=auto` is on this machine, for a `device=` that may be auto, too.

    Raises:
        ConfigError: see `choose_device`.
    """
    if device == "auto":
        return choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return choose_precision("auto", choose_device(device))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The context in which the forward pass runs; parameters, optimizer and loss stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


# Arguments of glibc's mallopt(3): -1 switches trimming off, and no larger threshold is taken.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEEP_ALL, LARGEST_ON_HEAP = -1, 32 * 2**20


def runs_at_once() -> int:
    """How many runs of this sweep share the machine: n_jobs of hydra/launcher=joblib, else 1."""
    from hydra.core.hydra_config import HydraConfig

    jobs = HydraConfig.get().launcher.get("n_jobs") if HydraConfig.initialized() else None
    if jobs is None:
        return 1
    import joblib

    return jobs if jobs > 0 else max(1, joblib.cpu_count() + 1 + jobs)


def pool() -> int | None:
    """The process whose pool of processes this run is one of, if it is."""
    pool = os.environ.get(POOL)
    return int(pool) if pool and (runs_at_once() > 1 or int(pool) == os.getppid()) else None


def take_threads() -> None:
    """Use the CPU threads that are this run's: what OMP_NUM_THREADS says, else what the cluster's scheduler gave it.

    Joblib sets OMP_NUM_THREADS in its processes so that together they have as many threads as there are cores. Slurm
    may leave a job on all cores of a node, whatever it asked for.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if given and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(given))


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for the next step: elsewhere than in glibc, do nothing.

    A training step frees all that it held. By default glibc hands that back to the kernel, which fills it with zeros,
    page by page, when the next step asks for it: up to a fifth of a step on a CPU (LOG.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, KEEP_ALL)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)


def take_gpu() -> torch.device:
    """The GPU for device=auto: the first, or with several runs at once each in its turn; several may share one."""
    from hydra.core.hydra_config import HydraConfig

    turn = HydraConfig.get().job.num if runs_at_once() > 1 else 0
    return torch.device("cuda", turn % torch.cuda.device_count()) if turn else torch.device("cuda")
