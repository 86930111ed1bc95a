"""Which arithmetic a run uses: bf16 autocast where the hardware computes in bf16, else float32."""

from contextlib import AbstractContextManager

import torch

from attnconv.errors import ConfigError, nearest
from attnconv.training.share import take_gpu


def choose_device(name: str) -> torch.device:
    """Resolve `device=`.

    Raises:
        ConfigError: the name is no device, or this machine has no such device.
    """
    if name == "auto":
        return take_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name} is no device{nearest(name, ('auto', 'cpu', 'cuda', 'mps'))}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; try device=auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: this machine has no Metal device; try device=auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={name} is not supported{nearest(name, ('auto', 'cpu', 'cuda', 'mps'))}")
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
    """The context in which the forward pass runs; parameters, optimiser and loss stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
