"""Augmentation on the device equals a loop over images and depends only on (seed, epoch)."""

import numpy as np
import pytest
import torch

from attnconv.data.augmentation import EPOCH_STREAM, PLACE_BITS, crop_and_flip, normalize, pad, plan_epoch
from attnconv.errors import DataError

CPU = torch.device("cpu")


def images(count=11, height=6, width=5):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8))


def test_crop_and_flip_equal_a_loop_over_images():
    data = images()
    plan = plan_epoch(11, seed=1, epoch=2, crop_padding=2, flip=True, device=CPU)
    fast = crop_and_flip(pad(data, 2), plan[3:9], 6, 5)
    for position in range(3, 9):
        source = np.pad(data[plan.order[position]].numpy(), ((2, 2), (2, 2), (0, 0)))
        top, left = int(plan.tops[position]), int(plan.lefts[position])
        slow = source[top : top + 6, left : left + 5]
        if plan.flips[position]:
            slow = slow[:, ::-1]
        assert np.array_equal(fast[position - 3].numpy(), slow)


def test_smaller_crops_are_windows_of_the_larger_crops():
    data = images(height=8, width=7)
    plan = plan_epoch(11, seed=1, epoch=2, crop_padding=2, flip=True, device=CPU)
    whole = crop_and_flip(pad(data, 2), plan, 8, 7)
    smaller = crop_and_flip(pad(data, 2), plan[3:9], 8, 7, size=(5, 4))
    assert smaller.shape == (6, 5, 4, 3)
    for position in range(3, 9):
        down, right = (int(place[position]) / 2**PLACE_BITS for place in (plan.downs, plan.rights))
        top, left = int(down * 4), int(right * 4)
        left = 3 - left if plan.flips[position] else left  # for a mirrored image, the offset counts from the right
        assert torch.equal(smaller[position - 3], whole[position, top : top + 5, left : left + 4])


def test_offsets_of_smaller_crops_are_drawn_last():
    """So epochs without smaller crops still equal those of older versions."""
    plan, draw = plan_epoch(30, 5, 2, 4, True, CPU), np.random.default_rng([EPOCH_STREAM, 5, 2])
    assert plan.order.tolist() == draw.permutation(30).tolist()
    assert torch.stack([plan.tops, plan.lefts]).tolist() == draw.integers(0, 9, size=(2, 30)).tolist()
    assert plan.flips.tolist() == (draw.random(30) < 0.5).tolist()


def test_smaller_crops_are_uniform_over_all_offsets():
    data = torch.arange(8 * 7, dtype=torch.uint8).view(1, 8, 7, 1).expand(6000, -1, -1, -1)
    plan = plan_epoch(6000, seed=0, epoch=0, crop_padding=0, flip=False, device=CPU)
    corners = crop_and_flip(data, plan, 8, 7, size=(6, 5))[:, 0, 0, 0]
    counts = torch.bincount(corners.int(), minlength=56).view(8, 7)
    assert int(counts.sum()) == int(counts[:3, :3].sum())
    assert ((counts[:3, :3] - 6000 / 9).abs() < 5 * (6000 / 9) ** 0.5).all()


def test_reflect_padding_matches_numpy():
    data = images()
    for padding in (0, 1, 4):
        expected = np.pad(data.numpy(), ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
        assert np.array_equal(pad(data, padding, "reflect").numpy(), expected)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crops_cannot_miss_the_image(mode):
    with pytest.raises(DataError, match=r"data\.crop_padding=5 must be smaller than the images, which have 6x5 pixels"):
        pad(torch.zeros(1, 6, 5, 3, dtype=torch.uint8), 5, mode)


def test_an_epoch_shows_every_image_once_and_draws_every_offset():
    plan = plan_epoch(2000, seed=0, epoch=0, crop_padding=4, flip=True, device=CPU)
    assert sorted(plan.order.tolist()) == list(range(2000))
    assert set(plan.tops.tolist()) == set(plan.lefts.tolist()) == set(range(9))
    assert 900 < int(plan.flips.sum()) < 1100


def test_longer_epoch_is_full_passes_plus_a_partial_pass():
    plan = plan_epoch(20, 0, 0, 4, True, CPU, shown=50)
    first, second, rest = plan.order[:20].tolist(), plan.order[20:40].tolist(), plan.order[40:].tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert len(set(rest)) == 10
    assert len(plan.tops) == len(plan.lefts) == len(plan.flips) == 50


def test_random_draws_depend_only_on_seed_and_epoch():
    first = plan_epoch(50, 0, 1, 4, True, CPU)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002  the legacy global state must not matter
    for name in ("order", "tops", "lefts", "flips", "downs", "rights"):
        assert torch.equal(getattr(first, name), getattr(plan_epoch(50, 0, 1, 4, True, CPU), name))
        assert not torch.equal(getattr(first, name), getattr(plan_epoch(50, 1, 1, 4, True, CPU), name))
        assert not torch.equal(getattr(first, name), getattr(plan_epoch(50, 0, 2, 4, True, CPU), name))


def test_images_are_unchanged_without_augmentation():
    data = images()
    plan = plan_epoch(11, 0, 0, 0, False, CPU)
    assert torch.equal(crop_and_flip(pad(data, 0), plan, 6, 5), data[plan.order])


def test_normalize_matches_the_formula_and_is_channels_last():
    data = images()
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    out = normalize(data, mean, std)
    assert out.shape == (11, 3, 6, 5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = (data.double() / 255 - mean.double()) / std.double()
    torch.testing.assert_close(out.permute(0, 2, 3, 1).double(), expected, rtol=0, atol=1e-5)


def test_alternating_flips_mirror_every_image_every_other_pass():
    plans = [plan_epoch(200, 3, epoch, 0, True, CPU, shown=300, alternating=True) for epoch in range(4)]
    mirrored = torch.full((200, 8), -1)  # 1.5 passes per epoch: the second pass is partial
    for epoch, plan in enumerate(plans):
        for place, (image, flip) in enumerate(zip(plan.order.tolist(), plan.flips.tolist(), strict=True)):
            mirrored[image, 2 * epoch + place // 200] = flip
    first = mirrored[:, 0]
    assert 70 < int(first.sum()) < 130
    for number in range(8):
        shown = mirrored[:, number] >= 0
        assert torch.equal(mirrored[shown, number], first[shown] ^ (number % 2))
    plain = plan_epoch(200, 3, 0, 0, True, CPU, shown=300)
    assert torch.equal(plain.order, plans[0].order), "orders and crops do not depend on it"
    assert not plan_epoch(200, 3, 1, 0, False, CPU, alternating=True).flips.any()
