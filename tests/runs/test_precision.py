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
    pairs = ("data=pairs", "data.root=''", "data.train_images=8", "data.test_images=8", "epochs=1")
    for model, name in (("conv3x3", "bf16"), ("mlp_mixer", "fp32")):
        config = tiny(*pairs, f"model={model}", f"name=long_range_{name}", "precision=fp32")
        result = run(config) | {"precision": name, "dirty": False}
        (run_folder_path(config) / "result.json").write_text(json.dumps(result))
    complaint = "error: runs with precision=bf16 and fp32 cannot be compared: remove some"
    assert complaint in long_range(tmp_path, monkeypatch, capsys).err
    (run_folder_path(config) / "result.json").write_text(json.dumps(result | {"dirty": True}))
    assert not (tmp_path / "long_range.csv").exists()
    assert f"{run_folder_path(config)} skipped: dirty tree" in long_range(tmp_path, monkeypatch, capsys).out
    assert [row["model"] for row in read_csv(tmp_path / "long_range.csv")] == ["conv3x3"]
    longer = tiny(*pairs[:-1], "epochs=2", "model=mlp_mixer", "name=long_range_bf16", "precision=fp32")
    (run_folder_path(config) / "result.json").write_text(json.dumps(result | {"dirty": False, "precision": "bf16"}))
    long_range(tmp_path, monkeypatch, capsys)
    assert len(read_csv(tmp_path / "long_range.csv")) == 2
    (run_folder_path(config) / "result.json").unlink()
    assert "would lose 1 of its 2 cells, such as mlp_mixer with" in long_range(tmp_path, monkeypatch, capsys).err
    (tmp_path / "long_range.csv").unlink()
    result = run(longer) | {"precision": "bf16", "dirty": False}
    (run_folder_path(longer) / "result.json").write_text(json.dumps(result))
    assert "error: runs with epochs=1 and 2 cannot be compared" in long_range(tmp_path, monkeypatch, capsys).err
