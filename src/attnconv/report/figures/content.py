"""Attention of heads in single images (the paper's Figures 7 to 10), from a run's weights and its test images."""

import numpy as np
import torch
from matplotlib.figure import Figure

from attnconv.analysis.heads import attention_mixers, mixer_inputs, probs_of
from attnconv.data.dataset import normalize
from attnconv.report.figures.data import ImageMaps, Weights, stacked
from attnconv.report.figures.maps import of_images
from attnconv.runs.load import Trained, load

# Test images of CIFAR-10 (horse, frog, ship), and queries as shares of height and width; for other data, the first
# three.
CIFAR10 = ((13, 0.25, 0.4), (19, 0.5, 0.5), (1, 0.6, 0.5))
OTHERS = ((0, 0.5, 0.5), (1, 0.5, 0.5), (2, 0.5, 0.5))


def from_weights(found: Weights) -> Figure:
    """Draw the attention of the heads in three test images.

    Raises:
        DataError, FileError, RunFolderError: see `load`.
    """
    return of_images(image_maps(load(found.folder, weights=found.file), found.title))


@torch.no_grad()
def image_maps(trained: Trained, title: str) -> ImageMaps:
    """Return where one pixel of each of three test images attends, for each layer and head; nan for missing heads."""
    test = trained.data.test
    candidates = CIFAR10 if trained.config.data.name == "cifar10" else OTHERS
    chosen = [one for one in candidates if one[0] < len(test)]
    images = test.images[[index for index, *_ in chosen]]
    shown = normalize(images, test.mean, test.std)
    layers, places = [], np.zeros((len(chosen), 2), int)
    for mixer, inputs in zip(attention_mixers(trained.model), mixer_inputs(trained.model, shown), strict=True):
        _, height, width, _ = inputs.shape
        places = np.array([(int(row * height), int(column * width)) for _, row, column in chosen])
        probs = probs_of(mixer, height, width, inputs)
        probs = probs.expand(len(chosen), -1, -1, -1)
        seen = [probs[image, :, row * width + column] for image, (row, column) in enumerate(places)]
        layers.append(torch.stack(seen).unflatten(-1, (height, width)).float().cpu().numpy())
    of_images = [stacked(of_image) for of_image in zip(*layers, strict=True)]
    return ImageMaps(title, images.cpu().numpy(), places, np.stack(of_images))
