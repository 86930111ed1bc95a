"""What a result must say of itself to be believed: commit, hardware, versions."""

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

COMMIT = (
    "ATTNCONV_COMMIT"  # set where the tree was copied without its history: git describe --always --abbrev=40 --dirty
)
REPOSITORY = Path(__file__).resolve().parents[3]


def commit() -> tuple[str | None, bool | None]:
    """The checked-out commit and whether the tree differs from it, new files included.

    Outside a checkout it is what ATTNCONV_COMMIT says, or None.
    """
    try:
        head = _git("rev-parse", "HEAD").strip()
        dirty = bool(_git("status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        told = os.environ.get(COMMIT)
        return (told.removesuffix("-dirty"), told.endswith("-dirty")) if told else (None, None)
    return head, dirty


def _git(*arguments: str) -> str:
    # Without its optional locks: a run that is killed while git looks would leave the repository locked.
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def describe_device(device: torch.device) -> str:
    """The hardware in words, e.g. "NVIDIA H200" or "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return f"{device.type} on {platform.machine()}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on the GPU by PyTorch's tensors, on a CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes  # macOS counts bytes


def versions() -> dict[str, Any]:
    """Versions that a number can depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "numpy": version("numpy"),
        "timm": version("timm"),
        "platform": sys.platform,
    }
