"""Compile, tune kernels and allocate memory before timing starts.

The timing protocol of the convolutional speedruns (airbench: Jordan 2024, arXiv 2404.00498) first trains a whole
network on synthetic data. Here, one step at each shape of training and evaluation has the same effect.
"""

import copy
import math
from collections.abc import Callable, Iterator

import torch

from attnconv.data.augmentation import ImageSize, normalize, scale
from attnconv.training.device import autocast
from attnconv.training.loop import batch_sizes, tta_logits
from attnconv.training.setup import Setup


def precompile(setup: Setup, size: Callable[[int], ImageSize | None]) -> None:
    """Take a training and an evaluation step at each shape, and leave model and optimizer unchanged.

    Args:
        setup: the parts of the run; the content and the order of its images do not matter.
        size: maps a training step to the size of its images; None keeps them as they are.
    """
    config, data, model, optimizer = setup.config, setup.data, setup.model, setup.optimizer
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split, device = data.train, setup.device

    def images_of(places: torch.Tensor) -> torch.Tensor:
        return normalize(split.images[places % len(split)], split.mean, split.std)

    setup.forward.train()
    # The same shapes in all processes, because gradients are averaged at each step.
    for count, side in dict.fromkeys(_training_shapes(setup, size)):
        # As in training, which draws only this process's share; an evaluation takes its share out of the whole batch. A
        # compiler distinguishes the two by the strides of the images.
        own = torch.arange(count, device=device)[setup.processes.share(count)]
        with autocast(setup.precision, device):
            logits = setup.forward(scale(images_of(own), side))
        logits.float().square().mean().backward()
    state = copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.load_state_dict(state)
    optimizer.zero_grad(set_to_none=True)
    setup.forward.eval()
    splits = [split for split in (data.validation, data.test) if split is not None]
    for count in [count for split in splits for count in batch_sizes(len(split), config.eval_batch_size)]:
        images = images_of(torch.arange(count, device=device))[setup.processes.share(count)]
        if len(images):
            with torch.no_grad(), autocast(setup.precision, device):
                tta_logits(setup.forward, images, setup.mirrored)
    with torch.no_grad():  # batch norm has updated its statistics
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[name])
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _training_shapes(setup: Setup, size: Callable[[int], ImageSize | None]) -> Iterator[tuple[int, int | None]]:
    """Yield the number of images and their height in pixels (None: unchanged) of each training step."""
    images, batch_size = setup.data.epoch_images, setup.config.recipe.batch_size
    steps = math.ceil(images / batch_size)
    for step in range(setup.config.epochs * steps):
        found = size(step)  # cropped and scaled images of one height have the same shape
        yield min(batch_size, images - step % steps * batch_size), None if found is None else found.side
