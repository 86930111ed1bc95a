"""Additions of the speedrun recipe: whitening, growing image sizes, and warm-up."""

import copy
import sys
from dataclasses import replace

import pytest
import torch

from attnconv.data.augmentation import ImageSize, image_size, pad, plan_epoch, scale
from attnconv.data.dataset import load_dataset
from attnconv.errors import ConfigError, DataError
from attnconv.models.backbone import space_to_depth
from attnconv.models.build import build_model
from attnconv.run import run
from attnconv.runs.folder import RunFolder
from attnconv.training.distributed import Processes
from attnconv.training.setup import prepare
from attnconv.training.whitening import FLOOR, whiten_stem
from conftest import TINY_SCALE, compose

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def digits(model="sa_quadratic", *overrides):
    config = compose([*TINY_SCALE, "data=digits", f"model={model}", *overrides])
    data = load_dataset(config.data, CPU)
    return build_model(config.model, data.image_shape, data.classes), data, config


def test_a_whitened_stem_gives_white_features():
    model, data, _ = digits("sa_quadratic", "scale.patch=2", "scale.width=4")
    with torch.no_grad():
        model.stem.weight.copy_(torch.eye(4))
    raw = copy.deepcopy(model.stem)
    whiten_stem(model, data.train)
    images, _ = next(data.train.batches(5000))
    patches = space_to_depth(images.permute(0, 2, 3, 1), model.patch).flatten(0, 2)
    features = model.stem(patches).detach().double()
    values, vectors = torch.linalg.eigh(torch.cov(raw(patches).detach().double().T))
    expected = vectors @ torch.diag(values / (values + FLOOR)) @ vectors.T  # the identity, except for the floor
    assert torch.allclose(torch.cov(features.T), expected, atol=1e-4)
    assert torch.allclose(expected, torch.eye(4, dtype=torch.double), atol=0.02)
    assert torch.allclose(features.mean(dim=0), model.stem.bias.new_zeros(4).double() + raw.bias.detach(), atol=1e-4)


def test_whitening_uses_images_from_the_whole_split(monkeypatch):
    model, data, _ = digits("sa_quadratic", "scale.patch=2", "scale.width=4")
    with torch.no_grad():
        model.stem.weight.copy_(torch.eye(4))
    dark_first = data.train.images.float().mean(dim=(1, 2, 3)).argsort()
    split = replace(data.train, images=data.train.images[dark_first], labels=data.train.labels[dark_first])
    monkeypatch.setattr("attnconv.training.whitening.IMAGES", 100)
    whiten_stem(model, split)
    images, _ = next(split.batches(5000))
    features = model.stem(space_to_depth(images.permute(0, 2, 3, 1), model.patch).flatten(0, 2)).detach()
    assert torch.allclose(torch.cov(features.T), torch.eye(4), atol=0.1)


def test_whitening_needs_a_linear_stem(tiny):
    with pytest.raises(ConfigError, match=r"model=resnet10: recipe\.whitening needs a network with a linear stem"):
        run(tiny("recipe.whitening=true", "model=resnet10"))


def test_whitening_does_not_replace_a_trained_stem(tiny, tmp_path):
    whole, weights = tiny("model=sa_quadratic_generalized", "epochs=1"), tmp_path / "weights.safetensors"
    run(whole)
    RunFolder(whole).weights.rename(weights)
    pruned = ("model=sa_quadratic_pruned", f"model.start={weights}", "epochs=1", "name=pruned")
    with pytest.raises(ConfigError, match="initializes the stem, and model=sa_quadratic_pruned has a trained one; set"):
        run(tiny(*pruned, "recipe.whitening=true"))
    assert run(tiny(*pruned))["status"] == "done"


def test_training_is_divided_equally_between_image_sizes():
    recipe = compose(["recipe=modern", "recipe.sizes=[0.5,0.75,1]", "recipe.batch_size=10"]).recipe
    size = image_size(recipe, height=32, epochs=2, images=45)  # 5 steps an epoch
    assert [size(step).side for step in range(10)] == [16, 16, 16, 16, 24, 24, 24, 32, 32, 32]
    assert image_size(compose(["recipe=modern"]).recipe, 32, 2, 45)(3) is None
    cropped = compose(["recipe=modern", "recipe.sizes=[0.5,0.75,1]", "recipe.cropped_from=0.75"]).recipe
    assert [image_size(cropped, 32, 1, 300)(step) for step in range(3)] == [
        ImageSize(16), ImageSize(24, cropped=True), ImageSize(32, cropped=True)
    ]  # fmt: skip


FILTER = torch.outer(*[torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8] * 2)


def test_scaling_keeps_the_aspect_ratio_and_antialiases():
    images = torch.rand(2, 3, 8, 12)
    assert scale(images, None) is images
    assert scale(images, 8) is images
    smaller = scale(images, 4)
    assert smaller.shape == (2, 3, 4, 6)
    # Halved with a triangular filter, which is as wide as two pixels of the result.
    filtered = torch.nn.functional.conv2d(images.flatten(0, 1)[:, None], FILTER[None, None], stride=2, padding=1)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(smaller[inside], filtered.reshape(smaller.shape)[inside])
    assert torch.allclose(scale(torch.full((1, 3, 8, 8), 0.3), 4), torch.full((1, 3, 4, 4), 0.3))


def test_images_are_padded_as_configured(tiny):
    for mode in ("constant", "reflect"):
        train = load_dataset(tiny("data.crop_padding=2", f"data.padding_mode={mode}").data, torch.device("cpu")).train
        assert torch.equal(train.padded, pad(train.images, 2, mode))
        assert bool(train.padded[:, 0].any()) == (mode == "reflect")
    config = tiny("data.crop_padding=8", "data.padding_mode=reflect")
    with pytest.raises(DataError, match=r"crop_padding=8 must be smaller than the images, which have 8x8"):
        run(config)
    assert not RunFolder(config).path.exists()


def test_training_images_are_whole_scaled_or_cropped():
    data = load_dataset(compose(["data=digits", "data.crop_padding=1", "data.flip=true"]).data, torch.device("cpu"))
    split, plan = data.train, plan_epoch(len(data.train), 0, 0, 1, True, torch.device("cpu"))
    (whole, labels), (large, _), (scaled, same), (cropped, _) = (
        split.augmented(plan[3:9], size) for size in (None, ImageSize(8), ImageSize(4), ImageSize(4, cropped=True))
    )
    assert torch.equal(whole, large)
    assert torch.equal(labels, same)
    assert torch.equal(scaled, scale(whole, 4))
    assert cropped.shape == scaled.shape == (6, 1, 4, 4)
    for small, big in zip(cropped, whole, strict=True):
        places = [big[:, top : top + 4, left : left + 4] for top in range(5) for left in range(5)]
        assert any(torch.equal(small, place) for place in places)


@pytest.mark.parametrize(
    ("sizes", "model", "complaint"),
    [
        ("[0.75,1]", "sa_quadratic", r"recipe\.sizes=\[0\.75, 1\.0\]: at 0\.75 images of 6x6 pixels do not divide"),
        ("[0.5,1]", "mlp_mixer", r"recipe\.sizes=.*: at 0\.5 "),
        ("[0.01,1]", "sa_quadratic", r"recipe\.sizes=.*: images cannot be 0 pixels high"),
        (
            "[1.5] recipe.cropped_from=1",
            "sa_quadratic",
            r"recipe\.sizes=.*: a crop of height 12 does not fit into height 8; recipe.cropped_from=null",
        ),
    ],
)
def test_unsupported_sizes_are_refused_before_anything_is_written(tiny, sizes, model, complaint):
    config = tiny(*f"recipe.sizes={sizes}".split(), f"model={model}")
    with pytest.raises(ConfigError, match=complaint):
        run(config)
    assert not RunFolder(config).path.exists()


@pytest.mark.parametrize(("model", "sizes"), [("sa_quadratic", "[0.5,1]"), ("resnet10", "[]")])
def test_warm_up_does_not_change_the_results(tiny, model, sizes):
    overrides = (f"model={model}", "recipe=speedrun", "recipe.whitening=false", f"recipe.sizes={sizes}")
    cold, warm = tiny(*overrides, "name=cold"), tiny(*overrides, "name=warm", "warm_up=true")
    assert "warm_up_seconds" not in run(cold)
    assert run(warm)["warm_up_seconds"] > 0
    for file in ("metrics.jsonl", "weights.safetensors"):
        assert (RunFolder(cold).path / file).read_bytes() == (RunFolder(warm).path / file).read_bytes()


def test_warm_up_takes_a_network_that_cannot_be_copied(tiny, monkeypatch):
    warm = tiny("warm_up=true", "epochs=1")
    this = prepare(warm)
    this.model.derived = this.model.stem.weight * 1  # deepcopy refuses a tensor with a history
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(this.model)
    monkeypatch.setattr(sys.modules["attnconv.run"], "prepare", lambda config: this)
    assert run(warm)["warm_up_seconds"] > 0


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
@pytest.mark.parametrize("cropped_from", ["null", "0.5"])
def test_warm_up_covers_every_input_shape_of_a_run(tiny, monkeypatch, cropped_from, share):
    """40 training images in batches of 16 and 20 test images in batches of 15: the last batch of each is smaller."""
    seen = {"cold": [], "warm": []}
    sizes = ("recipe.sizes=[0.5,1]", f"recipe.cropped_from={cropped_from}")
    # Take one process's share of the work, without starting the other processes.
    monkeypatch.setattr(Processes, "share", lambda self, size: slice(share[0], size, share[1]))
    for name, shapes in seen.items():
        config = tiny(*sizes, f"name={name}", "eval_batch_size=15", f"warm_up={name == 'warm'}")
        this = prepare(config)
        this.model.register_forward_pre_hook(
            lambda module, inputs, to=shapes: to.append((module.training, inputs[0].shape, inputs[0].stride()))
        )
        monkeypatch.setattr(sys.modules["attnconv.run"], "prepare", lambda config, this=this: this)
        if name == "warm":
            monkeypatch.setattr("attnconv.training.trainer.train_epoch", lambda *arguments, **options: 1 / 0)
            with pytest.raises(ConfigError, match="division by zero"):
                run(config)
        else:
            run(config)
    assert len(set(seen["cold"])) == 2 * 2 + 2
    assert set(seen["warm"]) == set(seen["cold"])


@pytest.mark.gpu
def test_speedrun_learns_on_a_gpu_with_compilation_and_warm_up(tiny):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = tiny("recipe=speedrun", "recipe.sizes=[0.5,1]", "epochs=8", "recipe.batch_size=15", "warm_up=true")
    config.device, config.compile = "cuda", True
    result = run(config)
    assert result["test_acc"] > 0.5
    assert result["warm_up_seconds"] > 0
