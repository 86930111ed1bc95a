"""CutMix: a box of each image comes from another image of its batch, and its label in proportion (Yun et al. 2019).

The box and its size depend only on (seed, step), and partners come from the whole batch. A run that resumes or is
spread over several processes therefore sees the same images.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attnconv.models.build import seed_of

CUTMIX_STREAM = 7

# (images (B, C, H, W), labels (B,), step) -> images, and probabilities of the classes (B, classes)
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def cutmix(alpha: float, classes: int, seed: int) -> Mix | None:
    """Return a function that mixes the images of a batch, or None for alpha 0.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the share that an image keeps.
    """
    if not alpha:
        return None
    from torchvision.transforms.v2 import CutMix  # takes a second to import, and few runs need it

    transform = CutMix(alpha=alpha, num_classes=classes)

    def mix(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        # The transform draws from PyTorch's global generator.
        torch.manual_seed(seed_of(CUTMIX_STREAM, seed, step, rank=0))
        mixed, targets = transform(images, labels)
        return mixed, targets

    return mix
