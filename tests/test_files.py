"""Missing or damaged input files: each error takes one line and names the file."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from attnconv.files import (
    FileError,
    append_json_line,
    kind_of,
    read_csv,
    read_json,
    read_json_lines,
    require_targets,
    write_whole,
)
from attnconv.report.examined import read_examined
from attnconv.report.page.images import read_images
from attnconv.report.runs_table import read_runs
from attnconv.runs.estimate import Work
from attnconv.runs.records import RESULT_KEYS
from attnconv.runs.status import noted_cells, read_state

CONFIG = "name: x\nmodel: {name: x}\nscale: {name: x}\nrecipe: {name: x}\ndata: {fraction: 1}\nseed: 0\n"
JSON, LINES, CSV = "x.json", "x.jsonl", "x.csv"


def read(path):
    """Read a table with the reader for its type, as the scripts do."""
    if path.name == JSON:
        return read_json(path, ["dirty"])
    return read_json_lines(path, ["part"]) if path.name == LINES else read_csv(path, ["model", "seed"])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (JSON, b"", "is empty (0 bytes)"),
        (JSON, b'{"dirty": fal', "has unexpected content (Expecting value: line 1 column 11"),
        (JSON, b"[1]", "found a list instead of an object"),
        (JSON, b"[" * 100_000, "has unexpected content (maximum recursion depth"),
        (JSON, b"{}", "lacks 'dirty'"),
        (JSON, b"\xff\xfe\x00", "is of an unknown type"),
        (JSON, b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (JSON, b"<html>", "is a web page"),
        (LINES, b'{"part": 1}\n{"par', "Unterminated string"),
        (LINES, b'{"part": 1}\n\n', "Expecting value"),
        (LINES, b"<<<<<<< HEAD\n", "Expecting value"),
        (LINES, b'{"x": 1}\n', "lacks 'part'"),
        (CSV, b"model,seed\n", "the file has no rows"),
        (CSV, b"model\nx\n", "lacks 'seed'"),
        (CSV, b"model,seed\nx\n", "row 1 has more or fewer cells than columns"),
        (CSV, b"model,seed\nx,1,2\n", "row 1 has more or fewer cells than columns"),
        (CSV, b'model,seed\n"x,1\n', "unexpected end of data"),
        (CSV, b"\x1f\x8b\x08\xff", "is compressed with gzip: unpack it first"),
    ],
)
def test_damaged_tables_are_one_line_errors_that_name_the_file(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path} ")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [JSON, LINES, CSV])
def test_tables_that_cannot_be_opened_are_errors(tmp_path, name):
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"run,format\nx,1\n", "lacks 'kept_out'"),
        (b"run,kept_out,format\nx,,one\n", "has unexpected content"),
        (b"run,kept_out,format\nx,1\ny,1,2,3,4\n", "has unexpected content"),
        (b"\x89HDF\r\n\x1a\n\xff", "is an HDF5 file"),
    ],
)
def test_a_damaged_runs_csv_is_a_one_line_error(tmp_path, content, complaint):
    (tmp_path / "runs.csv").write_bytes(content)
    with pytest.raises(FileError, match=complaint) as refused:
        read_runs(tmp_path / "runs.csv")
    assert "\n" not in str(refused.value)


def test_damaged_probe_and_sweep_files_are_named(tmp_path):
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/probe.json").write_text("{")
    with pytest.raises(FileError, match=r"runs/x/probe\.json has unexpected content"):
        read_examined(tmp_path, [{"run": "x"}], "probe.json")
    (tmp_path / ".sweeps/now").mkdir(parents=True)
    (tmp_path / ".sweeps/now/cells.json").write_text('[{"place": 1}]')
    with pytest.raises(FileError, match=r"cells\.json lacks 'folder'"):
        noted_cells(tmp_path)
    for wrong in ({"work": {}}, {"work": []}, {"work": WORK | {"images": "9"}}, {"reason": 5}):
        (tmp_path / ".sweeps/now/cells.json").write_text(json.dumps([{"folder": "x", "work": WORK} | wrong]))
        with pytest.raises(FileError, match=r"cells\.json has unexpected content"):
            noted_cells(tmp_path)
    (tmp_path / ".sweeps/later").mkdir()
    (tmp_path / ".sweeps/later/cells.json").write_text(json.dumps([{"folder": "x", "work": WORK}]))
    errors = []
    assert list(noted_cells(tmp_path, errors)) == [tmp_path / "x"], "status.py shows the other sweeps"
    assert ["now/cells.json" in error for error in errors] == [True]


def test_links_and_permissions_stay(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_damaged_npz_files_are_one_line_errors(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, pixels=np.zeros(9))
    path.write_bytes(path.read_bytes().replace(b"pixels.npy", b"PIXELS.npy", 1))
    with pytest.raises(FileError, match=r"images\.npz is damaged \(File name in directory"):
        read_images(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"pixels": np.zeros((3, 8, 8, 3))}, r"its pixels are \(3, 8, 8, 3\) of float64, not"),
        ({"labels": np.array([0, 1, 2])}, "its labels are not one whole number per image"),
        ({"places": np.array([0, 1])}, "its places are not one whole number per image"),
        ({"places": np.array([0, 1, -2])}, "its places are not one whole number per image"),
    ],
)
def test_impossible_arrays_of_images_are_named(tmp_path, change, complaint):
    whole = {"pixels": np.zeros((3, 8, 8, 3), np.uint8), "labels": np.array([0, 1, 1]), "places": np.arange(3),
             "class_names": np.array(["a", "b"]), "data_hash": "0"}  # fmt: skip
    np.savez(tmp_path / "images.npz", **whole)
    assert read_images(tmp_path / "images.npz").shape == (3, 8, 8)
    np.savez(tmp_path / "images.npz", **whole | change)
    with pytest.raises(FileError, match=complaint):
        read_images(tmp_path / "images.npz")


def test_a_line_is_appended_after_a_torn_one(tmp_path):
    path = tmp_path / "x.jsonl"
    append_json_line(path, {"part": 1})
    path.write_text(path.read_text().rstrip())
    append_json_line(path, {"part": 2})
    assert read_json_lines(path) == [{"part": 1}, {"part": 2}]
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        append_json_line(Path("/dev/full"), {"part": 1})


def test_pipes_and_devices_are_written_in_place(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_targets(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"content")
    assert os.read(reader, 99) == b"content"
    assert pipe.is_fifo()
    os.close(reader)
    write_whole(Path("/dev/null"), b"content")
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write all files")
def test_a_file_without_write_permission_is_refused(tmp_path):
    (tmp_path / "kept").touch(0o444)
    with pytest.raises(FileError, match="kept cannot be written: you have no permission"):
        require_targets(tmp_path / "kept")


def test_text_detection_allows_a_truncated_last_character():
    assert kind_of("ö".encode()[:1] + b"x").startswith("of an unknown type")
    assert kind_of(b"x" + "ö".encode()[:1]) == "text, beginning 'x'"


WORK = vars(Work("conv3x3", "mini", "bf16", 9.0))


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.yaml", "epochs: 2\n", "config.yaml is not the configuration of a run"),
        ("config.yaml", "epochs: 0\n" + CONFIG, "config.yaml is not the configuration of a run (epochs: 0)"),
        ("config.yaml", "", "config.yaml is not the configuration of a run"),
        ("config.yaml", "a: [", "config.yaml has unexpected content"),
        ("config.yaml", f"epochs: 1\n{CONFIG.replace('x', '../x')}", "config.yaml has a name that is not NAME/MODEL"),
        ("result.json", "", "result.json is empty (0 bytes)"),
        ("result.json", "{}", "result.json lacks 'status'"),
        (
            "result.json",
            '{"status": "fine"}',
            "result.json has the status 'fine', not one of done, failed, interrupted",
        ),
        ("result.json", '{"status": "done", "format": "x"}', "result.json has format 'x', which is not a whole number"),
        ("result.json", '{"status": "done", "cpu_seconds": "12"}', "result.json has cpu_seconds '12'"),
        ("result.json", '{"status": "done", "cpu": {}}', "result.json has cpu {}"),
        ("result.json", '{"status": "done", "dirty": "no"}', "result.json has dirty 'no'"),
        ("result.json", '{"status": "done", "commit": 5}', "result.json has commit 5"),
        ("result.json", '{"status": "done"}', "result.json lacks name, model, recipe"),
        (
            "metrics.jsonl",
            "1\n",
            "metrics.jsonl has unexpected content (found a int instead of an object)",
        ),
        (
            "metrics.jsonl",
            "[" * 100_000 + "\n",
            "metrics.jsonl has unexpected content (maximum recursion depth",
        ),
    ],
)
def test_invalid_files_in_a_run_folder_are_reported_as_damaged(tmp_path, file, content, complaint):
    folder = tmp_path / "x/frac1/seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("epochs: 1\n" + CONFIG)
    result = {"status": "done", **dict.fromkeys(RESULT_KEYS, "x"), "fraction": 1.0, "seed": 0, "test_acc": 0.5}
    (folder / "result.json").write_text(json.dumps(result | {"versions": {}, "dirty": False}))
    (folder / file).write_text(content)
    state = read_state(folder)
    assert state.status == "damaged"
    assert state.detail.startswith(complaint)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits of file sizes")
def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"first": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_json_line(path, {"second": "a" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
