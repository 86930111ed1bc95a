"""The probe describes the attention of trained runs."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from attnconv.analysis.heads import head_statistics
from attnconv.analysis.probe import images_to_fit, initial_network, probe
from attnconv.errors import ConfigError, DataError, RunFolderError
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import load
from attnconv.training.distributed import Processes
from attnconv.training.loop import evaluate
from attnconv.training.setup import prepare
from conftest import script, write_arrays

pytestmark = pytest.mark.slow


def trained(config):
    run(config)
    return load(run_folder_path(config))


@pytest.mark.parametrize("overrides", [["model=resnet18"], ["model=sa_learned", "match=parameters"]], ids=" ".join)
def test_loaded_run_reproduces_its_test_accuracy(tiny, overrides):
    config = tiny(*overrides, "precision=fp32", "data.root=unused", "name=moved")
    config.data.root = tiny().data.root
    result = run(config)
    folder = run_folder_path(config)
    found = load(folder, root=config.data.root)
    assert sum(parameter.numel() for parameter in found.model.parameters()) == result["parameters"]
    score = evaluate(found.model, found.data.test, 7, "fp32", Processes())
    assert score.accuracy == result["test_acc"]
    with pytest.raises(RunFolderError, match=r"does not exist; the folder"):
        load(run_folder_path(tiny("name=nothing")))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"has no weights\.safetensors"):
        load(folder)


def test_probe_describes_every_head_and_layer_before_and_after_training(tiny):
    found = trained(tiny("model=sa_quadratic", "epochs=3", "scale.patch=2"))
    rows = probe(found, images=8, fit_images=20)
    places = [(row["weights"], row["layer"], row["head"]) for row in rows["heads"]]
    assert places == [
        (weights, layer, head) for weights in ("initial", "trained") for layer in (1, 2) for head in (1, 2, 3)
    ]
    assert [(row["weights"], row["layer"]) for row in rows["layers"]] == [
        (weights, layer) for weights in ("initial", "trained") for layer in (1, 2)
    ]
    # Position-only attention never depends on the content, and it was trained.
    assert all(row["by_content"] == pytest.approx(0, abs=1e-9) for row in rows["heads"])
    assert rows["heads"][0]["distance"] != rows["heads"][6]["distance"]
    maps = np.load(found.folder / "attention_maps.npy")
    expected, _ = head_statistics(torch.from_numpy(maps[0].astype(np.float32)))
    assert [rows["heads"][6]["center_row"], rows["heads"][6]["center_column"]] == pytest.approx(expected[0], abs=1e-3)


def test_head_numbers_do_not_depend_on_the_number_of_images_to_fit(tiny):
    found = trained(tiny("model=sa_learned_content", "scale.patch=2"))
    few, many = (probe(found, images=8, fit_images=fit)["heads"] for fit in (4, 20))
    assert [row["entropy"] for row in few] == pytest.approx([row["entropy"] for row in many], rel=1e-5)


def test_the_initial_network_is_the_one_before_the_first_step(tiny):
    config = tiny("model=sa_quadratic", "recipe.whitening=true", "recipe.optimizer=adamw", "epochs=1")
    before = prepare(config).model.state_dict()
    found = initial_network(trained(config)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())


def test_content_attention_depends_on_content(tiny):
    config = tiny("model=sa_content", "scale.patch=2")
    rows = probe(trained(config), images=8, fit_images=20)["heads"]
    assert all(row["by_content"] > 0.1 for row in rows)


def test_the_probe_looks_at_test_images(tiny, arrays):
    np.save(arrays / "test_images.npy", np.full((20, 8, 8, 3), 9, dtype=np.uint8))
    found = probe(trained(tiny("model=sa_content", "scale.patch=2", "epochs=1")), images=8, fit_images=20)
    assert [row["by_content"] for row in found["heads"]] == pytest.approx([0] * 12, abs=1e-6), "they are all alike"


def test_probing_a_network_without_attention_is_refused(tiny):
    with pytest.raises(ConfigError, match="model=conv3x3 has no attention layer to probe"):
        probe(trained(tiny("model=conv3x3")))


def test_probing_on_a_single_test_image_is_refused(tiny, tmp_path):
    write_arrays(tmp_path / "arrays", test=1)
    with pytest.raises(DataError, match="need two or more test images"):
        probe(trained(tiny("model=sa_quadratic", "epochs=1")))


def test_probe_and_conv_to_attention_commands(tiny, tmp_path, monkeypatch, capsys):
    convolutional, attentive = (
        tiny("model=conv3x3", "epochs=4"),
        tiny("model=sa_quadratic", "epochs=1", "scale.patch=2"),
    )
    run(convolutional)
    run(attentive)
    folder = run_folder_path(convolutional)
    called = partial(script, monkeypatch, capsys)
    code, out, _ = called("conv_to_attention", "--checkpoint", folder, "--json", tmp_path / "row.json")
    assert code == 0
    assert "predictions changed            0\n" in out
    assert json.loads((tmp_path / "row.json").read_text())["layers"] == 2
    assert called("conv_to_attention", "--checkpoint", folder, "--alpha", 0.01)[0] == 1, "predictions changed"

    code, out, _ = called("probe", run_folder_path(attentive))
    assert code == 0
    written = json.loads((run_folder_path(attentive) / "probe.json").read_text())
    assert (written["images"], written["fit_images"]) == (20, 20), "there are no more"
    assert len(written["heads"]) == 12
    assert "| 2 trained |" in out

    for command, complaint in (
        (("conv_to_attention",), "choose a network"),
        (("probe", "--calibration", tmp_path / "c.json", "--data", tmp_path), "--data without RUN has no effect"),
        (("conv_to_attention", "--checkpoint", tmp_path / "nowhere"), "nowhere does not exist"),
        (
            ("conv_to_attention", "--checkpoint", run_folder_path(attentive)),
            "no convolution layer (nn.Conv1d or nn.Conv2d)",
        ),
        (("probe", folder), "has no attention layer to probe"),
        (("probe", tmp_path), f"is not a run folder: no config.yaml; it contains the runs {tmp_path}/outputs"),
    ):
        code, _, errors = called(*command)
        assert code == 2
        assert errors.count("\n") == 1
        assert complaint in errors


@pytest.mark.parametrize(("patch", "width", "images"), [(1, 64, 600), (1, 99, 607), (2, 64, 2400)])
def test_convolutions_are_fitted_to_four_pixels_for_each_weight(tiny, patch, width, images):
    config = tiny("model=sa_quadratic", f"scale.patch={patch}", f"scale.width={width}", "epochs=1")
    assert images_to_fit(trained(config)) == images
