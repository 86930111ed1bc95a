"""How far attention falls short of a convolution at the border, with few heads and with low-rank heads, computed in two
ways.
"""

import pytest
import timm
import torch
from torch import nn

import paper
from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.analysis.shortfall import missed_by_heads, missed_by_rank, with_image_keys


@pytest.fixture
def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(6, 6, 3, padding=1).double()


def test_attention_without_padding_keys_differs_only_at_the_border(convolution):
    x = torch.randn(2, 7, 8, 6, dtype=torch.float64)
    with torch.no_grad():
        attended = with_image_keys(convolution, 7, 8)(x)
        torch.testing.assert_close(attended, paper.attention_from(convolution).double()(x), rtol=0, atol=1e-6)
        difference = (convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - attended).abs().amax((0, 3))
    assert difference[1:-1, 1:-1].max() < 1e-12
    difference[1:-1, 1:-1] = 1
    assert difference.min() > 1e-3, "all of the border"


def test_a_kernel_of_zeros_lacks_nothing():
    assert missed_by_rank(torch.zeros(2, 2, 3, 3)) == [0, 0]


def test_unsupported_convolutions_are_refused():
    for wrong in (nn.Conv2d(2, 3, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(2, 2, 2), nn.Conv2d(2, 2, 3, stride=2)):
        with pytest.raises(ValueError, match="needs a 2-D convolution with"):
            with_image_keys(wrong, 8, 8)
    with pytest.raises(ValueError, match="needs a 2-D convolution with"):
        with_image_keys(nn.Conv1d(2, 2, 3), 8, 8)
    for other in (nn.ConvTranspose2d(2, 2, 3), nn.Linear(2, 2)):
        with pytest.raises(Inconvertible):
            with_image_keys(other, 8, 8)
    for alpha in (0, -1, float("nan"), "46"):
        with pytest.raises(ValueError, match="alpha must be a number above 0"):
            with_image_keys(nn.Conv2d(2, 2, 3), 8, 8, alpha)


def test_a_convolution_that_computes_its_weight_is_read_from_what_it_computes():
    layer, x = timm.layers.StdConv2d(4, 4, 3, padding=1).eval(), torch.randn(2, 4, 6, 6)
    out = with_image_keys(layer, 6, 6)(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], layer(x)[..., 1:-1, 1:-1], atol=1e-5, rtol=1e-4)


def test_error_with_fewer_heads_matches_least_squares(convolution):
    """With independent pixels, the best values for eight heads miss exactly the contribution of the ninth tap."""
    one_tap, any_maps = missed_by_heads(convolution.weight)
    assert one_tap[-1] == any_maps[-1] == 0
    assert all(bound <= share for bound, share in zip(any_maps, one_tap, strict=True))
    assert one_tap == sorted(one_tap, reverse=True)
    sizes = convolution.weight.detach().square().sum((0, 1)).flatten()
    x = torch.randn(20, 6, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        y = nn.functional.conv2d(x, convolution.weight).permute(0, 2, 3, 1).flatten(0, 2)
    taps = nn.functional.unfold(x, 3).unflatten(1, (6, 9))
    kept = taps[:, :, sizes.argsort(descending=True)[:8]].flatten(1, 2).transpose(1, 2).flatten(0, 1)
    left_over = y - kept @ torch.linalg.lstsq(kept, y).solution
    assert left_over.square().sum() / y.square().sum() == pytest.approx(one_tap[-2], rel=0.1)


def test_error_of_low_rank_heads_matches_the_truncated_svd(convolution):
    missed = missed_by_rank(convolution.weight)
    assert len(missed) == 6
    assert missed[-1] == 0
    thin = ConvolutionAsAttention(convolution)
    with torch.no_grad():
        values = thin.value[0].unflatten(0, (9, 6))
        left, sizes, right = torch.linalg.svd(values)
        thin.value.copy_((left[..., :2] * sizes[:, None, :2] @ right[:, :2]).flatten(0, 1)[None])
        x = torch.randn(20, 6, 16, 16, dtype=torch.float64)
        wanted = convolution(x) - convolution.bias[:, None, None]
        error = convolution(x) - thin(x)
    assert error.square().sum() / wanted.square().sum() == pytest.approx(missed[1], rel=0.1)


def test_shortfall_of_a_rank_one_kernel_with_two_taps():
    weight = torch.zeros(4, 4, 3, 3)
    weight[:, :, 0, 1] = weight[:, :, 2, 2] = 1
    assert missed_by_heads(weight)[0] == pytest.approx([0.5, *[0] * 8])
    assert missed_by_heads(weight)[1] == pytest.approx([0] * 9), "one map that is half of each"
    assert missed_by_rank(weight) == pytest.approx([0] * 4)
