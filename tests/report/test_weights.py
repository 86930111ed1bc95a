"""results/weights/ holds float16 weights of selected runs in results/, within a size limit."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from attnconv.report import weights as weights_module
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import build_untrained, load
from conftest import REPOSITORY


def publish(config, **changes):
    """Train a run, and mark its result as made without uncommitted changes."""
    run(config)
    path = run_folder_path(config) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "a" * 40, "dirty": False} | changes))
    return run_folder_path(config)


@pytest.fixture
def collect(tmp_path, monkeypatch, capsys):
    """Return a function that runs scripts/collect.py from tmp_path/outputs into tmp_path/results.

    It returns the exit code, or the error on stderr if the exit code is 2.
    """

    def command(*arguments):
        fixed = ["collect.py", f"{tmp_path}/outputs", "--results", f"{tmp_path}/results"]
        monkeypatch.setattr(sys, "argv", [*fixed, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(REPOSITORY / "scripts/collect.py"), run_name="__main__")
        return capsys.readouterr().err if ended.value.code == 2 else ended.value.code

    return command


def files(results):
    return {path.relative_to(results): path.read_bytes() for path in results.rglob("*") if path.is_file()}


def test_published_weights_restore_the_network_up_to_rounding(tiny, tmp_path, collect):
    folder = publish(tiny("name='kept[1]'", "model=resnet10", "scale.cnn_width=8", "precision=fp32", "epochs=10"))
    publish(tiny("name=other", "epochs=1"))
    assert collect("--weights", "kept[1]/*") == 0
    (path,) = (tmp_path / "results/weights").rglob("*.safetensors")
    assert path == tmp_path / "results/weights/kept[1]/resnet10/mini-modern/frac1/seed0.safetensors"
    result = json.loads((folder / "result.json").read_text())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["run"] == "kept[1]/resnet10/mini-modern/frac1/seed0"
    assert metadata["commit"] == "a" * 40
    assert metadata["data_hash"] == result["data_hash"]

    halves = load_file(path)
    for name, tensor in halves.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float16), name
    trained = load(folder)
    again = build_untrained(trained.config, trained.data).eval()
    again.load_state_dict(halves)
    images, _ = next(trained.data.test.batches(20))
    with torch.no_grad():
        before, after = trained.model(images), again(images)
    rounding = (after - before).abs().max()
    assert rounding < 0.02
    sure = (before.topk(2).values.diff().abs() > 2 * rounding).squeeze(1).numpy()
    assert sure.sum() >= 10
    assert (after.argmax(1).numpy() == np.load(folder / "predictions.npy"))[sure].all()

    there = files(tmp_path / "results")
    assert collect("--weights", "kept[1]/resnet10/mini-modern/frac1/seed0") == 0
    assert files(tmp_path / "results") == there, "collecting twice changes nothing"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [("default", {"dirty": True}, "dirty tree"), ("default", {"commit": None}, "unknown commit"),
     ("quickstart", {}, "quickstart")],
)  # fmt: skip
def test_weights_of_unpublishable_runs_are_refused(tiny, tmp_path, collect, name, changes, reason):
    publish(tiny(f"name={name}", "epochs=1"), **changes)
    refusal = collect("--weights", "*")
    assert refusal.startswith(f"error: the weights of {name}/conv3x3/")
    assert f"({reason})" in refusal
    assert refusal.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_weights_that_cannot_be_stored_are_errors_and_nothing_is_written(tiny, tmp_path, collect, monkeypatch):
    folder = publish(tiny("epochs=1"))
    assert "--weights seed1: no finished run has that name" in collect("--weights", "*", "seed1")
    with monkeypatch.context() as patch:
        patch.setattr(weights_module, "LIMIT", 3_000)
        refusal = collect("--weights", "*")
    size = (folder / "weights.safetensors").stat().st_size
    assert size > 2 * 3_000
    assert refusal.startswith("error: the weights of 1 run need ")
    assert "the limit is 0.003 MB: choose fewer runs, or delete some files" in refusal

    tensors = load_file(folder / "weights.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1e6}, folder / "weights.safetensors")
    assert f"{name} has values that float16 cannot hold" in collect("--weights", "*")
    torn = (folder / "weights.safetensors").read_bytes()[:-1]
    (folder / "weights.safetensors").write_bytes(torn)
    assert "weights.safetensors is damaged" in collect("--weights", "*")
    (folder / "weights.safetensors").unlink()
    assert "has no weights.safetensors" in collect("--weights", "*")
    assert not (tmp_path / "results").exists()


def test_existing_weights_count_once_toward_the_limit(tiny, tmp_path, collect, monkeypatch):
    publish(tiny("epochs=1", "seed=0"))
    assert collect("--weights", "*/seed0") == 0
    (path,) = (tmp_path / "results/weights").rglob("*.safetensors")
    monkeypatch.setattr(weights_module, "LIMIT", path.stat().st_size + 100)
    assert collect("--weights", "*/seed0") == 0
    publish(tiny("epochs=1", "seed=1"))
    assert "has 0.00" in collect("--weights", "*/seed1")


def test_replacing_a_run_deletes_its_weights(tiny, tmp_path, collect):
    publish(tiny("epochs=1"))
    assert collect("--weights", "*") == 0
    (path,) = (tmp_path / "results/weights").rglob("*.safetensors")
    before = path.read_bytes()
    (run_folder_path(tiny("epochs=1")) / "result.json").unlink()
    publish(tiny("epochs=1"), test_loss=0.0)
    assert collect("--weights", "*") == 1, "results/ has another run of that name"
    assert path.read_bytes() == before
    assert collect("--replace") == 0
    assert not path.exists()


def test_committed_weights_match_their_runs_and_fit_the_limit():
    kept = list((REPOSITORY / "results/weights").rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in kept) <= weights_module.LIMIT
    for path in kept:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        result = json.loads((REPOSITORY / "results/runs" / metadata["run"] / "result.json").read_text())
        assert path == REPOSITORY / "results/weights" / f"{metadata['run']}.safetensors"
        assert [metadata["commit"], metadata["data_hash"]] == [result["commit"], result["data_hash"]]
