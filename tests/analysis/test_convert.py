"""Whole networks convert to attention and back; otherwise, the error names the obstacle and nothing changes."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DeformConv2d

from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.convert import convert, convert_back
from attnconv.analysis.plain_convolution import Inconvertible


def network():
    torch.manual_seed(0)
    shared = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), shared, nn.ReLU(), shared, nn.Conv2d(8, 4, 1))


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_all_convolutions_are_converted_and_shared_ones_stay_shared():
    model = network().eval()
    before = model(X)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    replaced = convert(model, example=X)
    assert list(replaced) == ["0", "2", "4", "5"]
    assert replaced["2"] is replaced["4"]
    assert not any(isinstance(module, nn.Conv2d) for module in model.modules())
    torch.testing.assert_close(model(X), before, rtol=1e-5, atol=1e-6)
    # Each head adds only three parameters: its center and its spread.
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters + 3 * (9 + 9 + 1)


def test_layers_that_cannot_be_converted_are_named_and_the_model_is_unchanged():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.Conv3d(1, 1, 1))
    with pytest.raises(Inconvertible, match=r"1 \(ConvTranspose2d: .*\), 2 \(Conv3d: .*\)"):
        convert(model)
    assert type(model[0]) is nn.Conv2d
    many = nn.Sequential(*(nn.ConvTranspose2d(4, 4, 2) for _ in range(9)))
    with pytest.raises(Inconvertible, match=r"3 \(ConvTranspose2d: [^)]*\) and 5 more"):
        convert(many)
    with pytest.raises(Inconvertible, match="has no convolution"):
        convert(nn.Linear(1, 1))
    with pytest.raises(Inconvertible, match=r"itself is a convolution.*ConvolutionAsAttention\(model\)"):
        convert(nn.Conv2d(3, 4, 3))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return F.conv2d(self.first(x), torch.ones(1, 3, 3, 3))


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.rest = nn.Conv2d(3, 3, 3), [nn.Conv2d(3, 3, 3)]

    def forward(self, x):
        return self.rest[0](self.first(x))


class Deformable(nn.Module):
    def __init__(self):
        super().__init__()
        self.offsets, self.deform = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.deform(x, self.offsets(x))


class OfAnothersWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return F.conv2d(self.first(x), self.first.weight)


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.training_only = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x):
        return self.first(x)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Functional, r"computed inside Functional \(aten::conv"),
        (InAList, r"computed inside InAList \(aten::conv"),
        (Deformable, r"computed inside deform DeformConv2d \(torchvision::deform_conv2d"),
        (OfAnothersWeight, "computed inside OfAnothersWeight"),
        (Unreached, "not reached by the images, so not known to be converted: training_only"),
    ],
)
def test_example_reveals_unconverted_convolutions_and_the_model_is_unchanged(kind, complaint, mode):
    model = kind()
    with mode(), pytest.raises(Inconvertible, match=complaint):
        convert(model, example=X)
    assert any(isinstance(module, nn.Conv2d) for module in model.modules())
    assert not any(isinstance(module, ConvolutionAsAttention) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_example_does_not_update_batch_norm_statistics():
    model = network().train()
    convert(model, example=X)
    assert model[1].num_batches_tracked == 0
    assert model.training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_scripted_quantized_and_compiled_models_are_refused():
    model, compiled = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Module()
    compiled._orig_mod = model  # like torch.compile, which takes seconds to import
    for built, complaint in (
        (lambda: torch.jit.script(model), "the model is scripted"),
        (lambda: nn.Sequential(torch.jit.trace(model, X)), "0 is scripted or traced"),
        (lambda: nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 3)), r"0 is quantized \(Conv2d\)"),
        (lambda: compiled, "the model is compiled"),
    ):
        with pytest.raises(Inconvertible, match=complaint):
            convert(built())


def test_models_with_tuple_outputs_are_converted():
    class Two(nn.Sequential):
        def forward(self, x):
            return super().forward(x), {"again": super().forward(x)}

    model = Two(nn.Conv2d(3, 4, 3))
    first, second = model(X)
    convert(model, example=X)
    torch.testing.assert_close(model(X), (first, second))


def test_frozen_layers_stay_frozen_and_weights_are_copied():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)).train()
    model[0].requires_grad_(False).eval()
    model[1].bias.requires_grad_(False)
    kernels = [layer.weight for layer in model]
    convert(model)
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    assert [name for name, parameter in model[1].named_parameters() if not parameter.requires_grad] == ["bias"]
    assert all(parameter.requires_grad for parameter in model[2].parameters())
    assert [layer.training for layer in model] == [False, True, True]
    with torch.no_grad():
        for layer in model:
            layer.value.zero_()
    assert all(kernel.abs().max() > 0 for kernel in kernels), "the values are copies"


def test_tied_weights_stay_tied():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    model[1].weight, model[2].bias = model[0].weight, model[0].bias
    parameters = sum(parameter.numel() for parameter in model.parameters())
    original = copy.deepcopy(model)
    convert(model)
    assert model[1].value is model[0].value
    assert model[2].bias is model[0].bias
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters + 3 * 27
    convert_back(model)
    assert model[1].weight is model[0].weight
    assert all(map(torch.equal, model.state_dict().values(), original.state_dict().values()))


def test_layers_with_nan_are_not_taken_for_tied_layers():
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    convert(model)
    assert torch.equal(model(torch.zeros(1, 4, 5, 5)).isnan().any((0, 2, 3)), torch.arange(4) == 0)


@pytest.mark.parametrize("kind", ["linear", "roles", "groups", "parametrization"])
def test_unsupported_weight_tying_is_refused(kind):
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Conv1d(8, 4, 1, groups=2))
    if kind == "linear":
        model[1].bias = model[0].bias
    elif kind == "roles":
        model[0].bias = nn.Parameter(torch.zeros(4))
        model[2].extra = model[0].bias
    elif kind == "groups":
        model[3].weight = model[0].weight
    else:
        for layer in (model[0], model[2]):
            nn.utils.parametrizations.weight_norm(layer)
        model[2].parametrizations.weight.original0 = model[0].parametrizations.weight.original0
    with pytest.raises(Inconvertible, match="share a parameter"):
        convert(model)


def test_convert_back_restores_the_original_network():
    model = network()
    model[0].requires_grad_(False)
    original = copy.deepcopy(model)
    convert(model)
    assert list(convert_back(model)) == ["0", "2", "4", "5"]
    assert repr(model) == repr(original)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert all(map(torch.equal, model.state_dict().values(), original.state_dict().values()))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in original.parameters()]
    with pytest.raises(Inconvertible, match="contains no attention that was a convolution"):
        convert_back(model)


def test_convert_back_refuses_heads_that_have_moved_off_their_taps():
    model = network()
    convert(model)
    with torch.no_grad():
        model[0].encoding.spreads[2] = 0.5
        model[2].encoding.centers[1] += 0.5
        model[5].encoding.centers -= 3
    with pytest.raises(Inconvertible, match=r"0 \(head 2 is not a tap.*\), 2 \(.*\), 5 \(head 0 has moved"):
        convert_back(model)
    assert isinstance(model[0], ConvolutionAsAttention)


def test_conversion_emits_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(network(), example=X)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


@pytest.mark.parametrize("computed", [nn.utils.parametrize.register_parametrization, None])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_parts_that_are_computed_from_frozen_parameters_stay_frozen(frozen, computed):
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    getattr(model[0], frozen).requires_grad_(False)
    if computed:
        computed(model[0], "bias", Halved())
    else:
        nn.utils.prune.l1_unstructured(model[0], "bias", 1)
    with torch.no_grad():
        convert(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == ({"0.bias"} if frozen == "weight" else {"0.value", "0.encoding.centers", "0.encoding.spreads"})


def test_hooks_on_parameters_and_on_converted_layers_are_refused():
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        model = nn.Sequential(nn.Conv2d(2, 2, 3))
        getattr(model[0].weight, register)(lambda *_: None)
        with pytest.raises(Inconvertible, match="has hooks, which would be lost"):
            convert(model)
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    convert(model)
    model[0].register_forward_hook(lambda layer, inputs, out: 2 * out)
    with pytest.raises(Inconvertible, match="has hooks, which would be lost"):
        convert_back(model)
