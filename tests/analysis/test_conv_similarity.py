"""The statistics that describe heads and layers, on cases with known answers."""

import itertools
import math

import pytest
import torch
from torch import nn

from attnconv.analysis.calibration import calibration
from attnconv.analysis.conv_similarity import convolution_shares, head_numbers, joint_residual, radius, variance_shares
from attnconv.analysis.heads import head_statistics
from attnconv.analysis.probe import mixer_traffic
from attnconv.config import compose
from attnconv.data.dataset import load_dataset
from attnconv.mixers.base import grid_shifts
from attnconv.runs.load import build_untrained

pytestmark = pytest.mark.slow  # building networks takes seconds

H, W = 6, 5
PIXELS = H * W
CENTRE = H // 2 * W + W // 2


def looking_at(row, column):
    """Return a head (1, 1, Q, K) that attends only to one shift, or to the nearest pixel if that is outside the map."""
    probs = torch.zeros(1, 1, PIXELS, PIXELS, dtype=torch.float64)
    for query in range(PIXELS):
        i = min(max(query // W + row, 0), H - 1)
        j = min(max(query % W + column, 0), W - 1)
        probs[0, 0, query, i * W + j] = 1
    return probs


EVEN = torch.full((1, 1, PIXELS, PIXELS), 1 / PIXELS, dtype=torch.float64)


def only(numbers):
    return {name: values[0] for name, values in numbers.items()}


def test_statistics_of_a_one_hot_head():
    numbers = only(head_numbers(looking_at(1, -1), H, W))
    assert (numbers["center_row"], numbers["center_column"]) == (1, -1)
    for name in ("spread", "radius_50", "radius_90", "entropy", "by_content"):
        assert numbers[name] == pytest.approx(0, abs=1e-12), name
    assert numbers["one_pixel"] == 1
    # The distance is sqrt(2), but less at the border, where the head attends to a nearer pixel.
    below, left = [1] * (H - 1) + [0], [0] + [1] * (W - 1)
    lengths = [math.hypot(down, aside) for down in below for aside in left]
    assert numbers["distance"] == pytest.approx(sum(lengths) / PIXELS)
    assert 0.5 < numbers["by_shift"] < 1, "the border has a share"
    assert numbers["by_shift"] + numbers["by_place"] == pytest.approx(1)


def test_statistics_of_a_uniform_head():
    numbers = only(head_numbers(EVEN, H, W))
    assert numbers["entropy"] == pytest.approx(math.log(PIXELS))
    assert numbers["one_pixel"] == pytest.approx(1 / PIXELS)
    assert (numbers["by_shift"], numbers["by_place"], numbers["by_content"]) == (1, 0, 0)
    shifts = grid_shifts(H, W).double()
    assert numbers["distance"] == pytest.approx(shifts.norm(dim=-1).mean().item())


def test_rows_that_do_not_sum_to_one_are_described_as_shares():
    torch.manual_seed(0)
    probs = torch.rand(2, 3, PIXELS, PIXELS, dtype=torch.float64).softmax(dim=-1)
    scaled = head_numbers(probs * torch.rand(2, 3, PIXELS, 1).clamp_min(0.2), H, W)
    for name, values in head_numbers(probs, H, W).items():
        assert scaled[name] == pytest.approx(values), name
    assert only(head_numbers(0 * EVEN, H, W))["entropy"] == 0


def test_variance_of_an_identity_head_is_due_to_the_shift():
    shares = variance_shares(looking_at(0, 0), H, W)
    assert shares["shift"].item() == pytest.approx(1)


def test_variance_of_an_image_dependent_head_is_due_to_content():
    """In each image, all queries attend to one pixel, a different one per image: no variance is due to the shift."""
    images = torch.zeros(PIXELS, 1, PIXELS, PIXELS, dtype=torch.float64)
    for image in range(PIXELS):
        images[image, 0, :, image] = 1
    shares = variance_shares(images, H, W)
    assert shares["content"].item() == pytest.approx(1)
    assert shares["shift"].item() == pytest.approx(0, abs=1e-12)


def test_variance_of_a_fixed_pixel_head_is_due_to_shift_and_place():
    """In all images, all queries attend to one corner: the map depends on the query, not on the content."""
    probs = torch.zeros(1, 1, PIXELS, PIXELS, dtype=torch.float64)
    probs[..., 0] = 1
    shares = variance_shares(probs.expand(3, -1, -1, -1), H, W)
    assert shares["content"].item() == 0
    # The expected shares, from explicit sums over all (query, key) pairs.
    by_shift = {}
    shifts = grid_shifts(H, W)
    for query, key in itertools.product(range(PIXELS), range(PIXELS)):
        by_shift.setdefault(tuple(shifts[query, key].tolist()), []).append(float(key == 0))
    mean = 1 / PIXELS
    explained = sum(len(cells) * (sum(cells) / len(cells) - mean) ** 2 for cells in by_shift.values())
    total = sum((cell - mean) ** 2 for cells in by_shift.values() for cell in cells)
    assert shares["shift"].item() == pytest.approx(explained / total)
    assert shares["place"].item() == pytest.approx(1 - explained / total)


def test_variance_shares_sum_to_one():
    torch.manual_seed(0)
    probs = torch.randn(4, 3, PIXELS, PIXELS, dtype=torch.float64).softmax(-1)
    assert torch.stack(list(variance_shares(probs, H, W).values())).sum(0).tolist() == pytest.approx([1] * 3)


def test_radii_of_a_cross_shaped_head():
    central = torch.zeros(1, H, W, dtype=torch.float64)
    central[0, H // 2, W // 2] = 0.6
    central[0, H // 2, W // 2 + 1] = central[0, H // 2, W // 2 - 1] = 0.1
    central[0, H // 2 + 2, W // 2] = central[0, H // 2 - 2, W // 2] = 0.1
    around = torch.zeros(1, 2, dtype=torch.float64)
    assert [radius(central, around, share).item() for share in (0.5, 0.8, 0.9, 1.0)] == [0, 1, 2, 2]


def test_joint_residual_is_the_share_of_taps_that_the_heads_miss():
    heads = [looking_at(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    assert joint_residual(torch.cat(heads, dim=1), H, W) == pytest.approx(0, abs=1e-12)
    assert joint_residual(torch.cat(heads[1:], dim=1), H, W) == pytest.approx(1 / 9)
    assert joint_residual(torch.cat(heads[4:5] * 9, dim=1), H, W) == pytest.approx(8 / 9), "all alike: one tap"
    nearly = torch.cat([heads[4], 0.99 * heads[4] + 0.01 * heads[5]], dim=1)
    assert joint_residual(nearly, H, W) == pytest.approx(7 / 9), "almost alike: still two taps"
    assert joint_residual(EVEN, H, W) == pytest.approx(1 - 1 / PIXELS)


@pytest.mark.parametrize("kernel", [2, 0, -3])
def test_kernels_without_a_center_are_refused(kernel):
    probs, maps = torch.full((1, 1, 36, 36), 1 / 36), torch.randn(4, 6, 6, 2)
    for compute in (lambda: joint_residual(probs, 6, 6, kernel), lambda: convolution_shares(maps, maps, [3, kernel])):
        with pytest.raises(ValueError, match=f"kernels have odd sizes, not {kernel}"):
            compute()


def test_heads_that_swap_taps_between_pixels_cannot_compute_a_convolution():
    """At each pixel, the heads span the nine taps, but all pixels share the values, so only a ninth is reached."""
    torch.manual_seed(0)
    side = 24
    shifts = grid_shifts(side, side)
    heads = torch.zeros(9, side * side, side * side, dtype=torch.float64)
    for query in range(side * side):
        keys = (shifts[query].abs().amax(-1) <= 1).nonzero().squeeze(1)
        heads[torch.randperm(9)[: len(keys)], query, keys] = 1
    assert joint_residual(heads[None], side, side) == pytest.approx(8 / 9, abs=0.03)
    images = torch.cat([torch.cat([looking_at(*shift) for shift in order], dim=1) for order in (TAPS, TAPS[::-1])])
    assert joint_residual(images, H, W) == pytest.approx(4 / 9), "and so are heads that change places with the image"


TAPS = list(itertools.product((-1, 0, 1), repeat=2))


def test_linearly_independent_soft_heads_span_a_convolution():
    """The generalized lemma: nine linearly independent mixtures of the nine taps span them as well."""
    torch.manual_seed(0)
    taps = torch.cat([looking_at(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)], dim=1)
    mixture = torch.rand(9, 9, dtype=torch.float64).softmax(-1)
    mixed = torch.einsum("mn,bnqk->bmqk", mixture + torch.eye(9), taps) / 2
    assert joint_residual(mixed, H, W) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="does not fit into a 6x5 map"):
        joint_residual(mixed, H, W, kernel=7)


def test_3x3_convolution_is_fully_explained_by_kernels_of_at_least_3x3():
    torch.manual_seed(0)
    x = torch.randn(80, H, W, 3)
    planted = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        y = planted(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        energy = planted.weight.square().sum(dim=(0, 1))
    single, *larger = (share for share, _ in convolution_shares(x, y, (1, 3, 5, 7)))
    assert larger == pytest.approx([1, 1, 1], abs=1e-3)
    assert convolution_shares(x, y, (3,))[0][0] == pytest.approx(1, abs=1e-4), "and a kernel alone"
    # With independent pixels, a 1 x 1 kernel explains the center tap's share of the energy inside the map.
    inside = torch.tensor([[(H - abs(i)) * (W - abs(j)) / PIXELS for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    assert single == pytest.approx((energy[1, 1] / (energy * inside).sum()).item(), abs=0.05)
    assert convolution_shares(x, y, (1,))[0][0] == pytest.approx(single, abs=1e-5)


def test_shares_are_unbiased_when_the_fit_has_many_weights():
    """The noise is as strong as the convolution, so the true share is 0.5. Neither half's error alone gives it."""
    torch.manual_seed(0)
    found = []
    for _ in range(6):
        x = torch.randn(60, H, W, 5)
        y = nn.functional.conv2d(x.permute(0, 3, 1, 2), torch.randn(4, 5, 3, 3), padding=1).permute(0, 2, 3, 1)
        y = y + y.std() * torch.randn_like(y)
        ((share, ratio),) = convolution_shares(x, y, (7,))
        assert ratio == pytest.approx((49 * 5 + 1) / (30 * PIXELS))
        found.append(share)
    assert ratio > 0.25
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.025)


def test_output_independent_of_the_input_is_not_explained():
    torch.manual_seed(0)
    x, y = torch.randn(80, H, W, 5), torch.randn(80, H, W, 3)
    assert convolution_shares(x, y, (3,))[0][0] == pytest.approx(0, abs=0.02)
    with pytest.raises(ValueError, match="two or more images"):
        convolution_shares(x[:1], y[:1])
    assert convolution_shares(x[:8], y[:8], (7,))[0][0] is None, "more weights than half the pixels"


@pytest.mark.parametrize(("scale", "shift"), [(1e4, 0), (1e-4, 0), (1, 1e2)])
def test_shares_are_invariant_to_scale_and_offset(scale, shift):
    torch.manual_seed(0)
    x = torch.randn(40, H, W, 3).double() * torch.tensor([1.0, scale, 1.0]) + shift
    y = nn.functional.conv2d(x.permute(0, 3, 1, 2), torch.randn(2, 3, 3, 3).double(), padding=1).permute(0, 2, 3, 1)
    for factor in (1, 1e4, 1e-4):
        assert convolution_shares(factor * x, y / factor, (3,))[0][0] == pytest.approx(1, abs=1e-3)


def test_a_constant_output_has_no_share():
    x = torch.randn(10, H, W, 1)
    assert [share for share, _ in convolution_shares(x, torch.full_like(x, 0.1), (1, 3))] == [None, None]


def test_calibration_matches_known_values():
    rows = {(row["attention"], row["inputs"]): row for row in calibration(8, 8)}
    hard, one = (rows[f"{number} hard head{end}", "independent"] for number, end in (("nine", "s"), ("one", "")))
    assert hard["by_shift"] == pytest.approx(0.857, abs=1e-3)
    assert (hard["one_pixel"], hard["spread"], hard["joint_residual"]) == pytest.approx((1, 0, 0), abs=1e-9)
    assert 0.8 < hard["conv3"] < rows["nine hard heads", "smooth"]["conv3"] < 0.95
    assert one["joint_residual"] == pytest.approx(8 / 9)
    assert rows["even", "smooth"]["joint_residual"] == pytest.approx(1 - 1 / 64)
    assert rows["random", "independent"]["joint_residual"] > 0.95


def test_linearly_dependent_channels_do_not_break_the_fit():
    """As after a layer norm. The oracle is least squares by SVD; a fit in float32 would be meaningless."""
    config = compose(["data=digits", "scale=mini", "scale.patch=1", "scale.layers=2", "scale.width=16"])
    data = load_dataset(config.data, torch.device("cpu"))
    images, _ = next(data.test.batches(300))
    x, y = mixer_traffic(build_untrained(config, data), images)[1]
    features = nn.functional.unfold(x.double().permute(0, 3, 1, 2), 3, padding=1).transpose(1, 2)
    features = nn.functional.pad(features, (0, 1), value=1.0)
    weight = torch.linalg.lstsq(features[:150].flatten(0, 1), y[:150].double().flatten(0, 2), driver="gelsd").solution
    wanted = y[150:].double().flatten(0, 2)
    errors = (features[150:].flatten(0, 1) @ weight - wanted).square().sum()
    expected = 1 - errors / (wanted - wanted.mean(dim=0)).square().sum()
    assert expected > 0.97
    assert convolution_shares(x, y, (3,))[0][0] == pytest.approx(expected.item(), abs=5e-3)


def test_radius_is_a_euclidean_distance():
    even = torch.full((1, 3, 3), 1 / 9)
    for share, expected in ((0.1, 0), (0.5, 1), (0.6, math.sqrt(2)), (1, math.sqrt(2))):
        assert radius(even, torch.zeros(1, 2), share).item() == pytest.approx(expected)
    assert radius(even, torch.tensor([[1.0, 1.0]]), 1).item() == pytest.approx(math.sqrt(8))


def test_head_statistics_match_a_loop_over_pixels():
    probs = torch.rand(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probs /= probs.sum(dim=(1, 2), keepdim=True)
    means, covariances = head_statistics(probs)
    for head in range(2):
        mean, second = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
        for row, column in itertools.product(range(4), range(5)):
            shift = torch.tensor([row - 2, column - 2], dtype=torch.float64)
            mean += probs[head, row, column] * shift
            second += probs[head, row, column] * torch.outer(shift, shift)
        torch.testing.assert_close(means[head], mean)
        torch.testing.assert_close(covariances[head], second - torch.outer(mean, mean))


def test_content_share_matches_a_loop_over_images():
    probs = torch.rand(5, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = variance_shares(probs, 3, 3)
    for head in range(2):
        one = probs[:, head]
        within = sum((image - one.mean(dim=0)).square().mean().item() for image in one) / 5
        assert shares["content"][head].item() == pytest.approx(within / one.var(correction=0).item())
    torch.testing.assert_close(sum(shares.values()), torch.ones(2, dtype=torch.float64))


def test_head_numbers_are_means_over_images_and_queries():
    random = torch.randn(4, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probs = (3 * random).softmax(-1)
    numbers = head_numbers(probs, 3, 3)
    for head, one in enumerate(probs.unbind(1)):
        rows = one.flatten(0, 1).tolist()
        assert numbers["one_pixel"][head] == pytest.approx(sum(map(max, rows)) / 36)
        assert numbers["entropy"][head] == pytest.approx(-sum(p * math.log(p) for row in rows for p in row) / 36)
        above, _, below = one[:, 4].mean(dim=0).view(3, 3).sum(dim=1).tolist()
        assert numbers["center_row"][head] == pytest.approx(below - above)


def test_spread_is_per_axis_and_radii_hold_their_shares():
    central, row, column = torch.zeros(H, W, dtype=torch.float64), H // 2, W // 2
    central[row, column] = 0.6
    for down, right in ((-2, 0), (2, 0), (0, -2), (0, 2)):
        central[row + down, column + right] = 0.1
    numbers = only(head_numbers(central.flatten().expand(1, 1, PIXELS, PIXELS), H, W))
    assert numbers["spread"] == pytest.approx(math.sqrt(0.2 * 4))  # a fifth is two pixels away on each axis
    assert (numbers["radius_50"], numbers["radius_90"]) == (0, 2)
