"""Pruning: which heads are removed, that the others keep their weights, and that training can continue."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from attnconv.config import compose
from attnconv.errors import AlreadyDone, ConfigError, RunFolderError
from attnconv.files import FileError
from attnconv.models.build import build_model
from attnconv.models.cost import parameters
from attnconv.models.pruned import degenerate
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import load

pytestmark = pytest.mark.slow  # building networks takes seconds

TINY = ["scale=mini", "scale.layers=2", "scale.heads=4", "scale.width=8", "scale.hidden=8"]


def build(model, *overrides):
    torch.manual_seed(0)
    return build_model(compose([*TINY, f"model={model}", *overrides]).model, (3, 32, 32), 10)


@pytest.fixture
def weights(tmp_path):
    """Write a network with four heads per layer; in the first layer, head 2 is flat and head 4 a stripe."""
    model = build("sa_quadratic_generalized")
    with torch.no_grad():
        spreads = model.layers[0].mixer.encoding.spreads
        spreads[1] = 1e-4 * torch.eye(2)
        spreads[3] = torch.tensor([[1.0, 0], [1, 0.01]])
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_flat_heads_and_stripes_are_degenerate():
    angle = torch.tensor(0.3)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    stripes = torch.stack([turned * torch.tensor([1.0, ratio**0.5]) for ratio in (1, 1.1e-3, 0.9e-3, 0)])
    assert degenerate(stripes, 1000).tolist() == [False, False, True, True]
    assert degenerate(stripes, 1e5).tolist() == [False, False, False, True]
    assert degenerate(torch.tensor([1.0, 0.0033, -0.0033, 0.003]), 1000).tolist() == [False, False, False, True]


def test_pruned_network_equals_the_original_with_the_pruned_heads_zeroed(weights):
    whole, pruned = build("sa_quadratic_generalized"), build("sa_quadratic_pruned", f"model.start={weights}")
    whole.load_state_dict(load_file(weights))
    with torch.no_grad():
        whole.layers[0].mixer.value.weight.unflatten(1, (4, 8))[:, [1, 3]] = 0
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pruned.eval()(images), whole.eval()(images))
    assert [layer.mixer.heads for layer in pruned.layers] == [2, 4]
    assert parameters(whole) - parameters(pruned) == 2 * (2 + 4 + 8 * 8)


def test_parameter_count_is_the_same_on_the_meta_device(weights):
    config = compose([*TINY, "model=sa_quadratic_pruned", f"model.start={weights}"])
    with torch.device("meta"):
        counted = build_model(config.model, (3, 32, 32), 10)
    assert parameters(counted) == parameters(build("sa_quadratic_pruned", f"model.start={weights}"))


def test_pruned_run_continues_from_a_trained_one_and_can_be_loaded(tiny, weights, tmp_path):
    before = tiny("model=sa_quadratic_generalized", "scale.heads=4")
    run(before)
    trained = load_file(run_folder_path(before) / "weights.safetensors")
    trained["layers.1.mixer.encoding.spreads"][2] = 0
    save_file(trained, weights)

    def pruned(start):
        names = ("model=sa_quadratic_pruned", "name=pruned", f"model.start={start}")
        return tiny(*names, "scale.heads=4", "precision=fp32")

    assert run(pruned(weights))["status"] == "done"
    with pytest.raises(AlreadyDone):
        run(pruned(weights.rename(tmp_path / "moved.safetensors")))
    trained["layers.1.mixer.encoding.centers"][0] += 1
    save_file(trained, weights)
    with pytest.raises(RunFolderError, match="-> the same file with other heads"):
        run(pruned(weights))
    folder = run_folder_path(pruned(weights))
    maps = np.load(folder / "attention_maps.npy")
    assert np.isnan(maps[1, 3]).all(), "a head that the layer lacks"
    assert not np.isnan(maps[0]).any()
    heads = json.loads((folder / "heads.jsonl").read_text().splitlines()[-1])
    assert [len(layer) for layer in heads["centers"]] == [4, 3]
    weights.unlink()
    network = load(folder).model
    assert [layer.mixer.heads for layer in network.layers] == [4, 3], "without the network that was pruned"
    kept = load_file(folder / "weights.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


WRAPPED = {
    "as torch.save writes it": lambda state: state,
    "a wrapper": lambda state: {"model": state, "epoch": 3},
    "of DataParallel": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_external_weight_files_load_like_those_of_a_run(weights, tmp_path, kind):
    torch.save(WRAPPED[kind](load_file(weights)), tmp_path / "outside.pth")
    expected = build("sa_quadratic_pruned", f"model.start={weights}").state_dict()
    found = build("sa_quadratic_pruned", f"model.start={tmp_path}/outside.pth").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_invalid_weight_files_are_refused_on_the_meta_device(weights, tmp_path):
    for content, complaint in ((b"", "empty"), (b"hello", "is text"), (weights.read_bytes()[:500], "damaged or cut")):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(FileError, match=complaint), torch.device("meta"):
            build("sa_quadratic_pruned", f"model.start={tmp_path}/other")
    save_file(build("sa_quadratic").state_dict(), weights)
    with pytest.raises(FileError, match="the shape of layers"), torch.device("meta"):
        build("sa_quadratic_pruned", f"model.start={weights}")


def test_invalid_pruning_settings_are_refused(weights, tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        build("sa_quadratic_pruned", f"model.start={tmp_path}/none")
    with pytest.raises(FileError, match="weights"):
        build("sa_quadratic_pruned", f"model.start={weights}", "scale.heads=5")
    with pytest.raises(ConfigError, match=r"all heads of .* are degenerate"):
        build("sa_quadratic_pruned", f"model.start={weights}", "model.largest_condition=0.5")
