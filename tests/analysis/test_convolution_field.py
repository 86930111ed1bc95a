"""Receptive fields of convolutional networks equal those computed by hand; unsupported operations are named."""

from functools import partial

import pytest
from torch import nn

from attnconv.analysis.convolution_field import convolution_fields
from attnconv.models.build import build_model
from conftest import compose


def test_receptive_fields_match_hand_calculations():
    conv = partial(nn.Conv2d, 1, 1, padding=1)
    assert convolution_fields([conv(kernel_size=3), conv(kernel_size=3, stride=2), conv(kernel_size=3)], 32) == [
        3,
        5,
        9,
    ]
    resnet = build_model(compose(["model=resnet18", "scale=mini"]).model, (3, 32, 32), 10)
    first = nn.Sequential(resnet.stem, resnet.blocks[0])
    # Stem 3; each stride-1 block 4 more; the first strided block 2 + 4.
    assert convolution_fields([first, *resnet.blocks[1:3]], 32) == [7, 11, 17]


class Parallel(nn.Module):
    """Two branches that see 3 and 5 pixels: together 5, not 7."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=2)

    def forward(self, x):
        return self.small(x) + self.large(x)


class Permuted(nn.Module):
    def forward(self, x):
        return x.transpose(2, 3)


@pytest.mark.parametrize(
    ("block", "field"),
    [
        (nn.Conv2d(1, 1, 3, dilation=3), 7),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 1, 3)), 6),
        (nn.Sequential(nn.MaxPool2d(3, stride=2, dilation=2), nn.Conv2d(1, 1, 3)), 9),
        (nn.Conv2d(1, 1, (1, 5)), 5),
        (nn.Sequential(nn.Conv2d(1, 1, (1, 5), stride=(1, 2)), nn.Conv2d(1, 1, (7, 1))), 7),
        (Parallel(), 5),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1)), 32),
    ],
    ids=str,
)
def test_fields_with_dilation_pooling_branches_and_rectangular_kernels(block, field):
    assert convolution_fields([block], 32) == [field]


def test_unsupported_operations_are_named():
    with pytest.raises(ValueError, match=r"cannot follow 0\.0 \(ConvTranspose2d\)"):
        convolution_fields([nn.Sequential(nn.ConvTranspose2d(1, 1, 2))], 32)
    with pytest.raises(ValueError, match="cannot follow transpose in Permuted"):
        convolution_fields([Permuted()], 32)
