"""One run, one arithmetic, one data set: what is taken for the same run, and what is refused, naming what to type."""

import json
import os
import re
import runpy
import shlex
import shutil

import pytest
import torch
import yaml
from hydra.core.singleton import Singleton

from attnconv.config import DataConfig
from attnconv.data.sources import _hash_of_files, data_hash, load_source
from attnconv.errors import AlreadyDone, DataError, Diverged, RunFolderError, SweepIncomplete
from attnconv.report.collect import gather
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import load_trained
from attnconv.sweeps.grid import Cell, run_cells
from attnconv.training import device as precision
from attnconv.training import loop
from conftest import REPOSITORY, TINY_SCALE, write_arrays

SWEEPS = (REPOSITORY / "docs/sweeps.md").read_text()


@pytest.fixture
def machine(monkeypatch):
    """A function: from now on this machine computes in bf16, or not."""

    def become(in_bf16):
        monkeypatch.setattr(precision, "computes_in_bf16", lambda device: in_bf16)

    become(False)
    return become


@pytest.fixture
def interrupted(monkeypatch):
    """A function: run a configuration until it is interrupted, in epoch `epoch` (from 1)."""

    def start(config, epoch=2):
        real, seen = loop.train_epoch, []

        def train_epoch(*arguments, **options):
            seen.append(1)
            if len(seen) == epoch:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr("attnconv.training.trainer.train_epoch", train_epoch)
            with pytest.raises(KeyboardInterrupt):
                run(config)
        return run_folder_path(config)

    return start


def config_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def as_older_versions_wrote_it(folder):
    """config.yaml with precision=auto: what it became stood in result.json alone."""
    text = (folder / "config.yaml").read_text()
    assert "\nprecision: fp32\n" in text
    (folder / "config.yaml").write_text(text.replace("\nprecision: fp32\n", "\nprecision: auto\n"))


CPU = torch.device("cpu")


def arrays_in(folder):
    return DataConfig(name="arrays", source="arrays", root=str(folder))


def start_sweep(tmp_path, *configs):
    """Run a sweep, in this process, of cells that differ in their seeds; returns the seeds that were run."""
    cells, ran = [Cell([str(number)], config) for number, config in enumerate(configs)], []

    def launch(overrides):
        for (number,) in overrides:
            ran.append(configs[int(number)].seed)
            run(configs[int(number)])
        return [None] * len(overrides)

    run_cells(cells, launch, tmp_path / "record")
    return ran


@pytest.fixture
def copy(arrays, tmp_path):
    """The same arrays in another folder."""
    return shutil.copytree(arrays, tmp_path / "scratch/c10")


@pytest.fixture
def other(tmp_path):
    """Other arrays."""
    write_arrays(tmp_path / "other", seed=1)
    return tmp_path / "other"


def test_the_run_folder_keeps_the_precision_that_auto_became(tiny, machine, interrupted):
    folder = interrupted(tiny())
    assert config_of(folder)["precision"] == "fp32"
    assert run(tiny())["status"] == "done", "auto goes on where it is the same"
    machine(in_bf16=True)
    assert config_of(interrupted(tiny("name=other")))["precision"] == "bf16"


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_run_never_goes_on_in_another_arithmetic(tiny, machine, interrupted, asked, older):
    folder = interrupted(tiny())
    if older:
        as_older_versions_wrote_it(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    machine(in_bf16=True)
    with pytest.raises(RunFolderError) as refused:
        run(tiny(f"precision={asked}"))
    assert str(refused.value) == (
        f"{folder} began in fp32 and would go on in bf16: add precision=fp32, or choose another name="
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert run(tiny("precision=fp32"))["precision"] == "fp32"


@pytest.mark.parametrize("older", [False, True])
def test_a_finished_run_is_finished_for_auto_and_another_one_for_another_precision(tiny, machine, older):
    run(tiny())
    if older:
        as_older_versions_wrote_it(run_folder_path(tiny()))
    machine(in_bf16=True)
    for asked in ("auto", "fp32"):
        with pytest.raises(AlreadyDone, match="is finished already"):
            run(tiny(f"precision={asked}"))
    with pytest.raises(RunFolderError, match=r"a finished run of another configuration \(precision: fp32 -> bf16\)"):
        run(tiny("precision=bf16"))


@pytest.mark.parametrize("older", [False, True])
def test_a_sweep_in_one_precision_does_not_count_a_collected_run_in_another(tiny, tmp_path, machine, older):
    run(tiny())
    if older:
        as_older_versions_wrote_it(run_folder_path(tiny()))
    gather(tmp_path / "outputs", tmp_path / "results")
    again = (f"collected={tmp_path}/results", f"output={tmp_path}/new")
    assert start_sweep(tmp_path, tiny(*again, "precision=bf16")) == [0]
    assert start_sweep(tmp_path, tiny(*again, "output=nowhere", "precision=fp32")) == []
    machine(in_bf16=True)
    assert start_sweep(tmp_path, tiny(*again, "output=nowhere")) == [], "auto has nothing to run in another one"


@pytest.mark.parametrize("where", ["outputs", "results"])
def test_a_sweep_does_not_go_on_by_auto_in_another_precision(tiny, tmp_path, machine, where):
    run(tiny())
    seeds = [tiny(f"seed={seed}") for seed in (0, 1)]
    if where == "results":
        gather(tmp_path / "outputs", tmp_path / "results")
        seeds = [tiny(f"seed={seed}", f"collected={tmp_path}/results", f"output={tmp_path}/new") for seed in (0, 1)]
    machine(in_bf16=True)
    with pytest.raises(RunFolderError) as refused:
        start_sweep(tmp_path, *seeds)
    folder = tmp_path / ("outputs" if where == "outputs" else "results/runs") / "default/sa_quadratic"
    assert str(refused.value) == (
        f"{folder}/mini-modern/frac1/seed0 is in fp32, and precision=auto is bf16 on this machine: "
        "add precision=fp32, or precision=bf16 and another name="
    )
    machine(in_bf16=False)
    assert start_sweep(tmp_path, *seeds) == [1]


def test_a_damaged_folder_stops_no_sweep_by_its_precision(tiny, tmp_path, machine):
    run(tiny())
    (run_folder_path(tiny()) / "config.yaml").write_text("a: [")
    with pytest.raises(SweepIncomplete):
        start_sweep(tmp_path, tiny(), tiny("seed=1"))
    assert json.loads((run_folder_path(tiny("seed=1")) / "result.json").read_text())["status"] == "done"


def test_the_table_of_distances_compares_no_two_precisions(tiny, tmp_path, monkeypatch, capsys):
    pairs = ("data=pairs", "data.root=''", "data.train_images=8", "data.test_images=8", "epochs=1")
    for seed, name in enumerate(("bf16", "fp32")):
        config = tiny(*pairs, f"seed={seed}", f"name=long_range_{name}", "precision=fp32")
        result = run(config) | {"model": name, "precision": name}
        (run_folder_path(config) / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr("sys.argv", ["long_range.py", str(tmp_path / "outputs"), "--into", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / "scripts/long_range.py"), run_name="__main__")
    assert "error: runs of several precisions (bf16, fp32) are not compared" in capsys.readouterr().err
    assert not (tmp_path / "long_range.csv").exists()


def test_an_unfinished_run_goes_on_with_a_copy_of_its_data(tiny, copy, interrupted):
    run(tiny("name=undisturbed"))
    folder = interrupted(tiny())
    (folder / "result.json").unlink()  # as after a kill
    assert run(tiny(f"data.root={copy}"))["status"] == "done"
    for file in ("metrics.jsonl", "heads.jsonl"):
        assert (folder / file).read_bytes() == (run_folder_path(tiny("name=undisturbed")) / file).read_bytes()


def test_a_finished_run_is_finished_wherever_its_data_lies(tiny, arrays, copy, monkeypatch):
    run(tiny("epochs=1"))
    monkeypatch.chdir(arrays.parent)
    for root in (arrays.name, f"{arrays}/", f"{copy}/../c10", copy):
        with pytest.raises(AlreadyDone):
            run(tiny("epochs=1", f"data.root={root}"))
    with pytest.raises(DataError, match="there is no folder nowhere"):
        run(tiny("epochs=1", "data.root=nowhere"))


def hashes(*folders):
    """The first twelve digits of the hash of what lies in each folder, and where that is."""
    return " -> ".join(f"{load_source(arrays_in(folder), CPU).sha256[:12]} in {folder}" for folder in folders)


@pytest.mark.parametrize("older", [False, True])
def test_other_data_is_refused_by_its_hash(tiny, arrays, other, interrupted, older):
    folder = interrupted(tiny("epochs=2"))
    if older:
        (folder / "data.json").unlink()  # its hash stood in result.json alone
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


def test_data_that_changed_where_it_lies_is_refused(tiny, arrays, other, interrupted):
    interrupted(tiny())
    old = hashes(arrays)
    shutil.copytree(other, arrays, dirs_exist_ok=True)
    with pytest.raises(RunFolderError) as refused:
        run(tiny())
    assert f"(data: {old} -> {hashes(arrays)})" in str(refused.value)


def test_without_a_hash_another_path_is_other_data(tiny, arrays, copy, interrupted):
    folder = interrupted(tiny())
    for file in ("data.json", "result.json"):  # an older version was killed
        (folder / file).unlink()
    with pytest.raises(RunFolderError, match=rf"\(data\.root: {arrays} -> {copy}\)"):
        run(tiny(f"data.root={copy}"))
    assert run(tiny())["status"] == "done"


def test_a_sweep_knows_its_runs_by_the_hash_of_their_data_which_it_reads_once(tiny, tmp_path, copy, other):
    seeds = [tiny("epochs=1", f"seed={seed}") for seed in (0, 1)]
    assert start_sweep(tmp_path, *seeds) == [0, 1]
    gather(tmp_path / "outputs", tmp_path / "results")
    elsewhere = ["epochs=1", f"data.root={copy}"]
    read = _hash_of_files.cache_info().misses
    assert start_sweep(tmp_path, *(tiny(*elsewhere, f"seed={seed}") for seed in (0, 1, 2))) == [2]
    elsewhere += [f"collected={tmp_path}/results", f"output={tmp_path}/new"]
    assert start_sweep(tmp_path, *(tiny(*elsewhere, f"seed={seed}") for seed in (0, 1))) == []
    assert _hash_of_files.cache_info().misses == read + 1

    with pytest.raises(RunFolderError, match=rf"another configuration \(data: \w+ in {tmp_path}/arrays -> \w+ in "):
        start_sweep(tmp_path, tiny("epochs=1", f"data.root={other}"))
    assert start_sweep(tmp_path, tiny(*elsewhere, f"data.root={other}")) == [0], "it is not the collected one"


def test_a_changed_file_is_read_again(other, copy):
    first, settings = data_hash(arrays_in(copy)), os.stat(copy / "train_images.npy")
    shutil.copy(other / "train_images.npy", copy)
    os.utime(copy / "train_images.npy", ns=(0, settings.st_mtime_ns + 1))
    assert data_hash(arrays_in(copy)) != first


def test_a_trained_network_is_not_shown_other_data(tiny, arrays, copy, other):
    run(tiny("epochs=1"))
    folder = run_folder_path(tiny())
    assert load_trained(folder, root=str(copy)).data.origin == f"arrays in {copy}"
    with pytest.raises(RunFolderError) as refused:
        _ = load_trained(folder, root=str(other)).data
    assert str(refused.value) == f"{folder} was trained on other data (data: {hashes(arrays, other)})"


def files_in(folder):
    """Every file of a run folder that no clock writes."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in CLOCKS and "checkpoints" not in name}


CLOCKS = ("timing.jsonl", "result.json")


def test_a_failure_before_any_checkpoint_gives_way_to_the_corrected_command(tiny, capsys):
    wrong = tiny("recipe=paper", "recipe.warmup=0", "recipe.lr=1e30", "precision=fp32")
    right = tiny("recipe=paper", "recipe.warmup=0", "recipe.lr=0.01", "precision=fp32")
    with pytest.raises(Diverged, match=r"lower recipe\.lr=1e\+30$"):
        run(wrong)
    folder = run_folder_path(wrong)
    for stale in ("heads.png", "probe.json", ".wandb-id"):
        (folder / stale).write_text("of the failed run")
    (folder / "timing.jsonl").write_text('{"epoch": 1}\n')
    assert run(right)["status"] == "done"
    assert f"{folder}: starting afresh; the run there ended before its first checkpoint (recipe.lr: 1e+30 -> 0.01)" in (
        capsys.readouterr().out.splitlines()
    )
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 2
    assert not (folder / "probe.json").exists()
    found = files_in(folder)
    shutil.rmtree(folder)
    run(right)
    assert found == files_in(folder), "nothing is left of the other run"


def test_what_has_a_checkpoint_or_was_killed_does_not_give_way(tiny, interrupted):
    for epoch, kept in ((2, "a checkpoint"), (1, "no result.json")):
        folder = interrupted(tiny(f"seed={epoch}"), epoch)
        if kept == "no result.json":
            (folder / "result.json").unlink()
        with pytest.raises(RunFolderError, match="holds an unfinished run of another configuration"):
            run(tiny(f"seed={epoch}", "recipe.lr=0.01"))
    interrupted(tiny("name=early"), 1)
    assert run(tiny("name=early", "recipe.lr=0.01"))["status"] == "done"


def test_a_sweep_runs_the_corrected_cell(tiny, tmp_path, interrupted):
    folder = interrupted(tiny("epochs=1"), 1)
    failed = json.loads((folder / "result.json").read_text()) | {"status": "failed"}
    (folder / "result.json").write_text(json.dumps(failed))
    with pytest.raises(SweepIncomplete):
        start_sweep(tmp_path, tiny("epochs=1"))
    assert start_sweep(tmp_path, tiny("epochs=1", "recipe.lr=0.01")) == [0]


@pytest.fixture
def command(tmp_path, arrays, monkeypatch, capsys):
    """A function: overrides -> exit code, output and errors of train.py, in this process and in tmp_path."""
    monkeypatch.chdir(tmp_path)
    state = Singleton.get_state()

    def type_in(*overrides):
        fixed = ["data=arrays", "data.root=arrays", "logger=none", "device=cpu", "recipe.batch_size=16", "epochs=1"]
        monkeypatch.setattr("sys.argv", ["train.py", *overrides, *TINY_SCALE, *fixed])
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")
        except SystemExit as left:
            code = left.code
        Singleton.set_state(state)
        return code, *capsys.readouterr()

    return type_in


def test_hydra_changes_no_folder(command, tmp_path):
    moved = ["hydra.job.chdir=true", "data.root=../" + tmp_path.name + "/arrays"]
    assert command("-m", "seed=0,1", *moved)[0] == 0
    assert (tmp_path / "outputs/default/sa_quadratic/mini-modern/frac1/seed1/result.json").exists()
    code, shown, _ = command("-m", "seed=0,1", *moved)
    assert (code, shown.splitlines()[-1]) == (0, "sweep of 2 cells: 2 skipped")
    code, _, errors = command("hydra.job.chdir=true", "hydra.run.dir=elsewhere")
    assert (code, "seed0 is finished already" in errors) == (2, True)
    assert gather(tmp_path / "outputs", tmp_path / "results").added
    code, shown, _ = command("-m", "seed=0", "collected=results", "output=new", *moved)
    assert (code, shown.splitlines()[-1]) == (0, "sweep of 1 cells: 1 skipped")


def test_a_sweep_over_a_hyperparameter_works_as_readme_says(command, tmp_path):
    (example,) = re.findall(r"^python train\.py (-m .*\$\{recipe\.lr\}.*)$", SWEEPS, flags=re.MULTILINE)
    code, shown, _ = command(*shlex.split(example))
    assert (code, shown.splitlines()[-1]) == (0, "sweep of 3 cells: 3 done")
    rates = sorted(float(config_of(path.parent)["recipe"]["lr"]) for path in tmp_path.glob("outputs/**/result.json"))
    assert rates == [0.005, 0.015, 0.045]


def test_a_hyperparameter_that_the_path_does_not_show_has_a_name_suggested(command):
    assert command()[0] == 0
    hint = "name='NAME_${recipe.lr}'"
    code, _, errors = command("recipe.lr=0.5")
    assert (code, f"choose another name=, such as {hint}, or delete the folder" in errors) == (2, True)
    code, _, errors = command("-m", "recipe.lr=0.5,0.6", "seed=1")
    assert (code, f"they differ in recipe.lr, which the folder does not show; say {hint}" in errors) == (2, True)
    assert command("recipe.lr=0.5", *shlex.split(hint))[0] == 0
