"""Runs that train stacked: each ends as if it had been alone, and none takes the others down."""

import itertools
import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attnconv import stack, together
from attnconv.data.dataset import TrainSplit
from attnconv.errors import Stopped
from attnconv.run import run
from attnconv.stack import run_stacked
from attnconv.tracking.run_folder import RunFolder
from attnconv.tracking.states import look
from attnconv.training.checkpoint import newest
from attnconv.training.loop import FiniteGuard
from conftest import PYTHON, REPOSITORY, TINY_SCALE

EXACT = ("recipe=paper", "recipe.dropout=0", "recipe.attention_dropout=0", "precision=fp32", "epochs=3")
GROWING = ("data.holdout=0.2", "data.flip=true", "data.alternating_flip=true", "eval_mirrored=true",
           "recipe.sizes=[0.5,0.75,1]", "recipe.cropped_from=0.75", "data.padding_mode=reflect", "data.crop_padding=1",
           "recipe.whitening=true", "scale.patch=2")  # fmt: skip


def seeds(tiny, *numbers, overrides=EXACT):
    return [tiny(*overrides, f"seed={number}", f"data.subset_seed={number}", "data.fraction=0.8") for number in numbers]


def numbers_of(config):
    path = RunFolder(config).path
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [number for line in lines for number in json.loads(line).values()]


def assert_close(configs, others, tolerance=1e-4):
    for config, other in zip(configs, others, strict=True):
        assert np.allclose(numbers_of(config), numbers_of(other), rtol=tolerance, atol=tolerance)
        mine, theirs = (load_file(RunFolder(each).weights) for each in (config, other))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert np.allclose(value, theirs[name], rtol=tolerance, atol=tolerance), name


@pytest.fixture
def sizes(monkeypatch):
    """How many runs each stack had."""
    seen = []
    real = stack.train_together

    def train_together(sittings, interrupts):
        seen.append(len(sittings))
        return real(sittings, interrupts)

    monkeypatch.setattr(stack, "train_together", train_together)
    return seen


@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        ((), 1e-4),
        (("recipe.ema=0.9",), 1e-4),
        (("model=resnet10", "recipe.warmup=0.5"), 1e-4),
        (GROWING, 1e-4),
        (("model=sa_learned_content", "recipe=modern", "precision=bf16"), 0.1),  # Muon, and bfloat16 rounds
    ],
)
def test_stacked_runs_equal_separate_ones(tiny, sizes, more, tolerance):
    together = seeds(tiny, 0, 1, 2, overrides=(*EXACT, *more))
    assert run_stacked(together, at_most=8) == [None, None, None]
    assert sizes == [3]
    alone = seeds(tiny, 0, 1, 2, overrides=(*EXACT, *more, "name=alone"))
    for config in alone:
        run(config)
    assert_close(together, alone, tolerance)
    assert numbers_of(together[0]) != numbers_of(together[1])
    for mine, theirs in zip(together, alone, strict=True):
        assert {path.name for path in RunFolder(mine).path.iterdir()} == {
            path.name for path in RunFolder(theirs).path.iterdir()
        }
        result = look(RunFolder(mine).path).result
        assert result["stacked"] == 3
        assert result["seed"] == mine.seed
        sizes_of = [newest(RunFolder(each).checkpoints).stat().st_size for each in (mine, theirs)]
        assert sizes_of[0] == pytest.approx(sizes_of[1], rel=0.1), "a checkpoint holds its own run alone"


def test_only_what_is_alike_is_stacked_and_not_too_many(tiny, sizes):
    configs = [tiny("epochs=1", f"seed={seed}", f"name={name}", f"recipe.lr={lr}")
               for name, lr in (("a", 0.01), ("b", 0.02)) for seed in (0, 1, 2)]  # fmt: skip
    assert run_stacked(configs, at_most=2) == [None] * 6
    assert sizes == [2, 2]  # and the third of each by itself
    assert all(look(RunFolder(config).path).status == "done" for config in configs)
    assert look(RunFolder(configs[2]).path).result.get("stacked") is None


def test_fractions_are_stacked_where_epochs_have_equal_steps(tiny, sizes):
    def of(equal):
        return [tiny(f"data.equal={equal}", f"data.fraction={fraction}", f"name={equal}") for fraction in (0.4, 0.8)]

    run_stacked(of("steps"), at_most=8)
    assert sizes == [2]
    run_stacked(of("epochs"), at_most=8)
    assert sizes == [2]


@pytest.mark.parametrize("number", [3, 4])  # between two runs, or two steps
@pytest.mark.parametrize("call", ["finish", "save_at", "evaluate_together"])
def test_an_interrupted_stack_goes_on_to_the_same_numbers(tiny, monkeypatch, call, number):
    overrides = (*EXACT, *GROWING, "checkpoint_steps=1", "recipe.ema=0.9", "epochs=5")
    calm, hurt = (seeds(tiny, 0, 1, overrides=(*overrides, f"name={name}")) for name in ("calm", "hurt"))
    run_stacked(calm, at_most=8)
    place = together if call == "evaluate_together" else together.Sitting
    calls, real = itertools.count(1), getattr(place, call)

    def interrupted(*arguments, **options):
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(place, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stacked(hurt, at_most=8)
    assert {look(RunFolder(config).path).status for config in hurt} == {"interrupted"}
    assert run_stacked(hurt, at_most=8) == [None, None]
    assert_close(hurt, calm)


@pytest.mark.parametrize("moment", ["step_done", "evaluate_together"])
def test_a_signal_saves_all_of_them(tiny, monkeypatch, moment):
    configs = seeds(tiny, 0, 1, overrides=(*EXACT, "recipe.ema=0.9", "eval_batch_size=5"))
    place = together if moment == "evaluate_together" else together.Sitting
    calls, real = itertools.count(1), getattr(place, moment)

    def signalled(*arguments, **options):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, moment, signalled)
        with pytest.raises(Stopped):
            run_stacked(configs, at_most=8)
    steps = {newest(RunFolder(config).checkpoints).name.split("-")[0] for config in configs}
    assert steps == {"step00000006" if moment == "evaluate_together" else "step00000002"}, "an epoch has two steps"
    assert {look(RunFolder(config).path).status for config in configs} == {"interrupted"}
    assert run_stacked(configs, at_most=8) == [None, None]
    alone = seeds(tiny, 0, 1, overrides=(*EXACT, "recipe.ema=0.9", "eval_batch_size=5", "name=alone"))
    run_stacked(alone, at_most=8)
    assert_close(configs, alone)


def test_too_many_for_the_memory_go_on_with_fewer(tiny, monkeypatch, sizes, capsys):
    configs, real = seeds(tiny, 0, 1, 2, 3), together.train_epoch_together

    def train(network, lanes, **options):
        if len(lanes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(network, lanes, **options)

    monkeypatch.setattr(together, "train_epoch_together", train)
    assert run_stacked(configs, at_most=8) == [None] * 4
    assert sizes == [4, 2, 2]
    assert "warning: out of memory with 4 runs at once; going on with 2" in capsys.readouterr().err


@pytest.mark.parametrize("every", [1, 3])  # on a GPU what is not finite is noticed late, at a checkpoint too
def test_one_that_diverges_does_not_take_the_others_down(tiny, monkeypatch, sizes, every):
    configs = seeds(tiny, 0, 1, 2, overrides=(*EXACT, "checkpoint_steps=1"))
    init = FiniteGuard.__init__

    def seldom(self, device):
        init(self, device)
        self._every = every

    monkeypatch.setattr(FiniteGuard, "__init__", seldom)
    calls, real = itertools.count(), TrainSplit.augmented

    def augmented(self, *where):
        images, labels = real(self, *where)
        return (images * np.nan if next(calls) == 3 * 3 + 1 else images), labels  # step 4 of the second run

    monkeypatch.setattr(TrainSplit, "augmented", augmented)
    reasons = run_stacked(configs, at_most=8)
    assert reasons[0] is None
    assert reasons[2] is None
    assert "the loss of step 4 (epoch 2, batch 2 of 2) is not finite" in reasons[1]
    assert [look(RunFolder(config).path).status for config in configs] == ["done", "failed", "done"]
    assert sizes == [3, 2]
    alone = seeds(tiny, 0, 2, overrides=(*EXACT, "name=alone"))
    run_stacked(alone, at_most=8)
    assert_close([configs[0], configs[2]], alone)


def test_a_surprise_in_one_run_is_the_reason_of_that_run_alone(tiny, monkeypatch, sizes):
    configs, real = seeds(tiny, 0, 1, 2), stack.prepare

    def prepare(config):
        if config.seed == 1:
            raise RuntimeError("a surprise\nand more")
        return real(config)

    monkeypatch.setattr(stack, "prepare", prepare)
    assert run_stacked(configs, at_most=8) == [None, "RuntimeError: a surprise", None]
    assert sizes == [2]


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
def test_every_stacked_run_has_a_dashboard_of_its_own_or_a_warning(tiny, monkeypatch, capsys, logger):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "trackio", types.ModuleType("trackio"))
    configs = [tiny("epochs=1", f"logger={logger}", f"seed={seed}") for seed in (0, 1)]
    assert run_stacked(configs, at_most=8) == [None, None]
    warnings = capsys.readouterr().err.count("is off for this run")
    assert warnings == (2 if logger == "trackio" else 0)
    if logger == "wandb":
        for config in configs:
            assert len(list(RunFolder(config).path.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def test_what_cannot_be_stacked_trains_one_by_one_and_says_so(tiny, sizes, capsys):
    configs = [tiny("recipe=paper", "epochs=1", f"seed={seed}") for seed in (0, 1)]
    assert run_stacked(configs, at_most=8) == [None, None]
    assert sizes == []
    warning = "warning: sa_quadratic trains one run at a time: dropout would draw other masks"
    assert capsys.readouterr().err.count(warning) == 1


def test_one_that_cannot_begin_is_a_reason_of_its_own(tiny, sizes, capsys):
    configs = seeds(tiny, 0, 1, 2)
    folder = RunFolder(configs[0])
    folder.open()
    folder.append("metrics.jsonl", {"epoch": 1})
    folder.close()
    (folder.path / "config.yaml").write_text((folder.path / "config.yaml").read_text().replace("lr: 0.1", "lr: 0.2"))
    at_work = RunFolder(configs[1])
    at_work.open()
    try:
        reasons = run_stacked(configs, at_most=8)
    finally:
        at_work.close()
    assert "another configuration" in reasons[0]
    assert reasons[1:] == [None, None]
    assert "skipped: process" in capsys.readouterr().out
    assert look(RunFolder(configs[2]).path).status == "done"


def test_the_launcher(arrays, tmp_path):
    def start(*overrides):
        fixed = ["data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "logger=none", "device=cpu"]
        sweep = ["-m", "model=sa_quadratic,conv3x3", "seed=0,1", "epochs=1", "hydra/launcher=stacked"]
        command = [PYTHON, "train.py", *sweep, *TINY_SCALE, *fixed, *overrides]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    done = start()
    assert done.returncode == 0, done.stderr
    assert "sweep of 4 cells: 4 done" in done.stdout
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("outputs/**/result.json"))]
    assert [result["stacked"] for result in results] == [2, 2, 2, 2]
    again = start()
    assert again.returncode == 0
    assert "sweep of 4 cells: 4 skipped" in again.stdout
    refused = start("hydra.launcher.runs=0", "name=other")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "error: hydra.launcher.runs must be at least 1, not 0"


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_stacked_runs_on_a_gpu_equal_separate_ones(tiny, sizes, compiled):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    configs = {name: seeds(tiny, 0, 1, overrides=(*EXACT, f"name={name}")) for name in ("together", "alone")}
    for config in itertools.chain(*configs.values()):
        config.device, config.compile = "cuda", compiled
    assert run_stacked(configs["together"], at_most=8) == [None, None]
    assert sizes == [2]
    for config in configs["alone"]:
        run(config)
    assert_close(configs["together"], configs["alone"], tolerance=1e-2)
