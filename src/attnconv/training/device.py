"""The device and the precision of a run, and its share of a machine that several runs use."""

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
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; try device=auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this machine has no Metal device; try device=auto")
    if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
        raise ConfigError(f"device={name} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def full_float32() -> None:
    """Compute products of float32 numbers in float32: by default, GPUs may round the inputs of some to TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether the device has bf16 instructions, so that bf16 is faster than float32 and not emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        # "AVX2" also with ATEN_CPU_CAPABILITY=avx2, whatever the hardware has.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `precision=` to "bf16" or "fp32"."""
    if name != "auto":
        return name
    return "bf16" if computes_in_bf16(device) else "fp32"


def precision_here(device: str) -> str:
    """Return the value of `precision=auto` on this machine, for a `device=` that may also be auto.

    Raises:
        ConfigError: see `choose_device`.
    """
    if device == "auto":
        return choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return choose_precision("auto", choose_device(device))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of the forward pass; parameters, optimizer and loss stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


# Arguments of glibc's mallopt(3): -1 turns trimming off; the threshold is the largest one allowed.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEEP_ALL, LARGEST_ON_HEAP = -1, 32 * 2**20


def runs_at_once() -> int:
    """Return how many runs of this sweep share the machine: n_jobs of hydra/launcher=joblib, else 1."""
    from hydra.core.hydra_config import HydraConfig

    jobs = HydraConfig.get().launcher.get("n_jobs") if HydraConfig.initialized() else None
    if jobs is None:
        return 1
    import joblib

    return jobs if jobs > 0 else max(1, joblib.cpu_count() + 1 + jobs)


def pool_parent() -> int | None:
    """Return the id of the process whose pool this run belongs to, or None."""
    parent = os.environ.get(POOL)
    return int(parent) if parent and (runs_at_once() > 1 or int(parent) == os.getppid()) else None


def take_threads() -> None:
    """Use only this run's CPU threads: those of OMP_NUM_THREADS, else those that the cluster's scheduler assigned.

    Joblib sets OMP_NUM_THREADS in its processes so that together they use as many threads as there are cores. Slurm may
    let a job see all cores of a node, whatever it requested.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if given and given.isdecimal() and int(given) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(int(given))


def keep_freed_memory() -> None:
    """Let the process keep freed memory for the next step. Without glibc, do nothing.

    A training step frees everything that it allocated. By default, glibc returns that memory to the kernel, which
    zeroes it page by page for the next step. This takes up to a fifth of a step on a CPU (LOG.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, KEEP_ALL)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP)


def take_gpu() -> torch.device:
    """Return the GPU for device=auto: the first one, or with several runs at once the next one in turn.

    Runs may share one.
    """
    from hydra.core.hydra_config import HydraConfig

    turn = HydraConfig.get().job.num if runs_at_once() > 1 else 0
    return torch.device("cuda", turn % torch.cuda.device_count()) if turn else torch.device("cuda")
