"""paper.py, the paper in one file: the reference for the fast positional layer and for the conversion."""

import pytest
import torch
from torch import nn

import paper
from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention


@pytest.mark.parametrize("impl", ["dense", "separable"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (6, 6)])
def test_positional_layer_matches_the_reference(impl, height, width):
    torch.manual_seed(0)
    ours = PositionalAttention(8, 4, (height, width), QuadraticEncoding, impl=impl)
    theirs = paper.QuadraticAttention(8, 4)
    with torch.no_grad():
        theirs.centers.copy_(ours.encoding.centers)
        theirs.alpha.copy_(ours.encoding.spreads.square() / 2)
        theirs.value.load_state_dict(ours.value.state_dict())
    x = torch.randn(3, height, width, 8, dtype=torch.float64)
    torch.testing.assert_close(ours.double()(x), theirs.double()(x))


def test_conversion_matches_the_reference_away_from_the_border():
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    ours = ConvolutionAsAttention(convolution)(x).permute(0, 2, 3, 1)
    theirs = paper.attention_from(convolution).double()(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_reference_demonstrates_the_lemma_and_trains(capsys):
    torch.manual_seed(0)
    paper.check_theorem()
    assert "a 3x3 convolution as nine heads: difference " in capsys.readouterr().out
    _, accuracy = paper.train(epochs=2)
    assert accuracy > 0.3  # chance is 0.1
