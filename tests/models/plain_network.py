"""A small network that the tests of networks from elsewhere change."""

import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """A CNN; the tests change one thing about it."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.first = nn.Conv2d(image_shape[0], 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, classes)

    def features(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3))

    def forward(self, x):
        return self.last(self.features(x))
