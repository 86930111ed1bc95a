"""The peers of CPU-10 are the networks and recipes that their sources describe."""

import pytest
import torch
from torch import nn

from attnconv.bench.peers import PEERS, Airbench, Lookahead, conv, whitening_filters
from attnconv.config import compose
from attnconv.data.dataset import Split
from attnconv.models.build import build_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split():
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(400, 3, 8, 8, generator=draw)  # neighboring pixels are alike, as in photographs
    images = nn.functional.interpolate(coarse, 32, mode="bilinear").permute(0, 2, 3, 1)
    images = (255 * images + 20 * torch.rand(images.shape, generator=draw)).clamp(0, 255).byte()
    return Split(images, torch.arange(400) % 10, torch.full((3,), 0.5), torch.full((3,), 0.25))


# From the papers and repositories, by their own counts; published_mini from our network of that size.
PARAMETERS = {"vit_tiny": 5_362_762, "cct_2_3x2": 283_723, "resnet18": 11_173_962, "airbench94": 1_972_792}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_peer_has_the_published_number_of_parameters(name, split):
    assert sum(part.numel() for part in PEERS[name].build(split).parameters()) == PARAMETERS[name]


def test_the_published_network_is_as_large_as_ours_at_mini_scale(split):
    ours = build_model(compose(["model=sa_quadratic", "scale=mini", "logger=none"]).model, (3, 32, 32), 10)
    theirs = PEERS["published_mini"].build(split)
    assert {name: part.shape for name, part in theirs.named_parameters()} == {
        name: part.shape for name, part in ours.named_parameters()
    }


@pytest.mark.parametrize("name", PEERS)
def test_every_weight_of_a_peer_is_trained_or_fixed_on_purpose(name, split):
    peer = PEERS[name]
    network = peer.build(split)
    optimizer = peer.optimizer(network)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    trained = {id(part) for group in optimizer.param_groups for part in group["params"]}
    fixed = [key for key, part in network.named_parameters() if id(part) not in trained]
    if name == "airbench94":
        assert fixed.pop(0) == "whiten.weight"
        assert all(isinstance(network.get_submodule(key.rpartition(".")[0]), nn.BatchNorm2d) for key in fixed)
        assert len(fixed) == 6
    else:
        assert fixed == []
    missing = [key for key, part in network.named_parameters() if part.requires_grad and part.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", PEERS)
def test_the_rate_of_a_peer_rises_to_its_peak_and_ends_low(name):
    factors = [PEERS[name].factor(step / 1000) for step in range(1001)]
    assert max(factors) == pytest.approx(1, abs=0.02)
    assert factors[-1] == pytest.approx(0.07 if name == "airbench94" else 0, abs=1e-9)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_whitened_patches_are_uncorrelated_and_as_large_in_every_direction(split):
    images = (split.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    seen = nn.functional.conv2d(images, whitening_filters(split)).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(seen[:12], -seen[12:])
    second = seen[:12] @ seen[:12].T / seen.shape[1]
    torch.testing.assert_close(second, torch.eye(12), rtol=0, atol=0.05)


def test_a_convolution_of_airbench_starts_as_the_identity_on_its_first_channels():
    x = torch.randn(2, 5, 6, 6)
    torch.testing.assert_close(conv(5, 8)(x)[:, :5], x)


def test_airbench_scales_its_logits_and_learns_no_scales(split):
    network = Airbench(split).eval()
    x = torch.randn(2, 3, 32, 32)
    before = network(x)
    network.head.weight.data *= 9
    torch.testing.assert_close(network(x), 9 * before)


def test_the_slow_copy_follows_at_first_and_stays_at_the_end():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    lookahead = Lookahead(network)
    network.weight.data.fill_(1.0)
    for _ in range(5):
        lookahead.step(0.0)  # keeps nothing of the slow copy
    assert network.weight.item() == 1
    network.weight.data.fill_(2.0)
    for _ in range(5):
        lookahead.step(1.0)
    kept = 0.95**5
    assert network.weight.item() == pytest.approx(kept * 1 + (1 - kept) * 2)
    network.weight.data.fill_(9.0)
    lookahead.end()
    assert network.weight.item() == pytest.approx(kept * 1 + (1 - kept) * 2)


def test_groups_of_airbench_have_the_published_rates(split):
    shifts, rest, bias = PEERS["airbench94"].optimizer(Airbench(split)).param_groups
    # 11.5 per 1,024 summed images, over the size 1 + 1 / 0.15 of a step; decay does not depend on the rate
    assert rest["lr"] == pytest.approx(1.5)
    assert shifts["lr"] == pytest.approx(96)
    for group in (shifts, rest, bias):
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.0153 / (1 + 1 / 0.15))
        assert group["nesterov"]
    assert bias["until"] == pytest.approx(3 / 9.9)
