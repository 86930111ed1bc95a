"""Compile, tune kernels and allocate memory before timing starts.

The timing protocol of the convolutional speedruns (airbench: Jordan 2024, arXiv 2404.00498) first trains a whole
network on synthetic data. Here, one step at each shape of training and evaluation has the same effect.
"""

import copy
from collections.abc import Callable, Collection

import torch
from torch import nn

from attnconv.data.augmentation import ImageSize, normalize, scale
from attnconv.data.dataset import Split
from attnconv.training.device import autocast
from attnconv.training.distributed import Processes
from attnconv.training.loop import tta_logits


def training_shapes(
    images: int, batch_size: int, epochs: int, size: Callable[[int], ImageSize | None]
) -> list[tuple[int, int | None]]:
    """Return the number of images and their height in pixels (None: unchanged) for each kind of training step.

    Args:
        images: number of images shown in an epoch.
        size: maps a step to the size of the images.
    """
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    steps = range(epochs * len(sizes))
    return list(dict.fromkeys((sizes[step % len(sizes)], side_of(size(step))) for step in steps))


def side_of(size: ImageSize | None) -> int | None:
    """Return the height in pixels; cropped and scaled images have the same shape."""
    return None if size is None else size.side


def precompile(
    model: nn.Module,
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    *,
    shapes: Collection[tuple[int, int | None]],
    evaluated: Collection[int],
    mirrored: bool,
    precision: str,
    processes: Processes,
) -> None:
    """Take a training and an evaluation step at each shape, and leave model and optimizer unchanged.

    Args:
        model: the network.
        forward: the same network, compiled or not.
        optimizer: its optimizer.
        split: images of the right shape; content and order do not matter.
        shapes: number of images and their height in pixels (None: unchanged) for training steps.
        evaluated: number of images in an evaluation step.
        mirrored: whether mirror images are evaluated as well.
        processes: the processes that share each step.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    device = split.labels.device

    def images_of(places: torch.Tensor) -> torch.Tensor:
        return normalize(split.images[places % len(split)], split.mean, split.std)

    forward.train()
    for count, side in shapes:  # the same number in all processes, because gradients are averaged at each step
        # As in training, which draws only this process's share; an evaluation takes its share out of the whole batch. A
        # compiler distinguishes the two by the strides of the images.
        own = torch.arange(count, device=device)[processes.share(count)]
        with autocast(precision, device):
            logits = forward(scale(images_of(own), side))
        logits.float().square().mean().backward()
    state = copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.load_state_dict(state)
    optimizer.zero_grad(set_to_none=True)
    forward.eval()
    for count in evaluated:
        images = images_of(torch.arange(count, device=device))[processes.share(count)]
        if len(images):
            with torch.no_grad(), autocast(precision, device):
                tta_logits(forward, images, mirrored)
    with torch.no_grad():  # batch norm has updated its statistics
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[name])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
