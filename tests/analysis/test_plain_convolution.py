"""Layers are converted according to what they compute, not to their attributes, or refused with the reason."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn.utils import parametrizations, prune

from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.plain_convolution import Inconvertible, read_convolution


def edited(**attributes):
    layer = nn.Conv2d(4, 6, 3, padding=1, padding_mode=attributes.pop("mode", "zeros"))
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def loaded(reparametrize):
    """A reparametrized convolution whose `weight` attribute is stale after its parameters were loaded."""
    layer = reparametrize(nn.Conv2d(4, 6, 3))
    with torch.no_grad():
        changed = {name: value if name == "weight_u" else value + 0.5 for name, value in layer.state_dict().items()}
    layer.load_state_dict(changed)
    return layer


def padded_unevenly():
    layer = nn.Conv2d(4, 6, 3)
    layer.forward = lambda x, own=layer.forward: own(F.pad(x, (1, 2, 0, 3)))
    return layer


class Unchanged(nn.Conv2d):
    """A subclass that computes the same as its parent."""


COMPUTABLE = {
    "subclass": lambda: Unchanged(4, 6, 3),
    "weight_norm": lambda: loaded(nn.utils.weight_norm),
    "spectral_norm": lambda: loaded(nn.utils.spectral_norm),
    "prune": lambda: loaded(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "new weight_norm": lambda: loaded(parametrizations.weight_norm),
    "new spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(4, 6, 3)),
    "padding edited": lambda: edited(padding=(2, 0)),
    "circular padding edited": lambda: edited(padding=(2, 0), mode="circular"),
    "dilation edited": lambda: edited(dilation=(1, 2), stride=2),
    "channels edited": lambda: edited(in_channels=7, out_channels=1, kernel_size=(9, 9)),
    "uneven padding": padded_unevenly,
    **{
        f"{kind.__name__} {kernel}/{stride}": lambda kind=kind, sizes=(kernel, stride): kind(4, 6, sizes[0], sizes[1])
        for kind in (Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
        for kernel, stride in ((3, 2), (2, 4))
    },
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", COMPUTABLE)
def test_converted_layer_computes_the_same_outputs(name):
    torch.manual_seed(0)
    layer = COMPUTABLE[name]().double().eval()
    for size in ((8, 9), (9, 11), (11, 10)):  # SAME padding is different on each
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        attention = ConvolutionAsAttention(layer)
        torch.testing.assert_close(attention(x), layer(x), rtol=0, atol=1e-12)


class Conditional(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class StridesByBatch(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, 2 if len(x) > 1 else 1)


class SizedUnusually(nn.Conv2d):
    def forward(self, x):
        if x.shape[-1] != 50:
            raise AssertionError
        return super().forward(x)


class PaddedAndCropped(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (-1, -1, -1, -1)))


class Adapted(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + x.mean()


class Twice(nn.Conv2d):
    def forward(self, x):
        return super().forward(super().forward(x))


class Activated(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu_()


class Rectified(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.relu_())


class Shuffled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.flip(-1))


class PaddedWithOnes(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), value=1.0))


class AlwaysFloat32(nn.Conv2d):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Routed(nn.Conv2d):
    def forward(self, x, route):
        return super().forward(x) * route


def with_hook(kind):
    layer = nn.Conv2d(4, 4, 3)
    getattr(layer, f"register_{kind}_hook")(lambda *_: None)
    return layer


REFUSED = {
    "its weight depends on its input": lambda: Conditional(4, 4, 3),
    "its stride, dilation, groups or": lambda: StridesByBatch(4, 4, 3),
    "cannot be called: AssertionError \\(test_plain_convolution": lambda: SizedUnusually(4, 4, 3),
    "pads in two ways": lambda: PaddedAndCropped(4, 4, 3, padding=1),
    "changes the convolution's output": lambda: Adapted(4, 4, 3),
    "computes 2 convolutions": lambda: Twice(4, 4, 3),
    "input or output in place": lambda: Activated(4, 4, 3),
    "output in place": lambda: Rectified(4, 4, 3),
    "changes its input before": lambda: Shuffled(4, 4, 3),
    "changes its input": lambda: PaddedWithOnes(4, 4, 3),
    "computes in float32 under autocast": lambda: AlwaysFloat32(4, 4, 3),
    "cannot be called: .*route": lambda: Routed(4, 4, 3),
    "has hooks": lambda: with_hook("forward"),
    "hooks, which would be lost": lambda: with_hook("forward_pre"),
    "hooks": lambda: with_hook("full_backward"),
    "ConvTranspose2d: not a 1-D or 2-D": lambda: nn.ConvTranspose2d(4, 4, 3),
    "Conv3d: not a 1-D or 2-D": lambda: nn.Conv3d(4, 4, 3),
    "its weight is empty: it has no channels": lambda: nn.Conv2d(0, 4, 3),
    "not initialized: run the model once": lambda: nn.LazyConv2d(4, 3),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("reason", REFUSED)
def test_layers_that_are_not_plain_convolutions_are_refused_with_the_reason(reason):
    with pytest.raises(Inconvertible, match=reason):
        ConvolutionAsAttention(REFUSED[reason]())


def test_reading_a_layer_changes_neither_its_state_nor_the_rng():
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    read_convolution(layer)
    assert layer.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
