"""A comparison with attention that would mean nothing is refused, with the reason."""

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from small_networks import Logits, images
from torch import nn

from attnconv.analysis.exchange import Meaningless, exchange
from attnconv.analysis.plain_convolution import Inconvertible


class ConvolvesInFirstBatch(Logits):
    """Computes another convolution on batches of more than three images."""

    def forward(self, x):
        return super().forward(x) + (F.conv2d(x, self[0].weight).mean() if len(x) > 3 else 0)


class ConvolvesInLastBatch(Logits):
    """Computes another convolution on a single image."""

    def forward(self, x):
        return super().forward(x) + (F.conv2d(x, self[0].weight).mean() if len(x) == 1 else 0)


class Tuple(Logits):
    def forward(self, x):
        return super().forward(x), x


class OneLogit(Logits):
    def forward(self, x):
        return super().forward(x)[:, :1]


class MeanOverBatch(Logits):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


class Complex(Logits):
    def forward(self, x):
        return super().forward(x) + 0j


class WithoutEffect(Logits):
    def forward(self, x):
        return 0 * super().forward(x) + x.flatten(1)[:, :4]


class WithALock(Logits):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class ReadsAttribute(Logits):
    def forward(self, x):
        return super().forward(x) * (1 + self[0].transposed)


class SkipsOtherLayers(Logits):
    """Calls its layers only while they are convolutions."""

    def forward(self, x):
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else x
        return x.mean((2, 3))


class OtherAttributes(nn.Conv2d):
    """Uses the name of an attribute of nn.Conv2d for something else."""

    def __init__(self):
        super().__init__(4, 4, 3)
        self.padding = nn.ReflectionPad2d(1)

    def forward(self, x):
        return F.conv2d(self.padding(x), self.weight, self.bias)


class PadsManyImages(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1 if len(x) > 2 else 0)


class SkipsLayersOnOneImage(Logits):
    """Layers after the first run only on batches of two or more images."""

    def forward(self, x):
        return super().forward(x) if len(x) > 1 else self[0](x).mean((2, 3))


class Draws(Logits):
    """Adds noise from a generator of its own, so that no two calls are equal."""

    generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x) + torch.rand(4, generator=Draws.generator)


@pytest.mark.parametrize(
    ("network", "error", "complaint"),
    [
        (Draws(), Inconvertible, "differ by up to .*: those of the network itself differ from call to call"),
        (lambda images: images, Inconvertible, "the model is a function, not a torch.nn.Module"),
        (ConvolvesInFirstBatch(), Inconvertible, "computed inside ConvolvesInFirstBatch"),
        (ConvolvesInLastBatch(), Inconvertible, "computed inside ConvolvesInLastBatch"),
        (Tuple(), Inconvertible, "the network returns a tuple, not logits"),
        (nn.Conv2d(3, 4, 3), Inconvertible, r"the network returns \(2, 4, 7, 7\), not logits"),
        (OneLogit(), Inconvertible, r"returns \(2, 1\), not logits \(2 images, 2 or more classes\)"),
        (MeanOverBatch(), Inconvertible, r"returns \(1, 4\), not logits \(2 images, 2 or more classes\)"),
        (Complex(), Inconvertible, r"returns \(2, 4\) of complex numbers, not logits"),
        (WithoutEffect(), Meaningless, "do not depend on the convolutions"),
        (WithALock(), Inconvertible, "the network cannot be copied: .*lock"),
        (
            ReadsAttribute(),
            Inconvertible,
            r"converted network cannot run .* 'transposed' \(test_exchange_refusals.py, line \d+\)",
        ),
        (Logits(PadsManyImages(4, 4, 3)), Inconvertible, "logits .* differ by up to .*: a convolution depends on"),
        (SkipsOtherLayers(), Inconvertible, r"the converted network returns \(5, 3\), not \(5, 4\)"),
        (Logits(OtherAttributes()), Inconvertible, r"1 \(OtherAttributes: its attributes are not those of a conv"),
        (
            Logits(nn.Conv2d(4, 4, 30)),
            Inconvertible,
            r"cannot run on these images: .* \(small_networks.py",
        ),
        (Logits(nn.Threshold(1e9, math.nan)), Meaningless, "not finite"),
        (Logits(nn.Threshold(1e9, math.inf)), Meaningless, "not finite"),
        (Logits(nn.Threshold(1e9, 3.0)), Meaningless, "the same for all images"),
        (Logits(nn.Hardtanh(2.0, 2.0 + 1e-8)), Meaningless, "the same for all images"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(network, error, complaint):
    with pytest.raises(error, match=complaint):
        exchange(network, images(), batch=5)


def test_every_layer_must_be_reached_by_some_batch():
    network = SkipsLayersOnOneImage(nn.Conv2d(4, 4, 1))
    assert exchange(network, images(), batch=5)["layers"] == 2
    with pytest.raises(Inconvertible, match="not reached by the images, so not known to be converted: 1"):
        exchange(network, images(3), batch=1)
