"""The attention maps of networks that are not built from this package's layers."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

from attnconv.analysis.attention import attention_layers
from attnconv.analysis.heads import attention_mixers
from attnconv.analysis.probe import mixer_traffic
from attnconv.errors import ConfigError
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.models.vit import vit


def test_vit_attention_maps_reproduce_the_layer_output():
    torch.manual_seed(0)
    model = vit((3, 8, 8), 4, 4, 2, 2, 8, 8, 0.0, 0.0).eval()
    images = torch.randn(3, 3, 8, 8)
    first, _ = attention_layers(model, images)
    assert (first.grid, first.prefix) == ((2, 2), 1)
    seen = []
    model.blocks[0].attn.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model(images)
    x, output = seen[0]
    attention = model.blocks[0].attn
    values = attention.qkv(x).unflatten(-1, (3, 2, 4))[:, :, 2].transpose(1, 2)
    assert torch.allclose(attention.proj((first.probs @ values).transpose(1, 2).flatten(2)), output, atol=1e-5)
    assert attention.fused_attn, "the network itself is as it was"


def test_only_a_class_token_is_one():
    images = torch.randn(1, 3, 8, 8)
    settings = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 4}
    for has_class, registers in ((True, 0), (True, 2), (False, 2)):
        pool = "token" if has_class else "avg"
        model = timm.models.VisionTransformer(
            **settings, class_token=has_class, reg_tokens=registers, global_pool=pool
        ).eval()
        (layer,) = attention_layers(model, images)
        assert (layer.prefix, layer.has_class) == (has_class + registers, has_class)


def test_attention_maps_of_torchvision_vit():
    model = VisionTransformer(8, 4, 2, 2, 8, 8, num_classes=4).eval()
    layers = attention_layers(model, torch.randn(3, 3, 8, 8))
    assert [(layer.grid, layer.prefix, tuple(layer.probs.shape)) for layer in layers] == [((2, 2), 1, (3, 2, 5, 5))] * 2
    assert layers[0].has_class
    assert torch.allclose(layers[0].probs.sum(-1), torch.ones(()), atol=1e-5)
    assert not attention_layers(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))


class ClassLast(nn.Module):
    """Appends a class token to the pixels."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x):
        tokens = nn.functional.pad(x.flatten(2).mT, (0, 0, 0, 1))
        return self.attention(tokens, tokens, tokens)[0][:, -1]


class Positional(nn.Module):
    """Weights that are computed from others, and options of the attention by position."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.first = nn.utils.weight_norm(nn.Linear(3, 3))

    def forward(self, x):
        tokens = self.first(x.flatten(2).mT)
        return self.attention(tokens, tokens, tokens, None, False)[0].mean(1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_attention_with_options_by_position_and_computed_weights():
    (layer,) = attention_layers(Positional().eval(), torch.randn(2, 3, 4, 4))
    assert layer.probs.shape == (2, 1, 16, 16)


class WithMethod(nn.Module):
    """A network with a method of the name that mixers have."""

    def __init__(self):
        super().__init__()
        self.layer = QuietMixer()

    def attention_probs(self, images):
        return self.layer.attention_probs(4, 4)

    def forward(self, x):
        y = self.layer(x.movedim(1, -1))
        y += 1
        return F.relu_(y)


class QuietMixer(nn.Module):
    def attention_probs(self, height, width, x=None):
        return torch.full((1, 1, height * width, height * width), 1 / (height * width))

    def forward(self, x):
        return x.mean((1, 2), keepdim=True).expand_as(x).clone()


def test_a_network_is_not_a_mixer_and_may_go_on_in_place():
    model, images = WithMethod(), torch.randn(2, 3, 4, 4)
    assert attention_mixers(model) == [model.layer]
    ((x, y),) = mixer_traffic(model, images)
    assert torch.equal(x, images.movedim(1, -1))
    assert torch.allclose(y, x.mean((1, 2), keepdim=True).expand_as(x))


def test_other_tokens_are_not_taken_for_positions():
    with pytest.raises(ConfigError, match="has 1 token more than positions, and only those of timm and torchvision"):
        attention_layers(ClassLast(), torch.randn(2, 3, 4, 4))


class OwnAttention(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class TwoMaps(nn.Module):
    """Subtracts two maps per head, so that their rows are no probabilities of a head."""

    def __init__(self):
        super().__init__()
        self.fused_attn, self.num_heads, self.attn_drop = True, 2, nn.Dropout(0.0)

    def forward(self, x):
        first, second = self.attn_drop(x.new_zeros(len(x), 4, 16, 16)).chunk(2, 1)
        return x.mean((2, 3)) + (first - second).sum()


class Unnamed(nn.Module):
    """Attends without saying so in its name."""

    def forward(self, x):
        return x + F.scaled_dot_product_attention(x, x, x)


class Tokens(nn.Module):
    """A transformer of blocks from (B, tokens, 8) to the same, on patches of 4 x 4 pixels."""

    patch_size, image_size = 4, 16

    def __init__(self, *blocks):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 4, 4), nn.ModuleList(blocks), nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


class OfTokens(nn.Module):
    """MultiheadAttention, or a mixer of maps, on tokens."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        if isinstance(self.layer, nn.MultiheadAttention):
            return self.layer(x, x, x, need_weights=False)[0]
        return self.layer(x.unflatten(1, (4, 4))).flatten(1, 2)


def multihead():
    return OfTokens(nn.MultiheadAttention(8, 2, batch_first=True))


PIXELS = torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize(
    ("blocks", "unknown"),
    [
        ((Unnamed(), multihead()), "scaled_dot_product_attention"),
        ((Unnamed(),), "scaled_dot_product_attention"),
        ((type("OwnAttention", (Unnamed,), {})(), multihead()), "OwnAttention"),
        ((type("OwnAttention", (Unnamed,), {})(), timm.layers.Attention(8, 2)), "OwnAttention"),
        ((OfTokens(PositionalAttention(8, 9, (4, 4), QuadraticEncoding)), multihead()), "MultiheadAttention"),
    ],
)
def test_a_layer_of_an_unknown_kind_next_to_known_ones_is_not_left_out(blocks, unknown):
    with pytest.raises(ConfigError, match=rf"its attention \({unknown}\) is of an unknown kind"):
        attention_layers(Tokens(*blocks), PIXELS)


def test_several_known_layers_are_all_shown_and_the_network_stays_in_training_mode():
    model = Tokens(multihead(), timm.layers.Attention(8, 2), multihead()).train()
    assert [layer.grid for layer in attention_layers(model, PIXELS)] == [(4, 4)] * 3
    assert model.training


def test_attention_that_pools_the_tokens_is_no_layer():
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 4}
    model = timm.models.VisionTransformer(**settings, class_token=False, global_pool="map").eval()
    assert [layer.grid for layer in attention_layers(model, PIXELS)] == [(4, 4)] * 2


def test_a_map_of_unknown_size_is_named():
    model = type("NoPatch", (Tokens,), {"patch_size": None})(multihead())
    with pytest.raises(ConfigError, match=r"map is unknown.*: give the network the attributes patch_size and image_s"):
        attention_layers(model, PIXELS)


@pytest.mark.parametrize("network", [OwnAttention, TwoMaps])
def test_attention_of_an_unknown_kind_is_refused_and_not_called_missing(network):
    with pytest.raises(ConfigError, match=rf"its attention \({network.__name__}\) is of an unknown kind"):
        attention_layers(nn.Sequential(network()), torch.randn(2, 3, 4, 4))
