"""One run on several processes: `torchrun --nproc_per_node=N train.py ...`.

Every process holds the whole data set and the whole model. Of each batch, which does not depend on N, process r takes
every N-th image from the r-th; gradients are averaged over processes, weighted by their images, so that a step is the
step of one process up to rounding. With dropout the processes draw masks of their own, and equality is in distribution:
also for the mask that position-only attention shares within a batch. Process 0 alone writes.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnconv.config import in_sweep
from attnconv.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """This process's part of a batch of `size`."""
        return slice(self.rank, size, self.count)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, request: int) -> int:
        """The largest request that any process makes; the same answer everywhere."""
        if self.count == 1:
            return request
        largest = torch.tensor(request)  # on the CPU, so that no GPU has to wait
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group. Only after success: where one process failed, the others would wait for it here."""
        if self.count > 1:
            dist.destroy_process_group()


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Join the processes that torchrun started, each on its own GPU; without torchrun there is one.

    Raises:
        ConfigError: they were started for a sweep, whose runs could not be told apart by a process that fails alone.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes(), device
    if in_sweep():
        raise ConfigError("torchrun trains one run at a time; start a sweep (-m) without it")
    rank = int(os.environ["RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Processes(rank, count), device


def check_batches(processes: Processes, images: int, batch_size: int) -> None:
    """Raise ConfigError if some batch has fewer images than there are processes."""
    smallest = images % batch_size or batch_size
    if smallest < processes.count:
        raise ConfigError(
            f"torchrun started {processes.count} processes, but a batch has only {smallest} images "
            f"({images:,} images in batches of {batch_size}); start fewer, or change recipe.batch_size"
        )


def distribute(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """The model, with gradients averaged over processes and batch norm over the whole batch.

    Raises:
        ConfigError: batch norm on CPUs, where PyTorch cannot share its statistics.
    """
    if processes.count == 1:
        return model
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        if device.type != "cuda":
            raise ConfigError("batch norm cannot share its statistics between processes on CPUs; start one process")
        from timm.layers import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)  # timm's knows its layers that join batch norm and activation
    on: Any = [device] if device.type == "cuda" else None
    # Buffers are equal everywhere by construction; to broadcast them would make an evaluation wait for idle processes.
    return nn.parallel.DistributedDataParallel(model, device_ids=on, broadcast_buffers=False)
