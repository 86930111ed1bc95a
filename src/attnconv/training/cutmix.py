"""CutMix: a box of each image comes from another image of its batch, and its label in proportion (Yun et al. 2019).

The box and its size are functions of (seed, step), and partners those of the whole batch, so that a run that resumes,
or is spread over processes, sees the same images.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

CUTMIX_STREAM = 7

# (images (B, C, H, W), labels (B,), step) -> images, and probabilities of the classes (B, classes)
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def cutmix(alpha: float, classes: int, seed: int) -> Mix | None:
    """What mixes the images of a batch; None for alpha 0, without which no image is mixed.

    Args:
        alpha: of the Beta(alpha, alpha) distribution of the share that an image keeps.
    """
    if not alpha:
        return None
    from torchvision.transforms.v2 import CutMix  # takes a second, and few runs need it

    transform = CutMix(alpha=alpha, num_classes=classes)

    def mix(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        # The transform draws from torch's generator.
        torch.manual_seed(int(np.random.SeedSequence([CUTMIX_STREAM, seed, step]).generate_state(1, np.uint64)[0] >> 1))
        mixed, targets = transform(images, labels)
        return mixed, targets

    return mix
