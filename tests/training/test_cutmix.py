"""CutMix: mixed images and labels, their dependence on seed and step alone, and the accuracy of such a run."""

import itertools
import json

import pytest
import torch
from torchvision.transforms import v2

from attnconv.models.process_state import seed_of
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.training.loop import CUTMIX_STREAM, cutmix
from attnconv.training.metrics import Tally

IMAGES = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16).contiguous()
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def mixed(seed=0, step=0):
    return cutmix(1.0, 4, seed)(IMAGES, LABELS, step)


def test_box_comes_from_another_image_and_labels_are_mixed_by_area():
    for step in range(20):
        images, targets = mixed(step=step)
        own = images == IMAGES
        for place in range(6):
            partner = (place - 1) % 6
            assert set(images[place].unique().tolist()) <= {float(place), float(partner)}
            rows, columns = (~own[place, 0]).nonzero(as_tuple=True)
            if len(rows):
                assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1), "a box"
            expected = torch.zeros(4)
            expected[LABELS[place]] += own[place, 0].float().mean()
            expected[LABELS[partner]] += 1 - own[place, 0].float().mean()
            torch.testing.assert_close(targets[place], expected)


def test_mixing_depends_only_on_seed_and_step():
    torch.manual_seed(1)
    first = mixed(seed=3, step=7)
    torch.manual_seed(2)
    for one, other in zip(first, mixed(seed=3, step=7), strict=True):
        assert torch.equal(one, other)
    shares = {mixed(seed, step)[1][0, 0].item() for seed, step in itertools.product(range(3), range(3))}
    assert len(shares) > 3


def test_accuracy_is_the_target_probability_of_the_predicted_class():
    tally = Tally.on(torch.device("cpu"))
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    tally.add(torch.tensor(1.0), logits, torch.tensor([[0.75, 0.25, 0.0], [0.6, 0.0, 0.4]]))
    assert tally.score().accuracy == pytest.approx((0.75 + 0.4) / 2)


def test_interrupted_run_resumes_to_identical_files(tiny, interrupted_at_step):
    overrides = ["model=sa_quadratic", "recipe.cutmix=1", "recipe.batch_size=16", "epochs=3"]
    calm, config = tiny(*overrides, "name=calm"), tiny(*overrides, "checkpoint_steps=1")
    run(calm)
    interrupted_at_step(config, step=5)
    run(config)
    for file in ("metrics.jsonl", "weights.safetensors", "predictions.npy", "heads.jsonl"):
        assert (run_folder_path(config) / file).read_bytes() == (run_folder_path(calm) / file).read_bytes(), file


def test_cutmix_changes_training_but_not_test_scoring(tiny):
    plain, with_it = (tiny(f"recipe.cutmix={alpha}", f"name=alpha{alpha}") for alpha in (0, 1))
    for config in (plain, with_it):
        run(config)
    first, second = (
        json.loads((run_folder_path(config) / "metrics.jsonl").read_text().splitlines()[-1])
        for config in (plain, with_it)
    )
    assert first["train/loss"] != second["train/loss"]
    assert 0 <= second["train/acc"] <= 1
    assert (20 * second["test/acc"]) % 1 == pytest.approx(0), "of 20 test images, each right or wrong"


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_boxes_are_those_of_torchvision_for_this_alpha(alpha):
    torch.manual_seed(seed_of(CUTMIX_STREAM, 3, 7, rank=0))
    expected = v2.CutMix(alpha=alpha, num_classes=4)(IMAGES, LABELS)
    assert all(map(torch.equal, cutmix(alpha, 4, 3)(IMAGES, LABELS, 7), expected))
