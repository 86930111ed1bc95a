"""External weight files: common formats are read, others give one-line errors, and no code in a file is executed."""

import argparse
import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from attnconv.files import FileError
from attnconv.models.weight_files import load_weights


def network(width=4, classes=10):
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(classes)).eval()


@pytest.fixture
def theirs():
    model = network()
    model(torch.zeros(1, 3, 5, 5))
    model[1].running_mean.uniform_()
    return model


@pytest.fixture
def ours():
    model = network()
    model(torch.zeros(1, 3, 5, 5))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    return model


def equal(first, second):
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "epoch": 3},
        lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}},
        lambda state: {"net": prefixed(state, "module."), "acc": 93.1},
        lambda state: {"checkpoint": {"model_state_dict": state}, "loss": torch.tensor(0.3)},
        lambda state: {"state_dict": prefixed(state, "_orig_mod."), "args": argparse.Namespace(lr=0.1)},
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
        lambda state: {"params": state},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
        lambda state: {name: value.double() for name, value in state.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_in_all_common_wrappers(tmp_path, theirs, ours, wrap, zipped):
    torch.save(wrap(theirs.state_dict()), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    load_weights(ours, tmp_path / "x.pth", 10)
    assert equal(ours, theirs)
    assert all(tensor.dtype == torch.float32 for tensor in ours.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_half_precision_weights_load_into_a_float32_network(tmp_path, theirs, ours, kind, name):
    theirs.to(kind)
    save_file(theirs.state_dict(), tmp_path / name)  # a file's type comes from its content, not its name
    load_weights(ours, tmp_path / name, 10)
    assert ours[0].weight.dtype == torch.float32
    assert torch.equal(ours[0].weight, theirs[0].weight.float())


def test_choice_between_two_sets_of_weights_is_reported(tmp_path, theirs, ours, capsys):
    averaged = {name: torch.zeros_like(tensor) for name, tensor in theirs.state_dict().items()}
    torch.save({"model_ema": averaged, "model": theirs.state_dict()}, tmp_path / "x.pt")
    load_weights(ours, tmp_path / "x.pt", 10)
    assert equal(ours, theirs)
    assert "also has fitting weights in model_ema; using model" in capsys.readouterr().err


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def numpy_saved(write, *arrays):
    buffer = io.BytesIO()
    write(buffer, *arrays)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights"))
    return buffer.getvalue()


def scripted(model):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 5, 5), check_trace=False), buffer)
    return buffer.getvalue()


def altered(model):
    content, numbers = torch_saved(model.state_dict()), model[0].weight.detach().numpy().tobytes()
    assert content.count(numbers) == 1
    return content.replace(numbers, numbers[::-1])


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def other(width=4, classes=10):
    model = network(width, classes)
    model(torch.zeros(1, 3, 5, 5))
    return model.state_dict()


def with_value(state, value):
    return state | {"0.weight": torch.full_like(state["0.weight"], value)}


KINDS = {
    "a whole module": (lambda m, _: torch_saved(m), "holds pickled objects (torch.nn.modules.container.Sequential)"),
    "a module in a dictionary": (lambda m, _: torch_saved({"model": m}), "save only the weights: torch.save(model."),
    "a malicious archive": (lambda m, trap: torch_saved(m.state_dict() | {"x": Malicious(trap)}), "posix.mkdir"),
    "a malicious old file": (
        lambda m, trap: torch_saved({"x": Malicious(trap)}, _use_new_zipfile_serialization=False), "posix.mkdir"
    ),
    "a malicious pickle": (lambda m, trap: pickle.dumps(Malicious(trap)), "is a pickle, which can run any code"),
    "numbers of NumPy in torch.save": (lambda m, _: torch_saved(m.state_dict() | {"x": np.float64(1)}), "numpy"),
    "an empty file": (lambda m, _: b"", "is empty (0 bytes)"),
    "half a torch.save": (lambda m, _: torch_saved(m.state_dict())[:2000], "is damaged or cut off"),
    "half an old torch.save": (
        lambda m, _: torch_saved(m.state_dict(), _use_new_zipfile_serialization=False)[:-50], "is damaged or cut off"
    ),
    "the start of an old torch.save": (
        lambda m, _: torch_saved(m.state_dict(), _use_new_zipfile_serialization=False)[:90], "is damaged or cut off"
    ),
    "altered numbers": (lambda m, _: altered(m), "is damaged"),
    "half a safetensors": (lambda m, _: save(m.state_dict())[:-9], "is damaged or cut off"),
    "the start of a safetensors": (lambda m, _: save(m.state_dict())[:30], "is damaged or cut off"),
    "TorchScript": (lambda m, _: scripted(m), "is a TorchScript archive"),
    "a NumPy array": (lambda m, _: numpy_saved(np.save, np.zeros(3)), "is a NumPy array"),
    "NumPy arrays": (lambda m, _: numpy_saved(np.savez, np.zeros(3)), "is an archive of NumPy arrays"),
    "Keras": (lambda m, _: zipped(**{"config.json": "{}", "model.weights.h5": "x"}), "is a Keras model"),
    "HDF5": (lambda m, _: b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as Keras writes"),
    "ONNX": (lambda m, _: b"\x08\x07\x12\x07pytorch\x1a\x032.1", "is a protocol buffer, as ONNX and TensorFlow write"),
    "TensorFlow Lite": (lambda m, _: b"\x1c\0\0\0TFL3" + bytes(99), "is a TensorFlow Lite model"),
    "a zip archive": (lambda m, _: zipped(readme="x"), "a zip archive that torch.save did not write (it holds readme)"),
    "a Git LFS pointer": (
        lambda m, _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"
    ),
    "a web page": (lambda m, _: b"<!DOCTYPE html>\n<html><head>", "is a web page"),
    "text": (lambda m, _: "größe,1\n".encode(), "is text, beginning 'größe,1'"),
    "an index of shards": (lambda m, _: b'{"metadata": {}}', "is text, beginning '{\"metadata\": {}}'"),
    "gzip": (lambda m, _: gzip.compress(torch_saved(m.state_dict())), "is compressed with gzip: unpack it first"),
    "tar": (lambda m, _: tarred(), "is a tar archive"),
    "zeros": (lambda m, _: bytes(5000), "is filled with zeros"),
    "noise": (lambda m, _: b"\xfe\xed\xfa\xce" * 99, "is of an unknown type (it begins with the bytes fe ed fa ce"),
    "a list": (lambda m, _: torch_saved([1, 2]), "holds a list, not the weights of a network"),
    "a tensor": (lambda m, _: torch_saved(torch.zeros(2)), "holds a Tensor, not the weights of a network"),
    "settings alone": (lambda m, _: torch_saved({"lr": 1, "epoch": 2}), "holds a dictionary of lr, epoch, not"),
    "an optimizer": (lambda m, _: torch_saved(OPTIMIZER), "holds the state of an optimizer"),
    "a wrapped optimizer": (lambda m, _: torch_saved({"opt": OPTIMIZER}), "holds the state of an optimizer"),
    "nan": (lambda m, _: torch_saved(with_value(m.state_dict(), np.nan)), "nan or inf in 1 of 9 tensors (0.weight)"),
    "too large for float32": (
        lambda m, _: torch_saved({k: v.double() * 1e300 for k, v in m.state_dict().items()}), "has nan or inf in "
    ),
    "quantized": (
        lambda m, _: torch_saved(m.state_dict() | {"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)}),
        "0.weight has type int8",
    ),
    "no values": (lambda m, _: torch_saved(m.to("meta").state_dict()), "has no plain values"),
    "other classes": (
        lambda m, _: torch_saved(other(classes=100)), "the file's head has 100 classes, and this network has 10"
    ),
    "another width": (
        lambda m, _: torch_saved(other(width=8)),
        "holds another network: 1 of this network's 8 tensors match; the shape of 0.weight, 0.bias and 5 more differs: "
        "(8, 3, 3, 3) in the file, (4, 3, 3, 3) in the network",
    ),
    "another network": (
        lambda m, _: torch_saved({"state_dict": {"stem.weight": torch.zeros(3)}}),
        "(state_dict) holds another network: 0 of this network's 8 tensors match; missing 0.weight, 0.bias and 6 "
        "more; unexpected stem.weight; choose the model",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_other_files_give_a_one_line_error_and_are_never_executed(tmp_path, theirs, ours, kind):
    make, complaint = KINDS[kind]
    path, trap = tmp_path / "x.pt", tmp_path / "executed"
    path.write_bytes(make(theirs, trap))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(FileError) as refused:
        load_weights(ours, path, 10)
    assert str(path) in str(refused.value)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not trap.exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_unreadable_paths_are_named(tmp_path, ours, monkeypatch):
    (tmp_path / "resnet18.pt").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in (
        ("resnet81.pt", f"does not exist; {tmp_path} has resnet18.pt"),
        ("nowhere/x.pt", f"does not exist; the folder {tmp_path}/nowhere does not exist"),
        ("", "is a folder, not a file"),
        ("pipe", "is a pipe or a device, not a file"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        with pytest.raises(FileError) as refused:
            load_weights(ours, tmp_path / name, 10)
        assert complaint in str(refused.value)

    # Root can read every file, so a failing system call simulates a missing permission.
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(FileError, match="cannot be read: Permission denied"):
        load_weights(ours, tmp_path / "resnet18.pt", 10)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path, ours):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(2**43)  # sparse: it takes no space
    with pytest.raises(FileError, match=r"has 8,796 GB, but this machine has \d+ GB of memory"):
        load_weights(ours, path, 10)
