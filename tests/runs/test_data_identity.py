"""A run has one data set, identified by a hash of its files and not by its path."""

import os
import shutil

import pytest
import torch

from attnconv.config import DataConfig
from attnconv.data.sources import _hash_of_files, data_hash, load_source
from attnconv.errors import AlreadyDone, DataError, RunFolderError
from attnconv.report.collect import gather
from attnconv.run import run
from attnconv.runs.folder import RunFolder, run_folder_path
from attnconv.runs.load import load
from conftest import write_arrays


@pytest.fixture
def copy(arrays, tmp_path):
    """The same arrays in another folder."""
    return shutil.copytree(arrays, tmp_path / "scratch/c10")


@pytest.fixture
def other(tmp_path):
    """Different arrays."""
    write_arrays(tmp_path / "other", seed=1)
    return tmp_path / "other"


CPU = torch.device("cpu")


def arrays_in(folder):
    return DataConfig(name="arrays", source="arrays", root=str(folder))


def test_an_unfinished_run_resumes_with_a_copy_of_its_data(tiny, copy, interrupted):
    run(tiny("name=undisturbed"))
    folder = interrupted(tiny())
    (folder / "result.json").unlink()  # as after a kill
    assert run(tiny(f"data.root={copy}"))["status"] == "done"
    for file in ("metrics.jsonl", "predictions.npy"):
        assert (folder / file).read_bytes() == (run_folder_path(tiny("name=undisturbed")) / file).read_bytes()


def test_a_finished_run_is_recognized_with_any_path_to_its_data(tiny, arrays, copy, monkeypatch):
    run(tiny("epochs=1"))
    monkeypatch.chdir(arrays.parent)
    for root in (arrays.name, f"{arrays}/", f"{copy}/../c10", copy):
        with pytest.raises(AlreadyDone):
            run(tiny("epochs=1", f"data.root={root}"))
    with pytest.raises(DataError, match="the folder nowhere does not exist"):
        run(tiny("epochs=1", "data.root=nowhere"))


def hashes(*folders):
    """Return the first twelve digits of the hash of the data in each folder, and its path."""
    return " -> ".join(f"{load_source(arrays_in(folder), CPU).sha256[:12]} in {folder}" for folder in folders)


@pytest.mark.parametrize("older", [False, True])
def test_different_data_is_refused_by_its_hash(tiny, arrays, other, interrupted, older):
    folder = interrupted(tiny("epochs=2"))
    if older:
        (folder / "data.json").unlink()  # older versions kept the hash only in result.json
    with pytest.raises(RunFolderError) as refused:
        run(tiny(f"data.root={other}"))
    assert f"holds an unfinished run of another configuration (data: {hashes(arrays, other)})" in str(refused.value)
    run(tiny())
    if older:
        (folder / "data.json").unlink()
    with pytest.raises(RunFolderError) as refused:
        run(tiny(f"data.root={other}"))
    assert not isinstance(refused.value, AlreadyDone)
    assert f"holds a finished run of another configuration (data: {hashes(arrays, other)})" in str(refused.value)


def test_data_changed_in_place_is_refused(tiny, arrays, other, interrupted):
    interrupted(tiny())
    old = hashes(arrays)
    shutil.copytree(other, arrays, dirs_exist_ok=True)
    with pytest.raises(RunFolderError) as refused:
        run(tiny())
    assert f"(data: {old} -> {hashes(arrays)})" in str(refused.value)


@pytest.fixture
def usual(tmp_path, monkeypatch):
    """Write arrays to the default folder of CIFAR-10, and return the overrides of a run on them."""
    write_arrays(tmp_path / "data/cifar10", side=32, classes=10)
    monkeypatch.chdir(tmp_path)
    return "epochs=1", "data=cifar10", "data.root=data/cifar10"


def test_runs_on_replaced_data_count_neither_as_finished_nor_as_collected(tiny, tmp_path, usual, start_sweep):
    run(tiny(*usual))
    gather(tmp_path / "outputs", tmp_path / "results")
    again = tiny(*usual, f"collected={tmp_path}/results", f"output={tmp_path}/new")
    assert start_sweep(again) == []
    old = hashes(tmp_path / "data/cifar10")
    write_arrays(tmp_path / "data/cifar10", side=32, classes=10, seed=1)
    assert start_sweep(again) == [0]
    for begin in (run, start_sweep):
        with pytest.raises(RunFolderError) as refused:
            begin(tiny(*usual))
        assert f"a finished run of another configuration (data: {old} -> {hashes(tmp_path / 'data/cifar10')})" in str(
            refused.value
        )


def test_missing_data_in_the_default_folder_still_matches_finished_runs(tiny, tmp_path, usual, start_sweep):
    run(tiny(*usual))
    gather(tmp_path / "outputs", tmp_path / "results")
    shutil.rmtree("data")
    collected = (f"collected={tmp_path}/results", f"output={tmp_path}/new")
    for where in ((), collected):
        assert start_sweep(tiny(*usual, *where)) == []
    with pytest.raises(DataError):
        start_sweep(tiny(*usual, *collected, f"data.root={tmp_path}/elsewhere"))


def test_finished_runs_skip_hashing_if_file_times_are_unchanged(tiny, arrays, copy, monkeypatch):
    run(tiny("epochs=1"))
    folder = RunFolder(tiny("epochs=1"))
    with pytest.raises(AlreadyDone):
        folder.check()
    os.utime(arrays / "test_labels.npy")  # its time has changed, so it must be read again
    RunFolder(tiny("epochs=1")).check()
    with pytest.raises(AlreadyDone):
        run(tiny("epochs=1"))


def test_without_a_recorded_hash_the_path_identifies_the_data(tiny, arrays, copy, interrupted):
    folder = interrupted(tiny())
    for file in ("data.json", "result.json"):  # an older version was killed
        (folder / file).unlink()
    with pytest.raises(RunFolderError, match=rf"\(data\.root: {arrays} -> {copy}\)"):
        run(tiny(f"data.root={copy}"))
    assert run(tiny())["status"] == "done"


def test_a_sweep_matches_runs_by_data_hash_and_hashes_the_data_once(tiny, tmp_path, copy, other, start_sweep):
    seeds = [tiny("epochs=1", f"seed={seed}") for seed in (0, 1)]
    assert start_sweep(*seeds) == [0, 1]
    gather(tmp_path / "outputs", tmp_path / "results")
    elsewhere = ["epochs=1", f"data.root={copy}"]
    read = _hash_of_files.cache_info().misses
    assert start_sweep(*(tiny(*elsewhere, f"seed={seed}") for seed in (0, 1, 2))) == [2]
    elsewhere += [f"collected={tmp_path}/results", f"output={tmp_path}/new"]
    assert start_sweep(*(tiny(*elsewhere, f"seed={seed}") for seed in (0, 1))) == []
    assert _hash_of_files.cache_info().misses == read + 1

    with pytest.raises(RunFolderError, match=rf"another configuration \(data: \w+ in {tmp_path}/arrays -> \w+ in "):
        start_sweep(tiny("epochs=1", f"data.root={other}"))
    assert start_sweep(tiny(*elsewhere, f"data.root={other}")) == [0], "it is not the collected one"


def test_a_changed_file_is_hashed_again(other, copy):
    first, settings = data_hash(arrays_in(copy)), os.stat(copy / "train_images.npy")
    shutil.copy(other / "train_images.npy", copy)
    os.utime(copy / "train_images.npy", ns=(0, settings.st_mtime_ns + 1))
    assert data_hash(arrays_in(copy)) != first


def test_a_trained_network_refuses_different_data(tiny, arrays, copy, other):
    run(tiny("epochs=1"))
    folder = run_folder_path(tiny())
    assert load(folder, root=str(copy)).data.origin == f"arrays in {copy}"
    with pytest.raises(RunFolderError) as refused:
        _ = load(folder, root=str(other)).data
    assert str(refused.value) == (
        f"{folder} was trained on other data (data: {hashes(arrays, other)}); name the folder of its own, or, to "
        "evaluate other test images, evaluate.py RUN --data FOLDER or evaluate(FOLDER)"
    )
