"""Initialize a stem to whiten its input.

It then gives uncorrelated features of equal size from training images' patches.

The idea comes from the convolutional speedruns (Page 2018; Jordan 2024, arXiv 2404.00498, section 3.2). Here patches do
not overlap, and the weights are trained further.
"""

import torch
from torch import Tensor, nn

from attnconv.data.augmentation import normalize
from attnconv.data.dataset import Split
from attnconv.models.backbone import Backbone, space_to_depth

IMAGES = 5000  # enough patches to estimate the covariance
FLOOR = 5e-4  # added to variances, so that almost constant directions are not amplified


@torch.no_grad()
def whiten_stem(model: nn.Module, split: Split) -> None:
    """Replace the weights W of a linear stem by W V (L + FLOOR)^-1/2 V^T, where V L V^T is the covariance of patches.

    The stem then sees white patches with zero mean, and a random W spreads them over all channels.

    Args:
        model: a network of the paper's backbone, as initialized.
        split: its training images.

    Raises:
        ValueError: the network has no linear stem on patches.
    """
    if not isinstance(model, Backbone):
        raise ValueError("recipe.whitening needs a network with a linear stem on patches: set it to false")
    every = max(1, len(split) // IMAGES)  # spread over the split, because the first images may all be of one class
    images = normalize(split.images[::every], split.mean, split.std)
    patches = space_to_depth(images.permute(0, 2, 3, 1), model.patch).flatten(0, 2).double().cpu()
    center = patches.mean(dim=0)
    whiten = _inverse_root(torch.cov(patches.T))
    weight = model.stem.weight.double().cpu() @ whiten
    bias = model.stem.bias.double().cpu() - weight @ center
    model.stem.weight.copy_(weight)
    model.stem.bias.copy_(bias)


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag((values.clamp(min=0) + FLOOR).rsqrt()) @ vectors.T
