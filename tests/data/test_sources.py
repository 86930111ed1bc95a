"""Reading data from arrays, the CIFAR-10 archive or a download, and the errors if this fails."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.datasets import CIFAR10

from attnconv.config import DataConfig
from attnconv.data.root import ARRAYS
from attnconv.data.sources import load_source, load_test
from attnconv.errors import DataError, UserError
from conftest import REPOSITORY

CPU = torch.device("cpu")


def config(root, **options):
    source = "arrays" if Path(root, "train_images.npy").exists() else "cifar10"
    return DataConfig(name="x", source=options.pop("source", source), root=str(root), **options)


def test_arrays_of_another_data_set_are_not_called_cifar10(arrays):
    with pytest.raises(DataError, match="does not hold CIFAR-10, which has 32x32x3 pixels"):
        load_source(config(arrays, source="cifar10"), CPU)


def test_arrays_are_read_and_hashed(arrays):
    source = load_source(config(arrays), CPU)
    assert source.train.images.shape == (40, 8, 8, 3)
    assert (source.classes, source.origin) == (4, f"arrays in {arrays}")
    labels = np.load(arrays / "train_labels.npy")
    labels[:4] = labels[:4][::-1]
    np.save(arrays / "train_labels.npy", labels)
    assert load_source(config(arrays), CPU).sha256 != source.sha256


def test_hash_does_not_depend_on_the_integer_type(arrays):
    before = load_source(config(arrays), CPU).sha256
    np.save(arrays / "train_labels.npy", np.load(arrays / "train_labels.npy").astype(np.uint8))
    assert load_source(config(arrays), CPU).sha256 == before


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("train_images", lambda a: a.astype(np.float32), "must be uint8 .*; scale values to 0..255"),
        ("train_images", lambda a: a.astype(np.uint16), "must be uint8 .*; convert values in 0..255"),
        ("train_images", lambda a: a.astype(np.int8), r"must be uint8 .*; use \.view\('uint8'\) if"),
        ("train_images", lambda a: a[..., 0], "; add an axis of channels"),
        ("train_images", lambda a: np.concatenate([a, a[..., :1]], -1), "; drop the alpha channel"),
        ("train_images", lambda a: a[..., :2], "must be uint8 N x H x W x 3"),
        ("train_images", lambda a: a.transpose(0, 3, 1, 2), r"; put channels last: images\.transpose"),
        ("train_labels", lambda a: a[:-1], "must be 40 integers"),
        ("train_labels", lambda a: a.astype(float), r"must be 40 integers.*; use labels\.astype\(int\)"),
        ("train_labels", lambda a: a[:, None], r"; use labels\[:, 0\]"),
        ("train_labels", lambda a: np.eye(4)[a], r"one-hot, use labels\.argmax\(1\)"),
        ("train_labels", lambda a: a - 1, r"0\.\.classes-1"),
        ("train_labels", lambda a: a + 1, "class 0 has no training image.* labels start at 0: subtract 1"),
        ("test_labels", lambda a: a + 1, "test labels go up to 4, train labels only to 3"),
        ("test_images", lambda a: a[:, :4], "differ in shape"),
        ("train_images", lambda a: a[:, :, :0], "have no pixels"),
        ("train_labels", lambda a: a.astype("m8[s]"), "must be 40 integers"),
    ],
)
def test_malformed_arrays_are_refused(arrays, name, change, complaint):
    np.save(arrays / f"{name}.npy", change(np.load(arrays / f"{name}.npy")))
    with pytest.raises(DataError, match=complaint):
        load_source(config(arrays), CPU)


def test_a_missing_array_is_named_and_what_may_be_meant(arrays):
    (arrays / "test_labels.npy").rename(arrays / "Test_labels.npy")
    with pytest.raises(DataError, match=rf"lacks test_labels\.npy: .*numpy\.save; {arrays} has Test_labels\.npy$"):
        load_source(config(arrays), CPU)


@pytest.mark.parametrize("source", ["arrays", "cifar10"])
def test_links_to_nothing_are_not_missing_arrays(tmp_path, source):
    for name in ARRAYS:
        (tmp_path / f"{name}.npy").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"train_images\.npy is a link to "):
        load_source(config(tmp_path, source=source), CPU)


def test_a_folder_and_a_pipe_are_not_missing_arrays(arrays):
    path = arrays / "test_labels.npy"
    for make, kind in ((Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe")):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(UserError, match=rf"test_labels\.npy {kind}"):
            load_source(config(arrays), CPU)


def test_a_truncated_array_is_named(arrays):
    path = arrays / "train_images.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train_images\.npy is not a readable"):
        load_source(config(arrays), CPU)


def npy(header):
    header += " " * 20 + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty"),
        (b"1,2\n", "it is text, beginning '1,2'"),
        (pickle.dumps([1]), "it is a pickle, which can run any code"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"PK\3\4" + bytes(50), "it is a zip archive"),
        (b"\x93NUMPY\x09\x00" + bytes(50), "not \\(9, 0\\)"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}"), "Object arrays cannot be loaded"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9, 9, 3)}"), "file seems not fully written"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000, 32, 32, 3)}"), "Unable to allocate"),
        (npy("{'descr': '|zz', 'fortran_order': False, 'shape': (3,)}"), "not a valid dtype"),
        (npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30},)}}"), "train|test_images"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 4)}"), "train|test_images"),
        (npy("("), "EOF in multi-line statement"),
        (npy(" " * 20_000), "Header info length"),
    ],
)
def test_files_that_are_not_arrays_give_a_one_line_error(arrays, content, complaint):
    (arrays / "test_images.npy").write_bytes(content)
    with pytest.raises(DataError, match=complaint) as refused:
        load_source(config(arrays), CPU)
    assert "\n" not in str(refused.value)
    assert "test_images.npy" in str(refused.value)


def test_error_without_data_or_network_lists_three_solutions(tmp_path, monkeypatch):
    # An address that cannot be resolved simulates a machine without a network.
    monkeypatch.setattr(CIFAR10, "url", "http://cifar.invalid/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match=r"Three solutions: \(1\) .*\(2\) .*\(3\) set data\.root"):
        load_source(config(tmp_path / "nowhere"), CPU)
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / CIFAR10.filename).write_bytes(b"half a download")
    with pytest.raises(DataError, match=r"is damaged: its md5 is not c58f30108f718f92721af3b95e74349a"):
        load_source(config(tmp_path), CPU)


def test_original_cifar10_archive_is_read(tmp_path, monkeypatch):
    """Write an archive in CIFAR-10's layout, with ten images per batch, and patch the expected checksums to match."""
    draw = np.random.default_rng(0)
    archive = tmp_path / CIFAR10.filename
    batches = {name: draw.integers(0, 256, (10, 3072)).astype(np.uint8) for name, _ in CIFAR10.train_list}
    batches["test_batch"] = draw.integers(0, 256, (10, 3072)).astype(np.uint8)
    files = {n: pickle.dumps({"data": d, "labels": list(range(10))}) for n, d in batches.items()}
    files["batches.meta"] = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    def md5(content):
        return hashlib.md5(content).hexdigest()

    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(files[name])] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(files["test_batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(files["batches.meta"])})

    unpack = torchvision.datasets.utils.extract_archive

    def unpacked(*arguments):
        unpack(*arguments)
        assert not (tmp_path / CIFAR10.base_folder).exists(), "other processes see only whole files"

    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", unpacked)
    source = load_source(config(tmp_path), CPU)
    assert source.train.images.shape == (50, 32, 32, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CIFAR10.base_folder, CIFAR10.filename]
    archive.unlink()
    assert load_source(config(tmp_path), CPU).sha256 == source.sha256, "from the unpacked files"
    # The archive stores rows of red, then green, then blue.
    first = batches["data_batch_1"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(source.train.images[0], first)


def test_digits_are_scaled_to_255_and_all_used():
    source = load_source(config("", source="digits"), CPU)
    assert source.train.images.shape[1:] == (8, 8, 1)
    assert len(source.train.labels) + len(source.test.labels) == 1797
    assert (source.classes, source.train.images.max()) == (10, 255)


@pytest.mark.cifar
def test_real_cifar10_is_complete():
    root = REPOSITORY / "data" / "cifar10"
    if not (root / "train_images.npy").exists():
        pytest.skip("no CIFAR-10 arrays in data/cifar10")
    source = load_source(config(root), CPU)
    assert source.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(source.train.labels).tolist() == [5000] * 10
    mean = source.train.images.reshape(-1, 3).mean(0) / 255
    assert mean == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-6)


def test_single_class_labels_are_refused(arrays):
    for split in ("train", "test"):
        np.save(arrays / f"{split}_labels.npy", np.load(arrays / f"{split}_labels.npy") * 0)
    with pytest.raises(DataError, match="all training labels are 0; classification needs at least two classes"):
        load_source(config(arrays, source="arrays"), CPU)


def test_a_file_with_a_second_array_is_refused(arrays):
    with (arrays / "train_labels.npy").open("ab") as file:
        np.save(file, np.zeros(3, np.int64))
    with pytest.raises(DataError, match=r"train_labels\.npy holds more than one array: join them with np\.concatenate"):
        load_source(config(arrays, source="arrays"), CPU)


def test_test_images_of_a_folder_are_never_those_of_a_data_set_without_files(tmp_path):
    np.save(tmp_path / "test_images.npy", np.zeros((5, 8, 8, 1), np.uint8))
    for source in ("digits", "pairs"):
        with pytest.raises(DataError, match=r"has test_images\.npy, but no test_labels\.npy"):
            load_test(config(tmp_path, source=source), tmp_path)
