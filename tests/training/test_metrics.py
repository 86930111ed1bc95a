"""Evaluation: when it runs, on which split, and with which augmentation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from attnconv.analysis.heads import attention_mixers, central_query
from attnconv.errors import ConfigError, DataError, Diverged
from attnconv.run import run
from attnconv.runs.folder import RunFolder
from attnconv.runs.load import load
from attnconv.runs.records import read_lines
from attnconv.training.distributed import Processes
from attnconv.training.failures import diverged
from attnconv.training.loop import tta_logits
from attnconv.training.metrics import NOT_FINITE, FiniteGuard, NotFinite, Score, Tally
from conftest import own_predictions, write_arrays


def metrics(config):
    return read_lines(RunFolder(config).path, "metrics.jsonl")


def test_eval_every_skips_epochs_but_never_the_last(tiny):
    config = tiny("epochs=5", "eval_every=2")
    run(config)
    assert [record["epoch"] for record in metrics(config) if "test/acc" in record] == [2, 4, 5]


def test_with_a_holdout_the_test_split_is_evaluated_only_at_the_end(tiny):
    config = tiny("data.holdout=0.2", "epochs=3")
    result = run(config)
    assert all("val/acc" in record for record in metrics(config))
    assert ["test/acc" in record for record in metrics(config)] == [False, False, True]
    assert result["val_acc"] == metrics(config)[-1]["val/acc"]


@pytest.mark.parametrize("overrides", [["data.holdout=0.2"], ["data.flip=true", "eval_mirrored=true"]], ids=str)
def test_final_predictions_are_saved_in_test_split_order(tiny, overrides):
    config = tiny("eval_batch_size=7", "precision=fp32", *overrides)
    result = run(config)
    predictions = np.load(RunFolder(config).path / "predictions.npy")
    expected, labels = own_predictions(RunFolder(config).path)
    assert predictions.dtype == np.uint8
    assert predictions.tolist() == expected
    assert np.mean(predictions == labels.numpy()) == result["test_acc"]


def test_predictions_for_more_than_256_classes_are_uint16(tiny, tmp_path):
    write_arrays(tmp_path / "many", train=300, test=300, classes=300)
    config = tiny(f"data.root={tmp_path}/many", "epochs=1", "recipe.batch_size=100", "precision=fp32")
    result = run(config)
    predictions = np.load(RunFolder(config).path / "predictions.npy")
    expected, labels = own_predictions(RunFolder(config).path)
    assert predictions.dtype == np.uint16
    assert predictions.tolist() == expected
    assert np.mean(predictions == labels.numpy()) == result["test_acc"]


def test_attention_map_of_a_content_head_is_the_mean_over_test_images(tiny):
    config = tiny("model=sa_content", "epochs=1", "scale.patch=2")
    run(config)
    folder = RunFolder(config).path
    found = load(folder)
    first, middle = attention_mixers(found.model)[0], central_query(4, 4)
    seen = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(first.attention_probs(4, 4, inputs[0])[0, :, middle]))
    with torch.no_grad():
        for images, _ in found.data.test.batches(1):
            found.model(images)
    assert len(seen) == 20, "fewer than 100 images: all"
    maps = np.load(folder / "attention_maps.npy")
    expected = torch.stack(seen).mean(dim=0).view(3, 4, 4)
    np.testing.assert_allclose(maps[0], expected, atol=1e-3)


def test_tta_averages_the_logits_of_an_image_and_its_mirror_image():
    images = torch.arange(2 * 3 * 4).view(2, 1, 3, 4)
    plain, mean = tta_logits(lambda some: some.flatten(1), images, mirrored=True)
    for image, own, both in zip(images, plain, mean, strict=True):
        for row, column in itertools.product(range(3), range(4)):
            assert own[4 * row + column] == image[0, row, column]
            assert both[4 * row + column] == (image[0, row, column] + image[0, row, 3 - column]) / 2


@pytest.fixture
def noise(tmp_path):
    """Return options for a noise data set, on which predictions for images and mirror images differ."""
    draw, folder = np.random.default_rng(0), tmp_path / "noise"
    folder.mkdir()
    for split, count in (("train", 800), ("test", 400)):
        np.save(folder / f"{split}_images.npy", draw.integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(count) % 4)
    return f"data.root={folder}", "data.flip=true", "eval_mirrored=true", "eval_batch_size=7", "precision=fp32"


@pytest.mark.parametrize("model", ["sa_quadratic", "sa_learned_content"])
def test_mirrored_accuracy_uses_the_mean_logits_of_each_mirrored_pair(tiny, capsys, noise, model):
    config = tiny(*noise, f"model={model}", "data.holdout=0.5", "epochs=1")
    result = run(config)
    found = load(RunFolder(config).path)
    for split, name in ((found.data.test, "test"), (found.data.validation, "val")):
        correct = {"acc": 0, "acc_mirrored": 0}
        for images, labels in split.batches(50):
            with torch.no_grad():
                own = found.model(images)
                other = found.model(torch.from_numpy(images.numpy()[..., ::-1].copy()))
            correct["acc"] += int((own.argmax(1) == labels).sum())
            correct["acc_mirrored"] += int(((own + other).argmax(1) == labels).sum())
        assert correct["acc"] != correct["acc_mirrored"], "else this would say nothing"
        for kind, count in correct.items():
            assert result[f"{name}_{kind}"] == pytest.approx(count / len(split))
            assert metrics(config)[-1][f"{name}/{kind}"] == result[f"{name}_{kind}"]
    said = capsys.readouterr()
    assert (
        "test accuracy {test_acc:.2%} ({test_acc_mirrored:.2%} with mirror images) after 1 epoch".format_map(result)
        in said.out
    )
    assert (
        "; validation accuracy {val_acc:.2%} ({val_acc_mirrored:.2%} with mirror images)".format_map(result) in said.out
    )
    assert "| val acc {val_acc:.1%} ({val_acc_mirrored:.1%} mirrored) |".format_map(result) in said.err


def test_eval_mirrored_can_be_enabled_when_resuming(tiny, noise, monkeypatch):
    before = ("epochs=3", "eval_mirrored=false")
    with monkeypatch.context() as patch:
        patch.setattr("attnconv.training.trainer.export_weights", lambda *arguments: 1 / 0)
        with pytest.raises(ConfigError, match="division by zero"):
            run(tiny(*noise, *before))
    last = max((RunFolder(tiny(*noise, *before)).checkpoints).iterdir())
    last.unlink()
    assert "test_acc_mirrored" in run(tiny(*noise, "epochs=3"))
    assert ["test/acc_mirrored" in record for record in metrics(tiny(*noise))] == [False, False, True]


def test_eval_mirrored_changes_no_other_metric(tiny):
    configs = [tiny("data.flip=true", f"eval_mirrored={on}", f"name=mirrored_{on}") for on in (False, True)]
    for config in configs:
        run(config)
    without, with_them = (metrics(config) for config in configs)
    assert all("test/acc_mirrored" in record for record in with_them)
    assert without == [{key: record[key] for key in record if key != "test/acc_mirrored"} for record in with_them]


def test_eval_mirrored_has_no_effect_without_flip_augmentation(tiny):
    config = tiny("data.flip=false")
    config.eval_mirrored = True
    assert "test_acc_mirrored" not in run(config)


def test_tally_averages_over_images_not_batches():
    tally, losses = Tally.on(torch.device("cpu")), []
    for count in (3, 1):
        logits, labels = torch.randn(count, 4), torch.randint(4, (count,))
        tally.add(torch.nn.functional.cross_entropy(logits, labels), logits, labels)
        losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
    assert tally.score().loss == pytest.approx(sum(losses) / 4)


@pytest.mark.parametrize("gradient", [False, True])
def test_first_non_finite_step_is_named_even_if_checked_later(gradient):
    guard, model = FiniteGuard(torch.device("cpu")), torch.nn.Linear(2, 1)
    guard._every = 50  # as on a GPU
    for step in range(1, 20):
        bad = step in (7, 11)
        model.weight.grad = torch.full((1, 2), float("nan") if bad and gradient else 1.0)
        guard.record(step, torch.tensor(float("inf") if bad and not gradient else 1.0), model)
    with pytest.raises(NotFinite) as found:
        guard.check()
    assert (found.value.step, found.value.what) == (7, "gradient" if gradient else "loss")


def test_sums_are_exact_whatever_the_default_type():
    torch.set_default_dtype(torch.bfloat16)
    try:
        tally = Tally.on(torch.device("cpu"))
        tally.add(torch.ones((), dtype=torch.float32), torch.eye(1001), torch.arange(1001))
        score = tally.total(Processes()).score()
    finally:
        torch.set_default_dtype(torch.float32)
    assert (score.loss, score.accuracy) == (1, 1)


class NeedsContrast(nn.Module):
    """Divides each image by its contrast."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.last = nn.Linear(image_shape[0], classes)

    def forward(self, images):
        return self.last(
            (images / (images.amax((2, 3), keepdim=True) - images.amin((2, 3), keepdim=True))).mean((2, 3))
        )


@pytest.mark.slow
def test_an_image_without_finite_logits_is_named(tiny, arrays):
    config = tiny("precision=fp32", "epochs=1")
    config.model = {"name": "mine", "_target_": f"{__name__}.NeedsContrast"}
    run(config)
    images, labels = (np.load(arrays / f"test_{part}.npy") for part in ("images", "labels"))
    images[5] = 7
    with pytest.raises(DataError, match=r"model=mine gives nan or inf for image 5 \(from 0\)"):
        load(RunFolder(config).path, trusted=[__name__]).evaluate((images, labels))
    np.save(arrays / "test_images.npy", images)
    config.name = "again"
    with pytest.raises(Diverged, match="model=mine gives nan or inf for 1 image, first for image 5"):
        run(config)


@pytest.mark.parametrize(
    ("model", "changes", "advice"),
    [
        ("sa_quadratic", {"optimizer": "sgd", "centers_lr": None}, "lower recipe.lr (now 0.1)"),
        (
            "sa_quadratic",
            {"optimizer": "muon"},
            "lower recipe.lr and recipe.adamw_lr and recipe.centers_lr (now 0.1 and 0.2 and 0.3)",
        ),
        ("conv3x3", {"optimizer": "muon"}, "lower recipe.lr and recipe.adamw_lr (now 0.1 and 0.2)"),
        ("sa_quadratic", {"optimizer": "muon", "lr_scale": 1e6}, "lower recipe.lr_scale (now 1e+06)"),
    ],
)
def test_divergence_names_the_rates_in_force(tiny, model, changes, advice):
    config = tiny(f"model={model}")
    config.recipe = replace(config.recipe, lr=0.1, **({"adamw_lr": 0.2, "centers_lr": 0.3} | changes))
    bad = Score(float("nan"), 0.5, predictions=torch.full((4,), NOT_FINITE))
    assert str(diverged(1, "test", bad, config)) == f"the test loss after epoch 1 is nan; {advice}"
