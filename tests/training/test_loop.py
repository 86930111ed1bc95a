"""Every step and epoch of a run, as seen by the network: images, dropout, learning rate, and scores."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from torch import nn

import attnconv
from attnconv.data.augmentation import plan_epoch
from attnconv.data.dataset import load_dataset
from attnconv.run import run
from attnconv.runs.folder import RunFolder
from attnconv.training.loop import cutmix
from attnconv.training.metrics import Tally
from attnconv.training.optimizers import lr_factor
from attnconv.training.rehearsal import FEW

STEPS = 3  # an epoch of 40 images in batches of 16


class Witness(nn.Module):
    """A network that records its inputs, and may be interrupted at one of its steps."""

    steps: list[dict]
    modes: list[bool]
    stop_at: int | None

    @classmethod
    def start(cls, stop_at=None):
        cls.steps, cls.modes, cls.stop_at = [], [], stop_at

    def __init__(self, image_shape, classes):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))
        self.dropout = nn.Dropout(0.5)
        self.bias.register_hook(self.keep)

    def keep(self, gradient):
        if self.steps:
            self.steps[-1]["gradient"] = gradient.clone()

    def forward(self, images):
        if len(images) <= FEW or images.is_meta:  # a check before training
            return self.bias + torch.zeros(len(images), 1, device=images.device)
        self.modes.append(self.training)
        if self.training:
            if len(self.steps) == self.stop_at:
                raise KeyboardInterrupt
            mask = self.dropout(torch.ones(100))
            drawn = torch.tensor([np.random.rand(), random.random()])  # noqa: NPY002
            bias = self.bias.detach().clone()
            self.steps.append({"images": images.clone(), "mask": mask, "drawn": drawn, "bias": bias})
        return self.bias + torch.zeros(len(images), 1, device=images.device)


class Declining(nn.Module):
    """A network that predicts class 0 in epoch 1, and class 1 from then on."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        self.steps += self.training
        first = self.bias[0] + 9 * (self.steps <= STEPS)
        return torch.cat([first[None], self.bias[1:2] + 3, self.bias[2:]]).expand(len(images), -1)


class Noisy(nn.Module):
    """A network that draws random numbers in evaluation, too."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.last = nn.Linear(image_shape[0], classes)

    def forward(self, images):
        noise = torch.rand(1) + np.random.rand() + random.random()  # noqa: NPY002
        return self.last(images.mean((2, 3))) + noise * torch.arange(4)


def of(network, config):
    config.model = {"name": network.__name__.lower(), "_target_": f"{__name__}.{network.__name__}"}
    return config


@pytest.fixture
def witnessed(tiny):
    """Return a function: overrides -> a configuration with a Witness network, trained by plain SGD."""
    plain = ("recipe.optimizer=sgd", "recipe.momentum=0", "recipe.weight_decay=0", "precision=fp32", "data.flip=true")
    return lambda *overrides: of(Witness, tiny("recipe=modern", *plain, *overrides))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_each_step_uses_the_scheduled_learning_rate(witnessed, schedule):
    config = witnessed(f"recipe.schedule={schedule}", "recipe.warmup=0.2", "epochs=4")
    Witness.start()
    run(config)
    factor = lr_factor(config.recipe, 4, 40)
    expected = [config.recipe.lr * factor(step) for step in range(4 * STEPS)]
    assert len(set(expected)) > 2 * 4, "it changes within an epoch"
    assert len(Witness.steps) == len(expected)
    for (step, following), lr in zip(itertools.pairwise(Witness.steps), expected, strict=False):
        torch.testing.assert_close(step["bias"] - following["bias"], lr * step["gradient"], rtol=1e-3, atol=1e-7)


def test_dropout_masks_depend_on_seed_and_step(witnessed):
    masks = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Witness.start()
        run(witnessed(f"name={name}", f"seed={seed}"))
        masks[name] = [step["mask"] for step in Witness.steps]
    assert all(map(torch.equal, masks["a"], masks["b"]))
    several = [*masks["a"], *masks["c"]]
    assert len(several) == 2 * 2 * STEPS
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(several, 2))


def test_training_uses_train_mode_and_evaluations_use_eval_mode(witnessed):
    Witness.start()
    run(witnessed("data.holdout=0.4", "eval_batch_size=10"))  # 24 training, 16 validation and 20 test images
    training, one, last = [True] * 2, [False] * 2, [False] * 4
    assert Witness.modes == training + one + training + last + [False] * (len(Witness.modes) - 10)


@pytest.fixture(scope="module")
def calm_steps():
    """The steps of an uninterrupted run, once a test has filled them in."""
    return []


@pytest.mark.parametrize("stop_at", range(2 * STEPS))
def test_resumed_run_repeats_the_steps_of_an_uninterrupted_run(witnessed, calm_steps, stop_at):
    if not calm_steps:
        Witness.start()
        run(witnessed("name=calm"))
        calm_steps += Witness.steps
    Witness.start(stop_at)
    config = witnessed("checkpoint_steps=1")
    with pytest.raises(KeyboardInterrupt):
        run(config)
    before = Witness.steps
    Witness.start()
    run(config)
    together = before + Witness.steps
    assert len(together) == len(calm_steps) == 2 * STEPS
    for one, other in zip(together, calm_steps, strict=True):
        for part in ("images", "mask", "drawn", "bias"):
            assert torch.equal(one[part], other[part]), part


def test_draws_in_evaluations_are_those_of_an_uninterrupted_run(tiny, interrupted):
    calm, stopped = (of(Noisy, tiny(f"name={name}", "precision=fp32")) for name in ("calm", "stopped"))
    run(calm)
    interrupted(stopped)
    run(stopped)
    one, other = (RunFolder(config).path for config in (calm, stopped))
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    network = attnconv.load(one, trusted=[__name__])
    before = torch.get_rng_state()
    losses = [network.evaluate().loss for _ in range(2)]
    recorded = json.loads((one / "metrics.jsonl").read_text().splitlines()[-1])["test/loss"]
    assert losses == [pytest.approx(recorded, abs=1e-6)] * 2
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_leave_the_generators_of_other_code_as_they_were(witnessed, monkeypatch):
    """Dashboards draw the names of files from Python's generator."""
    states, add = set(), Tally.add

    def add_and_look(*arguments):
        states.add((random.getstate(), np.random.get_state()[1].tobytes()))  # noqa: NPY002
        add(*arguments)

    monkeypatch.setattr(Tally, "add", add_and_look)
    Witness.start()
    run(witnessed())
    assert len(states) == 1


def test_result_is_from_the_last_epoch_and_validation_is_separate_from_test(tiny, arrays):
    """15 test images have class 0 and 5 class 1; half of the training and validation images have each."""
    np.save(arrays / "train_labels.npy", np.arange(40) % 2)
    np.save(arrays / "test_labels.npy", np.array([0] * 15 + [1] * 5))
    plain = of(Declining, tiny("recipe.optimizer=sgd", "recipe.lr=1e-9"))
    result = run(plain)
    lines = [json.loads(line) for line in (RunFolder(plain).path / "metrics.jsonl").read_text().splitlines()]
    assert [line["test/acc"] for line in lines] == [0.75, 0.25]
    assert result["test_acc"] == 0.25
    assert np.load(RunFolder(plain).path / "predictions.npy").tolist() == [1] * 20

    held = of(Declining, tiny("recipe.optimizer=sgd", "recipe.lr=1e-9", "data.holdout=0.2", "name=held"))
    result = run(held)
    lines = [json.loads(line) for line in (RunFolder(held).path / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/acc"] for line in lines] == [0.5, 0.5]
    assert (result["val_acc"], result["test_acc"]) == (0.5, lines[-1]["test/acc"])
    assert lines[-1]["test/acc"] == 0.25


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_mean_cross_entropy_of_smoothed_labels(witnessed, smoothing):
    Witness.start()
    config = witnessed(f"recipe.label_smoothing={smoothing}", "recipe.lr=1.0", "recipe.warmup=0", "epochs=1")
    run(config)
    for step, (_, labels) in zip(Witness.steps, augmented_batches(config, 0), strict=True):
        probabilities = step["bias"].softmax(0)
        frequencies = (probabilities - step["gradient"]) / (1 - smoothing) - smoothing / 4 / (1 - smoothing)
        counts = len(step["images"]) * frequencies
        torch.testing.assert_close(counts, labels.bincount(minlength=4).float(), rtol=0, atol=1e-4)


def augmented_batches(config, epoch):
    """Yield the images and labels of the steps of an epoch (from 0), computed apart from a run."""
    data, cpu = load_dataset(config.data, torch.device("cpu")), torch.device("cpu")
    padding, flip, alternating = config.data.crop_padding, config.data.flip, config.data.alternating_flip
    plan = plan_epoch(40, config.seed, epoch, padding, flip, cpu, shown=40, alternating=alternating)
    for start in range(0, 40, 16):
        yield data.train.augmented(plan[start : start + 16])


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("flip", [["data.flip=false"], ["data.alternating_flip=true"], []])
def test_every_epoch_shows_the_images_of_its_plan(witnessed, seed, flip):
    config = witnessed(f"seed={seed}", "data.crop_padding=2", *flip)
    Witness.start()
    run(config)
    expected = [images for epoch in range(2) for images, _ in augmented_batches(config, epoch)]
    for step, images in zip(Witness.steps, expected, strict=True):
        torch.testing.assert_close(step["images"], images)


@pytest.mark.parametrize("seed", [0, 1])
def test_cutmix_of_a_run_depends_on_its_seed(witnessed, seed):
    config = witnessed("recipe.cutmix=1", f"seed={seed}")
    Witness.start()
    run(config)
    expected, _ = cutmix(1.0, 4, seed)(*next(augmented_batches(config, 0)), 0)
    torch.testing.assert_close(Witness.steps[0]["images"], expected)


def metrics_of(config):
    return [json.loads(line) for line in (RunFolder(config).path / "metrics.jsonl").read_text().splitlines()]


def test_the_recorded_rate_is_that_of_the_first_step_of_its_epoch(witnessed):
    config = witnessed("epochs=4")
    Witness.start()
    run(config)
    factor = lr_factor(config.recipe, 4, 40)
    rates = [config.recipe.lr * factor(STEPS * epoch) for epoch in range(4)]
    assert len(set(rates)) == 4
    assert [line["train/lr"] for line in metrics_of(config)] == rates


def test_the_recorded_training_loss_is_the_mean_over_images(witnessed):
    config = witnessed("recipe.label_smoothing=0", "recipe.lr=1.0", "recipe.warmup=0", "epochs=1")
    Witness.start()
    run(config)
    total = 0.0
    for step, (_, labels) in zip(Witness.steps, augmented_batches(config, 0), strict=True):
        logits = step["bias"].expand(len(labels), -1)
        total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    assert metrics_of(config)[0]["train/loss"] == pytest.approx(total / 40)


def test_smaller_training_images_keep_their_proportions(witnessed, arrays):
    for split in ("train", "test"):
        images = np.load(arrays / f"{split}_images.npy")
        np.save(arrays / f"{split}_images.npy", np.concatenate([images, images[:, :, :4]], axis=2))
    Witness.start()
    run(witnessed("recipe.sizes=[0.5,1]"))
    shapes = [tuple(step["images"].shape[2:]) for step in Witness.steps]
    assert shapes == [(4, 6)] * STEPS + [(8, 12)] * STEPS
