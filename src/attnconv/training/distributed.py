"""Train one run on several processes: `torchrun --nproc_per_node=N train.py ...`.

Each process holds the whole data set and the whole model. Batches do not depend on N: process r takes every N-th image
of a batch, starting with the r-th. Gradients are averaged over processes, weighted by their numbers of images, so a
step equals the step of a single process up to rounding. Processes draw their own dropout masks, so with dropout the
equality holds in distribution; this includes the mask that position-only attention shares within a batch. Only process
0 writes.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnconv.config import in_sweep
from attnconv.errors import ConfigError, counted


@dataclass(frozen=True)
class Processes:
    """One process of a run."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Return whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """Return this process's part of a batch of `size` images."""
        return slice(self.rank, size, self.count)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, request: int) -> int:
        """Return the largest request of any process, the same on all of them."""
        if self.count == 1:
            return request
        largest = torch.tensor(request)  # on the CPU, so that no GPU has to wait
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group. Call this only after success: if one process failed, the others would wait for it."""
        if self.count > 1:
            dist.destroy_process_group()


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Join the processes that torchrun started, each on its own GPU; without torchrun, there is one process.

    Raises:
        ConfigError: torchrun started a sweep. If one process failed, the others could not know which run to continue.
            Or its environment variables are incomplete, or there are more processes than GPUs.
    """
    count, rank, local_rank = map(_variable, ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if count is None or count == 1:
        return Processes(), device
    if in_sweep():
        raise ConfigError("torchrun trains one run at a time; start a sweep (-m) without it")
    port, address = _variable("MASTER_PORT"), os.environ.get("MASTER_ADDR")
    if rank is None or local_rank is None or port is None or not address:
        names = "RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        raise ConfigError(f"WORLD_SIZE={count} needs {names}: start the run with torchrun, or unset it")
    if rank >= count:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={count}: start the run with torchrun")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise ConfigError(
                f"torchrun started process {local_rank} on a machine with {counted(gpus, 'GPU')}; start {gpus}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Processes(rank, count), device


def _variable(name: str) -> int | None:
    """Return the number in an environment variable of torchrun, or None without one."""
    text = os.environ.get(name)
    if text and not text.isdecimal():
        raise ConfigError(f"{name}={text} is not a number: start the run with torchrun, or unset {name}")
    return int(text) if text else None


def check_batches(processes: Processes, images: int, batch_size: int) -> None:
    """Raise ConfigError if a batch has fewer images than there are processes."""
    smallest = images % batch_size or batch_size
    if smallest < processes.count:
        raise ConfigError(
            f"torchrun started {processes.count} processes, but a batch has only {counted(smallest, 'image')} "
            f"({images:,} images in batches of {batch_size}); start fewer, or change recipe.batch_size"
        )


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with gradients averaged over processes and batch norm over the whole batch.

    Raises:
        ConfigError: the model has batch norm and runs on CPUs, where PyTorch cannot share its statistics.
    """
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        if device.type != "cuda":
            raise ConfigError("batch norm cannot share its statistics between processes on CPUs; start one process")
        from timm.layers import convert_sync_batchnorm

        # timm's function also converts its layers that combine batch norm and activation
        model = convert_sync_batchnorm(model)
    on: Any = [device] if device.type == "cuda" else None
    # Buffers are equal on all processes: the rehearsal refuses networks that change others than those of batch norm.
    # Broadcasting them would make an evaluation wait for idle processes.
    return nn.parallel.DistributedDataParallel(model, device_ids=on, broadcast_buffers=False)
