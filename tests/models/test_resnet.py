"""Convolutional networks against timm's and torchvision's: logits, gradients and batch norm statistics."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SEModule
from timm.models.resnet import BasicBlock
from timm.models.resnet import ResNet as TimmResNet
from torch import nn
from torchvision.models.vgg import make_layers

from attnconv.models.resnet import ResNet
from attnconv.models.vgg import Vgg


def timm_resnet(blocks, **block_settings):
    """Return timm's ResNet with the CIFAR stem of He et al. (3 x 3, no pooling), which always has 64 channels."""
    network = TimmResNet(BasicBlock, blocks, 10, 3, block_args=block_settings)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


def torchvision_vgg(width):
    stages = [1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M"]
    layers = make_layers([stage if stage == "M" else width * stage for stage in stages], batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


PAIRS = {
    "resnet10": lambda: (ResNet((3, 16, 16), 10, [1] * 4, 64), timm_resnet([1] * 4)),
    "resnet18": lambda: (ResNet((3, 16, 16), 10, [2] * 4, 64), timm_resnet([2] * 4)),
    "se_resnet": lambda: (
        ResNet((3, 16, 16), 10, [1] * 4, 64, squeeze_reduction=4),
        timm_resnet([1] * 4, attn_layer=partial(SEModule, rd_ratio=1 / 4)),
    ),
    "vgg11_bn": lambda: (Vgg((3, 32, 32), 10, 4), torchvision_vgg(4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_gradients_match_timm_and_torchvision(name):
    """Parameters and buffers come in the same order, but with different names."""
    torch.manual_seed(0)
    ours, theirs = PAIRS[name]()
    side = 32 if name == "vgg11_bn" else 16
    own, other = ours.double().state_dict(), theirs.double().state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in other.values()]
    theirs.load_state_dict(dict(zip(other, own.values(), strict=True)))
    images, labels = torch.randn(6, 3, side, side, dtype=torch.float64), torch.arange(6)
    logits, gradients = [], []
    for network in (ours, theirs):
        out = network.train()(images)
        gradients.append(torch.autograd.grad(F.cross_entropy(out, labels), list(network.parameters())))
        logits += [out.detach(), network.eval()(images).detach()]
    torch.testing.assert_close(logits[0], logits[2])
    torch.testing.assert_close(logits[1], logits[3])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-9)
    for (name, buffer), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


def test_each_stage_rounds_a_fractional_width_separately():
    stages = [block.conv1.out_channels for block in ResNet((3, 16, 16), 4, [1, 1, 1], 2.6).blocks]
    assert stages == [3, 5, 10]
