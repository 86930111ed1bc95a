"""The theorem on trained networks: no prediction changes, and attention is described as it was trained."""

import json
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnconv.analysis.conv_to_attention import Inconvertible, refuse_convolutions
from attnconv.analysis.heads import head_statistics
from attnconv.analysis.probe import exchange, probe
from attnconv.config import compose
from attnconv.data.dataset import Split, load_dataset
from attnconv.errors import ConfigError, RunFolderError
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import build_untrained, load_trained
from attnconv.training.distributed import Processes
from attnconv.training.loop import evaluate
from conftest import PYTHON, REPOSITORY, write_arrays


def trained(config):
    run(config)
    return load_trained(run_folder_path(config))


def load(config):
    return load_dataset(config.data, torch.device("cpu"))


@pytest.mark.parametrize("overrides", [["model=resnet18"], ["model=sa_learned", "match=parameters"]], ids=" ".join)
def test_a_trained_run_comes_back_as_it_was(tiny, overrides):
    config = tiny(*overrides, "precision=fp32", "data.root=unused", "name=moved")
    config.data.root = tiny().data.root
    result = run(config)
    folder = run_folder_path(config)
    found = load_trained(folder, root=config.data.root)
    assert sum(parameter.numel() for parameter in found.model.parameters()) == result["parameters"]
    score = evaluate(found.model, found.data.test, 7, "fp32", Processes())
    assert score.accuracy == result["test_acc"]
    with pytest.raises(RunFolderError, match=r"does not exist; there is no folder"):
        load_trained(run_folder_path(tiny("name=nothing")))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"has no weights\.safetensors"):
        load_trained(folder)


@pytest.mark.parametrize("model", ["resnet18", "vgg11_bn", "conv3x3", "mobilenetv3_small_050"])
def test_a_network_without_convolutions_predicts_the_same(tiny, tmp_path, model):
    write_arrays(tmp_path / "large", side=32)
    chosen = [f"model={model}"] if "mobile" not in model else ["model=timm", f"model.timm_name={model}"]
    config = tiny(*chosen, f"data.root={tmp_path}/large")
    data = load(config)
    network = build_untrained(config, data).eval()
    row = exchange(network, data.test)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert row["layers"] == len(convolutions) > 0
    assert row["heads"] == sum(module.kernel_size[0] * module.kernel_size[1] for module in convolutions)
    assert row["predictions_changed"] == 0
    assert row["largest_difference"] <= 1e-5 * row["largest_logit"]
    assert row["attention_acc"] == row["convolution_acc"]
    assert row["attention_parameters"] == row["convolution_parameters"] + 3 * row["heads"]
    assert row["attention_flops"] > row["convolution_flops"] > 0


@pytest.mark.cifar
def test_no_prediction_changes_on_a_thousand_real_images(tmp_path):
    config = compose(
        ["model=resnet10", "scale=mini", "epochs=4", "eval_every=4", "data.fraction=0.02", "logger=none",
         f"output={tmp_path}", f"data.root={REPOSITORY}/data/cifar10", "device=cpu"]
    )  # fmt: skip
    if not (REPOSITORY / "data/cifar10/train_images.npy").exists():
        pytest.skip("no CIFAR-10 in data/cifar10")
    found = trained(config)
    test = found.data.test
    row = exchange(found.model, Split(test.images[:1000], test.labels[:1000], test.mean, test.std))
    assert (row["images"], row["predictions_changed"]) == (1000, 0)
    assert row["convolution_acc"] > 0.15, "trained"


def test_blunt_heads_do_change_the_network(tiny):
    config = tiny("model=resnet18")
    model = build_untrained(config, load(config)).eval()
    errors = [exchange(model, load(config).test, alpha)["largest_difference"] for alpha in (1, 4, 16)]
    assert errors[0] > 3 * errors[1]
    assert errors[1] > 100 * errors[2]


def test_a_convolution_that_is_no_layer_is_named():
    class Hidden(nn.Module):
        def forward(self, x):
            return F.conv2d(x, torch.ones(1, 3, 3, 3))

    with pytest.raises(Inconvertible, match=r"that Sequential\.1 computes by itself"):
        refuse_convolutions(nn.Sequential(nn.Identity(), Hidden()), torch.zeros(1, 3, 8, 8))


def test_every_head_and_layer_is_described_trained_and_initial(tiny):
    found = trained(tiny("epochs=3", "scale.patch=2"))
    rows = probe(found, images=8, fit_images=20)
    places = [(row["weights"], row["layer"], row["head"]) for row in rows["heads"]]
    assert places == [
        (weights, layer, head) for weights in ("initial", "trained") for layer in (1, 2) for head in (1, 2, 3)
    ]
    assert [(row["weights"], row["layer"]) for row in rows["layers"]] == [
        (weights, layer) for weights in ("initial", "trained") for layer in (1, 2)
    ]
    # Position-only attention never moves with the content; and it was trained.
    assert all(row["by_content"] == pytest.approx(0, abs=1e-9) for row in rows["heads"])
    assert rows["heads"][0]["distance"] != rows["heads"][6]["distance"]
    maps = np.load(found.folder / "attention_maps.npy")
    expected, _ = head_statistics(torch.from_numpy(maps[0].astype(np.float32)))
    assert [rows["heads"][6]["center_row"], rows["heads"][6]["center_column"]] == pytest.approx(expected[0], abs=1e-3)


def test_attention_to_content_moves_with_it(tiny):
    config = tiny("model=sa_content", "scale.patch=2")
    rows = probe(trained(config), images=8, fit_images=20)["heads"]
    assert all(row["by_content"] > 0.1 for row in rows)


def test_a_network_without_attention_cannot_be_probed(tiny):
    with pytest.raises(ConfigError, match="model=conv3x3 has no attention layer to probe"):
        probe(trained(tiny("model=conv3x3")))


def script(name, *arguments):
    return subprocess.run(
        [PYTHON, f"scripts/{name}.py", *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True
    )


def test_the_commands(tiny, tmp_path):
    convolutional, attentive = tiny("model=resnet18", "epochs=20"), tiny("epochs=1")
    run(convolutional)
    run(attentive)
    done = script("conv_to_attention", "--checkpoint", run_folder_path(convolutional), "--json", tmp_path / "row.json")
    assert done.returncode == 0, done.stderr
    assert "predictions changed            0\n" in done.stdout
    assert json.loads((tmp_path / "row.json").read_text())["layers"] == 20
    blunt = script("conv_to_attention", "--checkpoint", run_folder_path(convolutional), "--alpha", 0.01)
    assert blunt.returncode == 1, "predictions changed"

    done = script("probe", run_folder_path(attentive), "--images", 4, "--fit-images", 10)
    assert done.returncode == 0, done.stderr
    written = json.loads((run_folder_path(attentive) / "probe.json").read_text())
    assert len(written["heads"]) == 12
    assert "| 2 trained |" in done.stdout

    for command, complaint in (
        (("conv_to_attention",), "which network?"),
        (("conv_to_attention", "--checkpoint", tmp_path / "nowhere"), "nowhere does not exist"),
        (("conv_to_attention", "--checkpoint", run_folder_path(attentive)), "the model has no convolution"),
        (("probe", run_folder_path(convolutional)), "has no attention layer to probe"),
        (("probe", tmp_path), f"is not a run folder: no config.yaml; runs below it: {tmp_path}/outputs"),
    ):
        failed = script(*command)
        (error,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
        assert complaint in error
        assert failed.returncode == 2
        assert "Traceback" not in failed.stderr
