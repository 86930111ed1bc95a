"""Runs that need more memory or images than there are fail early."""

from contextlib import nullcontext

import pytest

from attnconv.errors import ConfigError, OutOfMemory
from attnconv.models.cost import activation_bytes, build_filled
from attnconv.training.setup import prepare
from conftest import compose, write_arrays


def test_an_explicit_batch_size_above_the_number_of_images_is_refused(refused):
    assert "more than the 40 training images of an epoch; set recipe.batch_size=40 or less" in refused(
        "recipe.batch_size=100000"
    )


def test_a_composed_batch_size_above_the_number_of_images_prints_a_note(tiny, capsys):
    with prepare(tiny("recipe.batch_size=128")).claimed():
        pass
    assert "note: recipe.batch_size=128 is more than the 40 training images of an epoch" in capsys.readouterr().err


def test_a_last_batch_of_one_image_is_refused_with_batch_norm(tiny):
    config = tiny("model=resnet10", "recipe.batch_size=39")  # the last stage reduces 8 x 8 pixels to one
    with pytest.raises(
        ConfigError, match=r"last batch has one image \(40 images, .*=39\).*; recipe.batch_size=38 avoids that"
    ):
        prepare(config)
    prepare(tiny("model=resnet10", "recipe.batch_size=38"))
    prepare(tiny("model=sa_quadratic", "recipe.batch_size=39"))
    with pytest.raises(ConfigError, match=r"recipe.batch_size=2 avoids that"):
        prepare(tiny("model=resnet10", "recipe.batch_size=1"))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            "scale.width=1000000",
            r"parameters, which need .* GiB of memory, and this machine has .*scale.width \(now 1000000\)",
        ),
        ("model=resnet18 scale.cnn_width=1000000", r"lower scale.cnn_width \(now 1000000\)"),
        (
            "data=pairs data.train_images=1000000000",
            r"lower data.train_images \(now 1000000000\), data.test_images \(now 2000\)",
        ),
    ],
)
def test_models_and_data_too_large_for_memory_are_refused(tiny, overrides, complaint):
    with pytest.raises(OutOfMemory, match=complaint):
        prepare(tiny(*overrides.split()))


def test_padding_too_large_for_memory_is_refused(tiny, tmp_path):
    write_arrays(tmp_path / "arrays", train=2000)
    with pytest.raises(OutOfMemory, match=r"padded images need .*lower data.crop_padding \(now 4096\)"):
        prepare(tiny("data.crop_padding=4096"))


def test_a_batch_whose_activations_exceed_the_memory_is_refused(tiny, tmp_path, monkeypatch):
    write_arrays(tmp_path / "arrays", train=2000, side=32)
    large = ["model=sa_quadratic", "recipe.batch_size=2000", "scale.layers=6", "scale.width=64", "scale.hidden=256"]
    needed = 2000 * activation_bytes(build_filled(compose(["scale=mini"]).model, (3, 32, 32), 4), (3, 32, 32))
    for spare, refused in ((1, False), (-1, True)):
        monkeypatch.setattr("attnconv.errors.physical_memory", lambda spare=spare: needed + spare)
        expected = pytest.raises(
            OutOfMemory, match=r"a batch of 2,000 images need .*lower recipe.batch_size \(now 2000\)"
        )
        with expected if refused else nullcontext():
            prepare(tiny(*large, "scale.heads=9"))
