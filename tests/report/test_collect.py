"""Collecting run folders: complete, in a fixed order, reproducible, and without silent omissions."""

import csv
import errno
import itertools
import json
import math
import os
import shutil
from functools import partial

import numpy as np
import pytest

from attnconv.errors import RunFolderError, SweepIncomplete
from attnconv.report.collect import changing, gather
from attnconv.report.runs_table import kept_out, read_runs, tabulate
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.identity import differences
from attnconv.runs.load import read_run_config
from attnconv.sweeps.grid import Cell, run_cells
from conftest import tiny_below, write_arrays


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of four finished runs, an unfinished and a damaged one, and of their data."""
    place = tmp_path_factory.mktemp("made")
    write_arrays(place / "arrays")
    tiny = partial(tiny_below, place)
    for overrides in (
        ["seed=10"],
        ["seed=9"],
        ["seed=9", "data.fraction=0.5"],
        ["name=lr", "recipe.lr=0.1", "data.flip=true", "eval_mirrored=true", "data.holdout=0.2"],
        ["name=killed"],
        ["name=torn"],
    ):
        run(tiny(*overrides))
    (run_folder_path(tiny("name=killed")) / "result.json").unlink()
    (run_folder_path(tiny("name=torn")) / "metrics.jsonl").write_text("")
    return place


@pytest.fixture
def outputs(made, tmp_path):
    """A copy of these runs that a test may change."""
    return shutil.copytree(made / "outputs", tmp_path / "outputs")


def rows(results):
    with (results / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_become_table_rows_and_collecting_again_changes_nothing(made, outputs, tmp_path, tiny):
    results = tmp_path / "results"
    gathered = gather(outputs, results)
    assert len(gathered.added) == 4
    assert list(gathered.unfinished.values()) == ["unfinished, killed before it ended"]
    assert list(gathered.damaged.values()) == ["metrics.jsonl has 0 of 2 lines"]
    assert tabulate(results) == {}

    table = rows(results)
    assert [(row["name"], float(row["fraction"]), int(row["seed"])) for row in table] == [
        ("default", 0.5, 9),
        ("default", 1, 9),
        ("default", 1, 10),
        ("lr", 1, 0),
    ]
    assert [float(row["recipe.lr"]) for row in table] == [0.015, 0.015, 0.015, 0.1], "a setting that varies"
    assert "recipe.momentum" not in table[0], "one that does not"
    folder = run_folder_path(tiny("seed=10"))
    result = json.loads((folder / "result.json").read_text())
    for key in ("test_acc", "parameters", "flops_full", "seconds", "commit", "dirty", "device", "recipe", "scale"):
        assert table[2][key] == str(result[key] if result[key] is not None else ""), key
    assert float(table[2]["cpu_seconds"]) == result["cpu_seconds"]
    cpu = result["cpu"]
    assert table[2]["cpu_family"] == cpu["family"]
    assert table[2]["cpu_flags"] == " ".join(cpu["flags"])
    assert table[2]["cpu_threads"] == str(cpu["threads"])
    assert table[2]["torch"] == result["versions"]["torch"]
    assert table[2]["run"] == "default/conv3x3/mini-modern/frac1/seed10"

    kept = results / "runs" / table[2]["run"]
    assert (kept / "predictions.npy").read_bytes() == (folder / "predictions.npy").read_bytes()
    config = (kept / "config.yaml").read_text()
    assert "\noutput: outputs\n" in f"\n{config}", "not where it ran"
    assert str(made) not in config
    assert (folder / "config.yaml").read_text().count("\n") == config.count("\n")

    mirrored = json.loads((run_folder_path(tiny("name=lr")) / "result.json").read_text())
    for key in ("val_acc", "val_acc_mirrored", "test_acc", "test_acc_mirrored"):
        assert float(table[3][key]) == mirrored[key]

    before = files(results)
    again = gather(outputs, results)
    tabulate(results)
    assert again.added == []
    assert len(again.known) == 4
    assert files(results) == before


def test_collecting_adds_runs_and_replaces_a_run_of_the_same_name_only_on_request(tmp_path, tiny):
    results, one = tmp_path / "results", tmp_path / "outputs"
    run(tiny("seed=0"))
    gather(one, results)
    shutil.rmtree(one)
    run(tiny("seed=1"))
    run(tiny("seed=0", "recipe.lr=0.1"))
    gathered = gather(one, results)
    assert len(gathered.added) == 1
    assert list(gathered.other) == ["default/conv3x3/mini-modern/frac1/seed0"]
    tabulate(results)
    assert len(rows(results)) == 2
    assert "recipe.lr" not in rows(results)[0]
    assert len(gather(one / "default", results, replace=True).added) == 1, "a run has its name wherever it lies"
    tabulate(results)
    assert rows(results)[0]["recipe.lr"] == "0.1"


def test_collected_runs_below_the_folder_are_not_collected_again(tmp_path, tiny):
    run(tiny())
    gather(tmp_path / "outputs", tmp_path / "results", source="ada")
    shutil.rmtree(tmp_path / "outputs")
    assert gather(tmp_path, tmp_path / "results").added == []
    assert len(gather(tmp_path / "results/external", tmp_path / "results").added) == 1, "asked for"


def test_two_processes_do_not_change_results_at_once(command, tiny, tmp_path):
    run(tiny())
    collect = ("scripts/collect.py", tmp_path / "outputs", "--results", tmp_path / "results")
    with changing(tmp_path / "results"):
        finished = command(*collect)
    assert (finished.returncode, (tmp_path / "results").exists()) == (2, False)
    assert finished.stderr == f"error: another process is changing {tmp_path}/results: wait until it has ended\n"
    assert command(*collect).returncode == 0


def test_a_full_disk_leaves_no_half_of_a_run(tiny, tmp_path, monkeypatch):
    run(tiny())
    calls, real = itertools.count(1), os.fsync

    def full(descriptor):
        if next(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        gather(tmp_path / "outputs", tmp_path / "results")
    assert files(tmp_path / "results") == {}


def test_external_runs_are_stored_separately_and_marked_in_the_table(tiny, tmp_path):
    results = tmp_path / "results"
    run(tiny("seed=0"))
    assert len(gather(tmp_path / "outputs", results, source="ada").added) == 1
    assert len(gather(tmp_path / "outputs", results).added) == 1, "the same run, made by ourselves"
    assert tabulate(results) == {}
    ours, theirs = rows(results)
    assert (ours["source"], theirs["source"]) == ("", "ada")
    assert theirs["run"] == "../external/ada/default/conv3x3/mini-modern/frac1/seed0"
    assert (results / "runs" / theirs["run"] / "result.json").exists(), "a run's folder, from results/runs"
    (results / "external/ada/default/conv3x3/mini-modern/frac1/seed0/metrics.jsonl").write_text("")
    assert list(tabulate(results)) == ["external/ada/default/conv3x3/mini-modern/frac1/seed0"]
    assert len(rows(results)) == 1


def test_external_runs_do_not_become_our_own(tiny, tmp_path):
    run(tiny())
    theirs = tmp_path / "theirs"
    gather(tmp_path / "outputs", theirs, source="ada")
    tabulate(theirs)
    for results in (theirs, tmp_path / "ours"):
        found = gather(theirs, results)
        assert not found.added
        assert list(found.unfinished.values()) == ["of another person: collect it by itself, with --external NAME"]
    assert gather(theirs, tmp_path / "ours", source="ada").added


def test_the_table_does_not_lose_runs_without_a_folder(tiny, tmp_path):
    run(tiny())
    gather(tmp_path / "outputs", tmp_path / "results")
    tabulate(tmp_path / "results")
    shutil.rmtree(tmp_path / "results/runs")
    with pytest.raises(RunFolderError, match=r"would lose 1 run without a folder: default/conv3x3"):
        tabulate(tmp_path / "results")


def test_older_formats_are_accepted_but_current_runs_need_predictions(tiny, tmp_path):
    results = tmp_path / "results"
    for seed, written in (("seed=0", {"format": 2}), ("seed=1", {})):
        run(tiny(seed, "model=sa_quadratic"))
        folder = run_folder_path(tiny(seed, "model=sa_quadratic"))
        (folder / "predictions.npy").unlink()
        (folder / "attention_maps.npy").unlink()
        (folder / "heads.jsonl").write_text('{"epoch": 0, "mean_shift": [[[0.5, 0.5]]]}\n')
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | written))
    gathered = gather(tmp_path / "outputs", results, heads=True)
    assert gathered.added == ["default/sa_quadratic/mini-modern/frac1/seed0"]
    assert list(gathered.damaged.values()) == ["no predictions.npy"]
    assert tabulate(results) == {}
    assert [row["format"] for row in rows(results)] == ["2"]
    assert {"heads.jsonl", "heads.png"} < {path.name for path in (results / "runs" / gathered.added[0]).iterdir()}


def test_a_run_with_a_damaged_file_is_not_collected(tiny, tmp_path):
    config = tiny("model=sa_quadratic")
    run(config)
    folder = run_folder_path(config)
    for name, length, complaint in (
        ("heads.jsonl", 0, "heads.jsonl has unexpected content"),
        ("predictions.npy", 0, "predictions.npy is not a NumPy array"),
        ("predictions.npy", -1, "predictions.npy is damaged"),
        ("attention_maps.npy", 0, "attention_maps.npy is not a NumPy array"),
        ("attention_maps.npy", 40, "attention_maps.npy is damaged"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:length] or b"nope\n")
        gathered = gather(tmp_path / "outputs", tmp_path / "results")
        assert not gathered.added
        (found,) = gathered.damaged.values()
        assert found.startswith(complaint)
        (folder / name).write_bytes(whole)
    (tmp_path / "results").mkdir()
    data_hash = json.loads((folder / "result.json").read_text())["data_hash"]
    np.savez(tmp_path / "results/test_images.npz", data_hash=data_hash)
    shutil.copy(tmp_path / "arrays/test_labels.npy", tmp_path / "results")
    predicted = np.load(folder / "predictions.npy")
    np.save(folder / "predictions.npy", (predicted + 1) % 4)  # of another run
    (found,) = gather(tmp_path / "outputs", tmp_path / "results").damaged.values()
    assert found.startswith("predictions.npy has accuracy ")
    np.save(folder / "predictions.npy", predicted)
    (added,) = gather(tmp_path / "outputs", tmp_path / "results").added
    kept = tmp_path / "results/runs" / added
    for name in ("heads.jsonl", "predictions.npy", "attention_maps.npy"):
        assert (kept / name).read_bytes() == (folder / name).read_bytes()
    assert not (kept / "heads.png").exists(), "pictures only on request"


def test_results_with_impossible_values_are_not_collected(tiny, tmp_path):
    config = tiny()
    run(config)
    path = run_folder_path(config) / "result.json"
    whole = json.loads(path.read_text())
    for change, complaint in (
        ({"test_acc": 88.6}, "result.json has test_acc 88.6, which is not a share from 0 to 1"),
        ({"test_acc": True}, "result.json has test_acc True"),
        ({"test_acc": None}, "result.json says test/acc None"),
        ({"parameters": "x"}, "result.json has parameters 'x', which is not a whole number of at least 0"),
        ({"seconds": -1}, "result.json has seconds -1, which is not a number of at least 0"),
        ({"peak_memory_bytes": [1]}, "result.json has peak_memory_bytes [1], which is not a whole number"),
        ({"images_per_second": math.nan}, "result.json has unexpected content (found NaN instead of a number)"),
        ({"holdout": 2}, "result.json has holdout 2, which is not a share"),
        ({"format": True}, "result.json has format True, which is not a whole number"),
        ({"data_hash": []}, "result.json has data_hash []"),
        ({"epochs": 7}, "result.json is of another run: its epochs is 7, not "),
        ({"cpu": {"family": "x"}}, "result.json has cpu {'family': 'x'}"),
        ({"versions": None}, "result.json has versions None"),
        ({"device": 5}, "result.json has device 5"),
        ({"model": "resnet18"}, "result.json is of another run: its model is resnet18, not conv3x3"),
        ({"seed": 3}, "result.json is of another run: its seed is 3, not 0"),
    ):
        path.write_text(json.dumps(whole | change))
        (found,) = gather(tmp_path / "outputs", tmp_path / "results").damaged.values()
        assert found.startswith(complaint)
    path.write_text(json.dumps(whole))
    (path.parent / "probe.json").write_text('{"dirty": fal')
    assert next(iter(gather(tmp_path / "outputs", tmp_path / "results").damaged.values())).startswith("probe.json")
    (path.parent / "probe.json").unlink()
    (path.parent / "config.yaml").write_text((path.parent / "config.yaml").read_text() + "x: ${\n")
    assert next(iter(gather(tmp_path / "outputs", tmp_path / "results").damaged.values())).startswith("config.yaml")
    assert not (tmp_path / "results").exists()


def test_a_run_counts_once_however_it_is_copied_or_linked(tiny, tmp_path):
    run(tiny())
    (tmp_path / "outputs/loop").symlink_to(".")
    assert len(gather(tmp_path / "outputs", tmp_path / "results").added) == 1
    runs = tmp_path / "results/runs"
    shutil.copytree(runs / "default", runs / "copy")
    assert list(tabulate(tmp_path / "results").values()) == [
        "this is the run default/conv3x3/mini-modern/frac1/seed0 in another folder"
    ]
    assert len(rows(tmp_path / "results")) == 1


def test_the_command_lists_damaged_and_unfinished_runs_and_fails(command, outputs, tmp_path):
    results = tmp_path / "results"
    finished = command("scripts/collect.py", outputs, "--results", results)
    assert finished.returncode == 1
    assert "damaged: torn/conv3x3/mini-modern/frac1/seed0: metrics.jsonl has 0 of 2 lines" in finished.stdout
    assert "not finished: killed/conv3x3/mini-modern/frac1/seed0: unfinished" in finished.stdout
    assert len(rows(results)) == 4


def test_an_unreadable_file_excludes_only_its_own_run(tiny, tmp_path):
    for seed in (1, 2):
        run(tiny(f"seed={seed}"))
    unreadable = run_folder_path(tiny("seed=1")) / "probe.json"
    unreadable.mkdir()
    gathered = gather(tmp_path / "outputs", tmp_path / "results")
    assert (list(gathered.damaged.values()), len(gathered.added)) == (["probe.json cannot be read: Is a directory"], 1)


def test_results_of_a_newer_version_are_refused_and_unchanged(command, outputs, tmp_path):
    results = tmp_path / "results"
    gather(outputs, results)
    tabulate(results)
    path = next((results / "runs").glob("**/result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    before = files(results)
    finished = command("scripts/collect.py", outputs, "--results", results)
    assert finished.returncode == 2
    assert f"error: {path} has format 99, of a newer version; this one knows" in finished.stderr
    assert files(results) == before
    table = (results / "runs.csv").read_text().splitlines()
    (results / "runs.csv").write_text("\n".join([table[0], table[1].rpartition(",")[0] + ",99"]) + "\n")
    with pytest.raises(RunFolderError, match="of format 99, of a newer version"):
        read_runs(results / "runs.csv")


def test_unpublishable_runs_are_marked_and_skipped_when_reading(outputs, tmp_path):
    clean = {"name": "default", "commit": "abc", "dirty": False}
    assert kept_out(clean) == ""
    assert kept_out(clean | {"dirty": True}) == "dirty tree"
    assert kept_out(clean | {"name": "quickstart"}) == "quickstart"
    assert kept_out({"name": "default", "commit": None, "dirty": None}) == "unknown commit"

    results = tmp_path / "results"
    gather(outputs, results)
    for path in (results / "runs").glob("**/result.json"):
        seed9 = path.parent.name == "seed9"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "abc", "dirty": not seed9}))
    tabulate(results)
    assert [row["kept_out"] for row in rows(results)] == ["", "", "dirty tree", "dirty tree"]
    published = read_runs(results / "runs.csv")
    assert [(row["fraction"], row["seed"], row["kept_out"]) for row in published] == [(0.5, 9, None), (1, 9, None)]


def test_a_sweep_skips_collected_runs_with_the_same_configuration(tiny, tmp_path, capsys):
    results = tmp_path / "results"
    run(tiny("seed=0"))
    gather(tmp_path / "outputs", results)
    shutil.rmtree(tmp_path / "outputs")
    launched = []

    def start(*overrides):
        cells = [Cell([seed], tiny(seed, f"collected={results}", *overrides)) for seed in ("seed=0", "seed=1")]

        def launch(overrides):
            launched.extend(overrides)
            return [None] * len(overrides)

        with pytest.raises(SweepIncomplete):
            run_cells(cells, launch, tmp_path / "record")

    start()
    assert launched == [["seed=1"]]
    noted = json.loads((tmp_path / "record/cells.json").read_text())
    assert [cell["overrides"] for cell in noted] == [["seed=1"]], "status.py has only this one to wait for"
    assert "seed0: done before, test accuracy" in capsys.readouterr().out
    start("recipe.lr=0.1")
    assert launched == [["seed=1"], ["seed=0"], ["seed=1"]]


def test_a_removed_setting_is_ignored_only_if_it_was_off(tiny):
    run(tiny("precision=fp32"))
    folder = run_folder_path(tiny())
    plain = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(plain.replace("recipe:\n", "recipe:\n  ema: null\n"))
    assert differences(folder, tiny()) == {}
    assert read_run_config(folder) == tiny("precision=fp32")
    (folder / "config.yaml").write_text(plain.replace("recipe:\n", "recipe:\n  ema: 0.9\n"))
    assert differences(folder, tiny()) == {"recipe.ema": "0.9 -> None"}
