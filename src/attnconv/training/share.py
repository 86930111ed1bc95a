"""What one run takes of a machine on which others run beside it."""

import ctypes
import os
import sys

import torch

# Arguments of glibc's mallopt(3): -1 switches trimming off, and no larger threshold is taken.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEEP_ALL, LARGEST_ON_HEAP = -1, 32 * 2**20

POOL = "ATTNCONV_POOL"  # set by a sweep or a study for the processes that it starts


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
    told = os.environ.get(POOL)
    return int(told) if told and (runs_at_once() > 1 or int(told) == os.getppid()) else None


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
