"""Attention maps of the central pixel."""

import pytest
import torch

from attnconv.analysis.heads import central_maps
from attnconv.models.build import build_model
from conftest import TINY_SCALE, compose


@pytest.mark.slow
def test_maps_that_depend_on_content_are_means_over_images_also_in_unequal_chunks():
    torch.manual_seed(0)
    model = build_model(compose([*TINY_SCALE, "model=sa_content", "scale.patch=2"]).model, (3, 8, 8), 4).eval()
    images = torch.randn(13, 3, 8, 8) * torch.linspace(0.1, 5, 13).view(13, 1, 1, 1)
    alone = [central_maps(model, image[None])[0] for image in images]
    torch.testing.assert_close(central_maps(model, images)[0], torch.stack(alone).mean(dim=0))
