"""A run has one precision: the one in which it started. Precisions are never mixed."""

import contextlib
import json
import runpy
from dataclasses import replace

import pytest
import yaml

from attnconv.errors import AlreadyDone, RunFolderError, SweepIncomplete
from attnconv.files import read_csv
from attnconv.report.collect import gather
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.sweeps.grid import Cell, run_cells
from attnconv.training import device
from conftest import REPOSITORY


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets whether this machine computes in bf16; initially, it does not."""

    def become(in_bf16):
        monkeypatch.setattr(device, "computes_in_bf16", lambda device: in_bf16)

    become(False)
    return become


def config_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def as_older_versions_wrote_it(folder):
    """Rewrite config.yaml with precision=auto: in older versions, only result.json had the chosen precision."""
    text = (folder / "config.yaml").read_text()
    assert "\nprecision: fp32\n" in text
    (folder / "config.yaml").write_text(text.replace("\nprecision: fp32\n", "\nprecision: auto\n"))


def test_the_run_folder_records_the_precision_chosen_by_auto(tiny, machine, interrupted):
    folder = interrupted(tiny())
    assert config_of(folder)["precision"] == "fp32"
    assert run(tiny())["status"] == "done", "auto goes on where it is the same"
    machine(in_bf16=True)
    assert config_of(interrupted(tiny("name=other")))["precision"] == "bf16"


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_run_does_not_resume_in_another_precision(tiny, machine, interrupted, asked, older):
    folder = interrupted(tiny())
    if older:
        as_older_versions_wrote_it(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    machine(in_bf16=True)
    with pytest.raises(RunFolderError) as refused:
        run(tiny(f"precision={asked}"))
    assert str(refused.value) == (
        f"{folder} started in fp32 and would resume in bf16: add precision=fp32, or choose another name="
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert run(tiny("precision=fp32"))["precision"] == "fp32"


@pytest.mark.parametrize("older", [False, True])
def test_a_finished_run_matches_auto_and_its_own_precision_only(tiny, machine, older):
    run(tiny())
    if older:
        as_older_versions_wrote_it(run_folder_path(tiny()))
    machine(in_bf16=True)
    for asked in ("auto", "fp32"):
        with pytest.raises(AlreadyDone, match="is already finished"):
            run(tiny(f"precision={asked}"))
    with pytest.raises(RunFolderError, match=r"a finished run of another configuration \(precision: fp32 -> bf16\)"):
        run(tiny("precision=bf16"))


@pytest.mark.parametrize("older", [False, True])
def test_a_sweep_does_not_skip_collected_runs_in_another_precision(tiny, tmp_path, machine, older, start_sweep):
    run(tiny())
    if older:
        as_older_versions_wrote_it(run_folder_path(tiny()))
    gather(tmp_path / "outputs", tmp_path / "results")
    again = (f"collected={tmp_path}/results", f"output={tmp_path}/new")
    assert start_sweep(tiny(*again, "precision=bf16")) == [0]
    assert start_sweep(tiny(*again, "output=nowhere", "precision=fp32")) == []
    machine(in_bf16=True)
    assert start_sweep(tiny(*again, "output=nowhere")) == [], "auto has nothing to run in another one"


@pytest.mark.parametrize("where", ["outputs", "results"])
def test_a_sweep_with_auto_refuses_to_continue_in_another_precision(tiny, tmp_path, machine, where, start_sweep):
    run(tiny())
    seeds = [tiny(f"seed={seed}") for seed in (0, 1)]
    if where == "results":
        gather(tmp_path / "outputs", tmp_path / "results")
        seeds = [tiny(f"seed={seed}", f"collected={tmp_path}/results", f"output={tmp_path}/new") for seed in (0, 1)]
    machine(in_bf16=True)
    with pytest.raises(RunFolderError) as refused:
        start_sweep(*seeds)
    folder = tmp_path / ("outputs" if where == "outputs" else "results/runs") / "default/conv3x3"
    assert str(refused.value) == (
        f"{folder}/mini-modern/frac1/seed0 is in fp32, and precision=auto is bf16 on this machine: "
        "add precision=fp32, or precision=bf16 and another name="
    )
    machine(in_bf16=False)
    assert start_sweep(*seeds) == [1]


def test_a_sweep_on_other_machines_leaves_the_precision_to_them(tiny, tmp_path, machine):
    run(tiny())
    machine(in_bf16=True)
    cells = [Cell([f"seed={seed}"], tiny(f"seed={seed}")) for seed in (0, 1)]

    def launch(overrides):
        assert overrides == [["seed=1"]]
        run(replace(cells[1].config, precision="fp32"))
        return [None]

    run_cells(cells, launch, tmp_path / "record", here=False)


def test_the_precision_check_of_a_sweep_skips_damaged_folders(tiny, tmp_path, machine, start_sweep):
    run(tiny())
    (run_folder_path(tiny()) / "config.yaml").write_text("a: [")
    with pytest.raises(SweepIncomplete):
        start_sweep(tiny(), tiny("seed=1"))
    assert json.loads((run_folder_path(tiny("seed=1")) / "result.json").read_text())["status"] == "done"


def long_range(tmp_path, monkeypatch, capsys):
    """Run scripts/long_range.py, and return what it printed to stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["long_range.py", str(tmp_path / "outputs"), "--results", str(tmp_path)])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(REPOSITORY / "scripts/long_range.py"), run_name="__main__")
    return capsys.readouterr()


def test_the_long_range_table_compares_settings_that_the_first_run_lacks():
    require_equal = runpy.run_path(str(REPOSITORY / "scripts/long_range.py"))["require_equal"]
    require_equal([{"a": 1}, {"a": 1}])
    for runs in ([{"a": 1}, {"a": 1, "impl": "x"}], [{"a": 1, "impl": "x"}, {"a": 1}]):
        with pytest.raises(RunFolderError, match="cannot be compared"):
            require_equal(runs)


def test_the_long_range_table_refuses_runs_that_are_not_alike(tiny, tmp_path, monkeypatch, capsys):
    pairs = ("data=pairs", "data.root=''", "data.train_images=8", "data.test_images=8", "precision=fp32")
    near, far, other, longer = (
        tiny(*pairs, f"model={model}", f"data.distance={distance}", f"name=long_range_{distance}", f"epochs={epochs}")
        for model, distance, epochs in (
            ("conv3x3", 4, 1),
            ("conv3x3", 8, 1),
            ("mlp_mixer", 4, 1),
            ("sa_quadratic", 4, 2),
        )
    )
    table, folder = tmp_path / "long_range.csv", run_folder_path(far)
    trained = {run_folder_path(config): run(config) for config in (near, far, other)}

    def finish(config, **changes):
        path = run_folder_path(config)
        (path / "result.json").write_text(json.dumps(trained[path] | {"dirty": False} | changes))

    def rows():
        return [(row["model"], row["distance"], row["precision"]) for row in read_csv(table)]

    run_folder_path(other).rename(tmp_path / "other")
    finish(near)
    finish(far, precision="bf16")
    complaint = "error: runs with precision=fp32 and bf16 cannot be compared: remove some"
    assert complaint in long_range(tmp_path, monkeypatch, capsys).err
    assert not table.exists()
    finish(far, dirty=True)
    assert f"{folder} skipped: dirty tree" in long_range(tmp_path, monkeypatch, capsys).out
    assert rows() == [("conv3x3", "4", "fp32")]
    finish(far)
    (tmp_path / "other").rename(run_folder_path(other))
    finish(other, precision="bf16")
    long_range(tmp_path, monkeypatch, capsys)
    every = [("conv3x3", "4", "fp32"), ("conv3x3", "8", "fp32"), ("mlp_mixer", "4", "bf16")]
    assert rows() == every
    for config in (other, far):
        (run_folder_path(config) / "result.json").unlink()
    assert "would lose 1 cell, such as conv3x3 with" in long_range(tmp_path, monkeypatch, capsys).err
    finish(far)
    assert not long_range(tmp_path, monkeypatch, capsys).err
    assert rows() == every, "a model without a run keeps its rows"
    assert "(bf16), " in (tmp_path / "long_range.md").read_text()
    table.write_text(table.read_text().replace(",1,bf16", ",2,bf16"))
    complaint = "error: runs with epochs=1 and 2 cannot be compared"
    assert complaint in long_range(tmp_path, monkeypatch, capsys).err
    table.unlink()
    unknown = tiny(*pairs, "model=vit", "data.distance=4", "name=long_range_vit", "epochs=1")
    trained[run_folder_path(unknown)] = run(unknown)
    finish(unknown)
    assert "seed0: the receptive field of vit is unknown; remove" in long_range(tmp_path, monkeypatch, capsys).err
    (run_folder_path(unknown) / "result.json").unlink()
    trained[run_folder_path(longer)] = run(longer)
    finish(longer)
    assert complaint in long_range(tmp_path, monkeypatch, capsys).err
