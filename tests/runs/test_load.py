"""Loading run folders of unknown origin: one-line errors, and only trusted code runs."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from attnconv.config import to_plain
from attnconv.data.dataset import load_dataset
from attnconv.errors import UserError
from attnconv.runs.checkpoint import Progress, export_weights, save_checkpoint
from attnconv.runs.load import build_untrained, find_run, load
from attnconv.runs.records import MOVED, read_config
from conftest import TINY_SCALE, compose, script, write_arrays

pytestmark = pytest.mark.slow  # building networks takes seconds

ELSE = "has unexpected content"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder as a finished run leaves it, with untrained weights."""
    root = tmp_path_factory.mktemp("trained")
    write_arrays(root / "arrays")
    config, folder = compose([*TINY_SCALE, "model=conv3x3", "data=arrays", f"data.root={root}/arrays"]), root / "run"
    model = build_untrained(config, load_dataset(config.data, torch.device("cpu")))
    (folder / "checkpoints").mkdir(parents=True)
    write(folder, to_plain(config))
    (folder / "result.json").write_text(json.dumps({"status": "done", "format": 1}))
    export_weights(folder / "weights.safetensors", model)
    save_checkpoint(folder / "checkpoints", model, torch.optim.SGD(model.parameters()), Progress(1), 7)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    return shutil.copytree(finished, tmp_path / "run")


def write(folder, plain):
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(plain))


def changed(folder, **changes):
    write(folder, OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) | changes)


def model_of(folder, **changes):
    return OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))["model"] | changes


def test_a_matched_network_has_its_recorded_width_whatever_configs_holds_today(folder):
    width = model_of(folder)["width"]
    changed(folder, match="parameters", match_model="gone", model=model_of(folder, width=5 * width))
    recorded = {"budget": "parameters", "model": "gone", "width": width}
    (folder / "result.json").write_text(json.dumps({"status": "done", "format": 1, "match": recorded}))
    assert load(folder).model.head.in_features == width


def test_data_is_found_where_it_was_from_any_folder(folder, arrays, tmp_path, monkeypatch):
    changed(folder, data=OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))["data"] | {"root": "arrays"})
    monkeypatch.chdir(tmp_path)
    assert load(folder).config.data.root == "arrays"
    (folder / "data.json").write_text(json.dumps({"root": str(arrays), "sha256": "x"}))
    monkeypatch.chdir(tmp_path / "run")
    assert load(folder).config.data.root == str(arrays)
    monkeypatch.setattr("attnconv.runs.load.REPOSITORY", arrays.parent)
    (folder / "data.json").unlink()
    assert load(folder).config.data.root == f"{arrays.parent}/arrays"


def test_a_loaded_network_computes_in_full_float32(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    network, found = load(folder), []
    network.model.register_forward_hook(lambda *_: found.append(torch.get_float32_matmul_precision()))
    network.predict(np.zeros((1, 8, 8, 3), np.uint8))
    assert (torch.backends.cudnn.allow_tf32, found) == (False, ["highest"])
    assert torch.get_float32_matmul_precision() == "high", "the caller's choice"
    torch.set_float32_matmul_precision("highest")


def test_a_checkpoint_is_loaded_with_the_configuration_of_its_run(folder, monkeypatch, capsys):
    (folder / "weights.safetensors").unlink()
    (checkpoint,) = (folder / "checkpoints").glob("step*.pt")
    code, out, _ = script(monkeypatch, capsys, "conv_to_attention", "--checkpoint", checkpoint)
    assert code == 0
    assert out.splitlines()[0] == f"default/conv3x3/mini-modern/frac1/seed0, {checkpoint.name}"
    assert not (folder / "conversion.json").exists(), "not the finished run's"


def test_bare_weights_need_the_model_and_its_settings(folder, arrays, monkeypatch, capsys, tmp_path):
    weights = (folder / "weights.safetensors").rename(tmp_path / "some.safetensors")
    asked = ["--checkpoint", weights, "--data", arrays, "--model"]
    settings = [*TINY_SCALE, "data=arrays"]
    assert script(monkeypatch, capsys, "conv_to_attention", *asked, "conv3x3", *settings)[0] == 0
    for arguments, complaint in (
        (["--checkpoint", weights], f"{weights} does not say which network it belongs to: add --model NAME"),
        ([*asked, "resnet10", *settings], "holds another network: 1 of this network's"),
        ([*asked, "conv3x3", *settings, "scale.hidden=9"], "the shape of"),
        (
            ["--checkpoint", folder, "--model", "conv3x3"],
            "config.yaml already describes the network: leave out --model",
        ),
        (["--checkpoint", tmp_path / "some"], f"some does not exist; {tmp_path} has some.safetensors"),
        (["--checkpoint", tmp_path, "--model", "conv3x3"], "no config.yaml; it contains the weight files some."),
    ):
        code, _, err = script(monkeypatch, capsys, "conv_to_attention", *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("error: ")
        assert complaint in err


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is not a run folder: no config.yaml; it contains the weight"),
        (lambda run: (run / "config.yaml").write_text(""), "config.yaml is not the configuration of a run"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml is of an unknown type"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), f"config.yaml {ELSE}"),
        (lambda run: (run / "config.yaml").write_text("a: !!python/object/apply:os.mkdir [x]"), f"config.yaml {ELSE}"),
        (lambda run: changed(run, epochs="many"), "is not the configuration of a run (epochs: many)"),
        (lambda run: changed(run, model="resnet18"), "is not the configuration of a run"),
        (lambda run: changed(run, brightness=1), "of this version (unknown setting 'brightness'"),
        (lambda run: changed(run, seed=-1), "config.yaml: seed must be at least 0, not -1"),
        (lambda run: changed(run, model={"name": "x"}), "config.yaml: model lacks _target_"),
        (lambda run: (run / "result.json").write_text('{"status": "done", "format": 99}'), "of a newer version"),
        (lambda run: (run / "result.json").write_text("[]"), f"result.json {ELSE}"),
        (lambda run: (run / "weights.safetensors").write_bytes(b""), "weights.safetensors is empty"),
        (lambda run: (run / "weights.safetensors").write_text("x"), "weights.safetensors is text"),
        (lambda run: (run / "weights.safetensors").unlink(), "has no weights.safetensors"),
        (lambda run: changed(run, model=model_of(run, width=9)), "the shape of"),
    ],
)  # fmt: skip
def test_a_damaged_run_folder_is_a_one_line_error(folder, monkeypatch, capsys, damage, complaint):
    monkeypatch.chdir(folder)
    damage(folder)
    code, _, err = script(monkeypatch, capsys, "probe", folder)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith(f"error: {folder}")
    assert complaint in err
    assert not (folder / "x").exists()


def test_a_path_that_is_not_a_run_folder_is_a_one_line_error(folder, monkeypatch, capsys, tmp_path):
    for path, complaint in (
        (folder / "config.yaml", "is a file, not a run folder"),
        (tmp_path / "runs", f"does not exist; {tmp_path} has run"),
        (folder / "checkpoints", "no config.yaml; it contains the weight files step00000007-"),
    ):
        code, _, err = script(monkeypatch, capsys, "probe", path)
        assert (code, err.count("\n")) == (2, 1), err
        assert complaint in err


TARGETS = [
    "os.mkdir",
    "builtins.eval",
    "trap.Module",
    "torch.load",
    "torch.nn.functional.relu",  # not a network
    "timm.create_model",  # can download
    "timm.models._builder.os.mkdir",  # leads out of timm
    "attnconv.runs.checkpoint.write_whole",
    "attnconv.models.build.instantiate",
    "attnconvolution.models.Model",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", ["model", "mixer", "list"])
def test_untrusted_code_is_neither_run_nor_imported(folder, monkeypatch, target, place):
    (folder / "trap.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(folder)
    node = {"_target_": target, "path": str(folder / "made")}
    inner = {"_target_": node["_target_"], "_args_": [str(folder / "made")]}
    nodes = {"model": model_of(folder) | node, "mixer": model_of(folder, mixer=inner)}
    changed(folder, model=nodes.get(place) or model_of(folder, mixer={**model_of(folder)["mixer"], "parts": [inner]}))
    with pytest.raises(UserError, match=f"_target_={target} is code from outside") as refused:
        load(folder)
    assert f"--trust {target.rpartition('.')[0]}" in str(refused.value)
    assert not (folder / "made").exists()


def test_trusted_modules_are_loaded(folder, monkeypatch):
    code = "from attnconv.mixers.convolution import Convolution\n\nclass Own(Convolution):\n    pass\n"
    (folder / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    mixer = model_of(folder)["mixer"]
    changed(folder, model=model_of(folder, mixer={**mixer, "_target_": "mine.Own"}))
    with pytest.raises(UserError, match="if you trust it, add --trust mine"):
        load(folder)
    assert load(folder, trusted=["mine"]).config.model["mixer"]["_target_"] == "mine.Own"


def test_advice_to_trust_a_nested_class_names_its_module(folder, monkeypatch):
    code = "from attnconv.mixers.convolution import Convolution\nclass Outer:\n    class Own(Convolution): pass\n"
    (folder / "nested.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    mixer = model_of(folder)["mixer"]
    changed(folder, model=model_of(folder, mixer={**mixer, "_target_": "nested.Outer.Own"}))
    with pytest.raises(UserError, match=r"add --trust nested\.Outer$"):
        load(folder)
    with pytest.raises(UserError, match=r"add --trust nested$"):
        load(folder, trusted=["nested.Outer"])
    load(folder, trusted=["nested"])


def test_moved_code_is_found_everywhere_in_an_older_model(folder):
    (old, new), (other_old, other_new) = MOVED.items()
    changed(folder, model=model_of(folder, mixer={"encoding": {"_target_": old}, "parts": [{"_target_": other_old}]}))
    mixer = read_config(folder)["model"]["mixer"]
    assert mixer == {"encoding": {"_target_": new}, "parts": [{"_target_": other_new}]}


def test_of_several_networks_of_a_model_its_first_run_on_all_images_has_its_name(tmp_path):
    first = "table1/sa_quadratic/mini-modern/frac1/seed0"
    for name in (first, first.replace("frac1", "frac0.1"), first.replace("seed0", "seed1")):
        (tmp_path / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "weights" / f"{name}.safetensors").touch()
    assert find_run("sa_quadratic", tmp_path) == tmp_path / "runs" / first


def test_code_hidden_from_the_list_of_targets_does_not_run(folder):
    made = folder / "made"
    inner = {"_target_": "os.mkdir", "path": str(made)}
    for hidden in (
        {"padding": f"${{oc.create:{{_target_:os.mkdir,path:{made}}}}}"},
        {"_args_": [f"${{oc.create:{{_target_:os.mkdir,path:{made}}}}}"]},
        {"_args_": [{"_target_": "attnconv.models.build.import_target", "name": "os.mkdir"}]},
        {"_args_": [{"_target_": "attnconv.models.build.build_model", "node": inner}]},
    ):
        changed(folder, model=model_of(folder, mixer=model_of(folder)["mixer"] | hidden))
        with pytest.raises(UserError, match=r"can run code: write its value|is code from outside this package"):
            load(folder)
        changed(folder, model=model_of(folder, mixer={"_target_": "attnconv.mixers.convolution.Convolution"}))
    mixer, text = "_target_: attnconv.mixers.convolution.Convolution", (folder / "config.yaml").read_text()
    pairs = f"{mixer}\n    _args_: !!pairs [a: {{_target_: os.mkdir, path: {made}}}]"
    (folder / "config.yaml").write_text(text.replace(mixer, pairs))
    with pytest.raises(UserError, match=r"_target_=os\.mkdir is code"):
        load(folder)
    assert not made.exists()


def test_loading_draws_no_random_numbers_of_the_caller(folder):
    def draws():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    before = draws()
    load(folder)
    assert draws() != before
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    expected = draws()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    load(folder)
    assert draws() == expected


def test_other_files_among_committed_weights_are_ignored(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/foo.safetensors").touch()
    with pytest.raises(UserError, match="results/weights is empty"):
        find_run("foo", tmp_path)


def test_unusable_arguments_are_named(folder):
    for arguments, complaint in (
        ({"weights": 5}, "weights must be a path, not 5"),
        ({"weights": ""}, "weights is empty"),
        ({"root": ""}, "root is empty"),
        ({"run": "x" * 5000}, "x+ cannot be the path of a run: File name too long"),
        *(({"trusted": names}, "trusted must be a list of names of modules") for names in (3, [3], [None])),
    ):
        with pytest.raises(UserError, match=complaint):
            load(**{"run": folder} | arguments)


def test_a_hint_looks_into_few_folders(monkeypatch, tmp_path):
    outputs = tmp_path / "outputs"
    for seed in range(3):
        (outputs / f"a/b/mini/frac1/seed{seed}/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"it contains the runs {outputs}/a/b/mini/frac1/seed0 and 2 more"):
        load(outputs)
    monkeypatch.setattr("attnconv.runs.load.LOOKED_INTO", 7)
    with pytest.raises(UserError, match=r"seed0 and 1 more"):
        load(outputs)
