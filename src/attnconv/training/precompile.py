"""Compile, tune kernels and take memory before the clock starts.

The timing protocol of the convolutional speedruns (airbench: Jordan 2024, arXiv 2404.00498) trains a whole network on
made-up data before the one that is timed; here a step at every shape that training and evaluation will meet does it.
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


def batch_sizes(images: int, size: int) -> list[int]:
    """Return the sizes of the batches that `images` images make: whole ones, and a smaller last one."""
    return [found for found in dict.fromkeys((min(size, images), images % size)) if found]


def training_shapes(
    images: int, batch_size: int, epochs: int, size: Callable[[int], ImageSize | None]
) -> list[tuple[int, int | None]]:
    """Return the images in a step and their height in pixels (None: as they are), for every kind of training step.

    Args:
        images: shown in an epoch.
        size: step -> size of the images.
    """
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    steps = range(epochs * len(sizes))
    return list(dict.fromkeys((sizes[step % len(sizes)], side_of(size(step))) for step in steps))


def side_of(size: ImageSize | None) -> int | None:
    """Height in pixels: cropping and scaling give images of one shape."""
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
    """Take a training and an evaluation step at every shape; leave model and optimizer as they were.

    Args:
        model: the network.
        forward: the same network, compiled or not.
        optimizer: its optimizer; a copy of it takes the step.
        split: images of the right shape; their content and order do not matter.
        shapes: of training: images in a step, and their height in pixels (None: as they are).
        evaluated: images in a step of an evaluation.
        mirrored: whether an evaluation looks at mirror images too.
        processes: among which each step is divided.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    device = split.labels.device

    def images_of(places: torch.Tensor) -> torch.Tensor:
        return normalize(split.images[places % len(split)], split.mean, split.std)

    forward.train()
    for count, side in shapes:  # in every process as many: their gradients are averaged at each
        # As training does, which draws its own share alone; an evaluation picks its share out of all. A compiler
        # distinguishes the two by how far the images are from each other.
        own = torch.arange(count, device=device)[processes.share(count)]
        with autocast(precision, device):
            logits = forward(scale(images_of(own), side))
        logits.float().square().mean().backward()
    copied, its_optimizer = copy.deepcopy((model, optimizer))
    for parameter in copied.parameters():
        parameter.grad = torch.ones_like(parameter)
    its_optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    forward.eval()
    for count in evaluated:
        images = images_of(torch.arange(count, device=device))[processes.share(count)]
        if len(images):
            with torch.inference_mode(), autocast(precision, device):
                tta_logits(forward, images, mirrored)
    with torch.no_grad():  # batch norm took note of the images
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[name])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
