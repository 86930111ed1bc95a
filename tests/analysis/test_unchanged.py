"""With an example, a network is converted only if its output stays the same, and otherwise comes back unchanged."""

import copy
import dataclasses
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.convert import convert
from attnconv.analysis.plain_convolution import Inconvertible

RANDOM = torch.Generator().manual_seed(1)
X = torch.randn(2, 3, 9, 9, generator=RANDOM)


class Around(nn.Module):
    """A network whose code is given by a test: `forward(layer, x)` of its only convolution."""

    def __init__(self, forward, kind=nn.Conv2d):
        super().__init__()
        self.layer, self.code, self.calls, self.kept = kind(3, 4, 3, groups=1), forward, [], torch.zeros(2)

    def forward(self, x):
        self.calls.append(len(x))
        self.kept += 1
        self.last = self.code(self.layer, x)
        return self.last


class Zeroes(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if x.abs().max() < 50 else torch.zeros(2, 4, 7, 7)


class Scaled(nn.Conv2d):
    scale = 2

    def forward(self, x, more=0):
        return super().forward(x) + more if more else super().forward(x)


def halves(layer, x):
    layer.weight.data = layer.weight.data / 2
    return layer(x)


def sets(name, value):
    def forward(layer, x):
        setattr(layer, name, value)
        return layer(x)

    return forward


@dataclasses.dataclass
class Output:
    features: list
    classes: object = None


def is_convolution(layer):
    return isinstance(layer, nn.Conv2d)


@pytest.mark.parametrize(
    ("forward", "complaint"),
    [
        (lambda layer, x: layer(x) * (2 if is_convolution(layer) else 1), "the output differs by up to .*, of up to"),
        (lambda layer, x: ({"a": layer(x)}, 0.5 + is_convolution(layer)), r"the output\[1\] differs by up to 1, of"),
        (lambda layer, x: {"a": (layer(x), str(is_convolution(layer)))}, r"output\['a'\]\[1\] is 'False', not 'True'"),
        (
            lambda layer, x: Output([layer(x), layer(x).numpy() * is_convolution(layer)]),
            r"output.features\[1\] differs",
        ),
        (
            lambda layer, x: Output([layer(x)], is_convolution(layer) or None),
            "output.classes is a NoneType, not a bool",
        ),
        (lambda layer, x: [layer(x)][: 2 - is_convolution(layer)] * (2 - is_convolution(layer)), r"\[1\] is .*missing"),
        (
            lambda layer, x: layer(x)[:, is_convolution(layer) :],
            r"output is \(2, 4, 7, 7\) of float32, not \(2, 3, 7, 7\)",
        ),
        (lambda layer, x: layer(x) + layer(x) * torch.inf * is_convolution(layer), "differs by up to (nan|inf)"),
        (lambda layer, x: (layer(x) > 0) == is_convolution(layer), "differs in 100.00% of its values"),
        (halves, "the output differs by"),
        (sets("padding", (1, 1)), "layer: padding cannot be set after conversion"),
        (sets("weight", nn.Parameter(torch.zeros(4, 3, 3, 3))), "layer: weight cannot be set, because it is computed"),
        (lambda layer, x: layer(x) * layer.scale, "layer: '.*' object has no attribute 'scale'"),
        (lambda layer, x: layer(x) + layer.output_padding[0], "layer: .* no attribute 'output_padding'"),
        (lambda layer, x: layer(x, more=1.0), "layer: .*unexpected keyword argument 'more'"),
    ],
)
def test_networks_that_change_with_conversion_are_refused_and_come_back_unchanged(forward, complaint):
    model = Around(forward, Scaled)
    with torch.no_grad():
        model.layer.weight.fill_(0.1)
    attributes, state = dict(vars(model)), copy.deepcopy(model.state_dict())
    with pytest.raises(Inconvertible, match=complaint):
        convert(model, example=X)
    assert vars(model) == attributes
    assert type(model.layer) is Scaled
    assert not model.calls
    assert not model.kept.any()
    assert all(map(torch.equal, model.state_dict().values(), state.values()))


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_outputs_that_differ_by_rounding_are_equal(dtype):
    model = Around(lambda layer, x: (F.dropout(layer(x).abs()), x.sub_(1), 2.5, torch.rand(2), layer.stride))
    convert(model.to(dtype), example=X.to(dtype).requires_grad_() * 1)
    assert isinstance(model.layer, ConvolutionAsAttention)
    assert not model.calls
    assert model.training


class Holder:
    def __init__(self, value):
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Same(torch.Tensor):
    """A class of tensors without a meaning of its own."""


HOLDERS = [
    lambda value: SimpleNamespace(logits=value),
    Holder,
    Slots,
    lambda value: {"a": [Holder(value)]},
    lambda value: deque([value]),
    lambda value: np.array([value, None], dtype=object),
    lambda value: torch.distributions.Normal(value, 1.0),
    lambda value: torch.nested.nested_tensor(list(value)),
    lambda value: torch.nested.nested_tensor(list(value.flatten(2)), layout=torch.jagged),
    lambda value: torch.quantize_per_tensor(value, 0.001, 0, torch.qint32),
    lambda value: value.as_subclass(Same),
    lambda value: value.to_sparse(),
]


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor:UserWarning")
@pytest.mark.parametrize("holder", HOLDERS)
def test_outputs_of_any_class_are_compared(holder):
    with pytest.raises(Inconvertible, match=r"computes something else: .* differs by up to"):
        convert(Around(lambda layer, x: holder(layer(x) + is_convolution(layer))), example=X)
    convert(Around(lambda layer, x: holder(layer(x))), example=X)


def holds_itself(value):
    found = [value]
    found.append(found)
    return found


def test_an_output_that_holds_itself_is_compared():
    convert(Around(lambda layer, x: holds_itself(layer(x))), example=X)


@pytest.mark.filterwarnings("ignore:.*MaskedTensors:UserWarning")
@pytest.mark.parametrize(
    ("forward", "complaint"),
    [
        (lambda layer, x: (value for value in layer(x)), "the output is a generator, which cannot be compared"),
        (lambda layer, x: torch.masked.masked_tensor(layer(x), layer(x) > 0), "is a MaskedTensor, which cannot be"),
        (lambda layer, x: layer(x)[:0], "they have no numbers"),
        (lambda layer, x: layer(x) * torch.nan, "they have no numbers"),
        (lambda layer, x: layer(x) + torch.rand(1, generator=RANDOM), "the output differs by up to"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(forward, complaint):
    with pytest.raises(Inconvertible, match=f"outputs that cannot be compared, even unconverted: .*{complaint}"):
        convert(Around(forward), example=X)


class Forgetful(Around):
    def train(self, mode=True):
        super().train(mode)  # and returns nothing


def test_a_network_whose_train_returns_nothing_is_converted():
    assert convert(Forgetful(lambda layer, x: layer(x)), example=X)


def test_an_exported_network_is_refused():
    exported = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3)), (X,)).module()
    with pytest.raises(Inconvertible, match=r"the model is exported: convert the model before torch\.export"):
        convert(exported, example=X)


def test_layers_that_share_memory_stay_tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight.data = model[0].weight.data
    convert(model, example=X)
    assert model[0].value is model[1].value


def test_layers_that_depend_on_values_are_refused_for_an_example_that_shows_it():
    model = nn.Sequential(Zeroes(3, 4, 3))
    with pytest.raises(Inconvertible, match="computes something else"):
        convert(model, example=100 * X)
    convert(model, example=X)


def test_values_are_compared_only_if_the_heads_are_exact():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    before = model(X)
    convert(model, alpha=1, example=X)
    assert not torch.allclose(model(X), before)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"model": None}, "the model is a NoneType, not a torch.nn.Module"),
        ({"model": "x"}, "the model is a str, not"),
        ({"example": X.numpy()}, "the network cannot run on the example, its only argument: .*numpy"),
        ({"example": (X, X)}, "cannot run on the example, its only argument: .*tuple"),
        ({"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyLinear(2)), "example": X}, "1 is not initialized: run the"),
        *(({"alpha": alpha}, "alpha must be a number above 0 and") for alpha in ("3", None, 1j, True, torch.ones(2))),
    ],
)
def test_unusable_arguments_are_named(arguments, complaint):
    with pytest.raises((Inconvertible, ValueError), match=complaint):
        convert(**{"model": nn.Sequential(nn.Conv2d(3, 4, 3))} | arguments)
