"""All fast implementations of a layer against the plain one in float64: odd sizes, oblong maps, single images."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnconv.mixers.content import ContentAttention
from attnconv.mixers.encodings import LearnedEncoding, QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.mixers.relative import LearnedRelativeVectors
from attnconv.mixers.window import WindowAttention

WIDTH, HEADS = 16, 3
FAST = {
    "quadratic dense": partial(PositionalAttention, encoding=QuadraticEncoding),
    "quadratic separable": partial(PositionalAttention, encoding=QuadraticEncoding, impl="separable"),
    "learned separable": partial(PositionalAttention, encoding=LearnedEncoding, impl="separable"),
    "content absorbed": partial(ContentAttention, impl="absorbed"),
    "content + learned absorbed": partial(ContentAttention, relative=LearnedRelativeVectors, impl="absorbed"),
    "learned key absorbed": partial(ContentAttention, relative=LearnedRelativeVectors, content=False, impl="absorbed"),
    "content + quadratic absorbed": partial(ContentAttention, encoding=QuadraticEncoding, impl="absorbed"),
    "content + learned fused": partial(ContentAttention, relative=LearnedRelativeVectors, impl="fused"),
}


def outputs_and_gradients(layer, x, probe, bf16=False):
    """Return the output, and the gradients of (output . probe) for x and all parameters, in float64."""
    image = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        out = layer(image)
    gradients = torch.autograd.grad((out.double() * probe).sum(), [image, *layer.parameters()])
    names = ["output", "x", *(name for name, _ in layer.named_parameters())]
    return dict(zip(names, [out.detach().double(), *(gradient.double() for gradient in gradients)], strict=True))


def relative_error(found, expected):
    """Return the norm of the difference divided by the expected norm."""
    return ((found - expected).norm() / expected.norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("name", FAST)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_fast_implementations_match_the_plain_one(name, height, width, batch, seed):
    torch.manual_seed(seed)
    fast = FAST[name](width=WIDTH, heads=HEADS, grid=(height, width))
    plain = FAST[name](width=WIDTH, heads=HEADS, grid=(height, width), impl="dense").double()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(batch, height, width, WIDTH)
    probe = torch.randn(batch, height, width, WIDTH, dtype=torch.float64)
    exact = outputs_and_gradients(plain, x.double(), probe)
    single = outputs_and_gradients(copy.deepcopy(fast), x, probe)
    half = outputs_and_gradients(fast, x, probe, bf16=True)
    for part, expected in exact.items():
        assert torch.isfinite(half[part]).all(), part
        if expected.norm() < 1e-3 * exact["output"].norm():
            continue  # only rounding: softmax over one pixel, or a bias shared by all keys, has no effect
        assert relative_error(single[part], expected) < 1e-5, part
        assert relative_error(half[part], expected) < 1e-1, part
    assert relative_error(half["output"], exact["output"]) < 1e-2
    assert relative_error(half["x"], exact["x"]) < 1e-2


@pytest.mark.parametrize("impl", ["dense", "separable"])
def test_gradients_of_many_images_add_up_in_more_than_bf16(monkeypatch, impl):
    """In bf16, a sum of equal numbers stops growing at 256 or 512 of them."""
    monkeypatch.setattr("attnconv.mixers.blocked.BLOCK_BYTES", 1)  # one image at a time
    torch.manual_seed(0)
    layer = PositionalAttention(4, 2, (2, 2), QuadraticEncoding, impl=impl)
    x, probe = (torch.randn(2, 2, 4).expand(1000, -1, -1, -1).contiguous() for _ in range(2))
    exact = outputs_and_gradients(copy.deepcopy(layer).double(), x.double(), probe.double())
    found = outputs_and_gradients(layer, x, probe.double(), bf16=True)
    for part, expected in exact.items():
        assert relative_error(found[part], expected) < 0.05, part


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def positional():
    return PositionalAttention(WIDTH, HEADS, (3, 4), QuadraticEncoding)


def with_content():
    return ContentAttention(WIDTH, HEADS, (3, 4))


@pytest.mark.parametrize(("build", "part"), [(positional, "value"), (with_content, "query"), (with_content, "key")])
def test_hooks_on_projections_are_called(build, part):
    torch.manual_seed(0)
    layer, x = build(), torch.randn(2, 3, 4, WIDTH)
    plain = layer(x)
    projection = getattr(layer, part)
    seen = []
    handles = [
        projection.register_forward_pre_hook(lambda *_: seen.append("before")),
        projection.register_forward_hook(lambda *_: seen.append("after")),
    ]
    torch.testing.assert_close(layer(x), plain)
    assert seen == ["before", "after"]
    for handle in handles:
        handle.remove()
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        layer(x)
    assert projection in seen
    projection.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer(x.requires_grad_()).sum().backward()
    assert seen[-1] == "backward"


@pytest.mark.parametrize(("build", "part"), [(positional, "value"), (with_content, "query"), (with_content, "key")])
def test_subclassed_and_patched_projections_are_respected(build, part):
    torch.manual_seed(0)
    layer, x = build(), torch.randn(2, 3, 4, WIDTH)
    own = getattr(layer, part)
    doubled = Doubled(own.in_features, own.out_features)
    doubled.load_state_dict(own.state_dict())
    setattr(layer, part, doubled)
    expected = layer(x)
    setattr(layer, part, own)
    assert not torch.allclose(layer(x), expected, atol=1e-3)
    own.forward = lambda x: 2 * torch.nn.functional.linear(x, own.weight, own.bias)
    torch.testing.assert_close(layer(x), expected)


DROPPING = {
    **{f"window {impl}": partial(WindowAttention, kernel_size=3, impl=impl) for impl in ("gathered", "dense")},
    **{f"content {impl}": partial(ContentAttention, impl=impl) for impl in ("dense", "fused", "absorbed")},
    "quadratic": partial(PositionalAttention, encoding=QuadraticEncoding),
}


@pytest.mark.parametrize("name", DROPPING)
def test_attention_is_dropped_in_training_only(name):
    torch.manual_seed(0)
    layer = DROPPING[name](width=12, heads=HEADS, grid=(4, 5), attention_dropout=0.5)
    plain = DROPPING[name](width=12, heads=HEADS, grid=(4, 5))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 5, 12)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))
    assert not torch.allclose(layer.train()(x), plain(x), atol=1e-3)
    assert not torch.equal(layer(x), layer(x))
