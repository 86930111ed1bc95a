"""Which checkpoints are kept next to a new one, and from which a run resumes."""

import shutil

import pytest
import torch
from torch import nn

from attnconv.errors import RunFolderError
from attnconv.run import run
from attnconv.runs.checkpoint import Progress, newest, save_checkpoint
from conftest import write_arrays


def test_the_earlier_checkpoint_that_is_kept_is_not_a_damaged_one(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2):
        save_checkpoint(tmp_path, model, optimizer, Progress(), step)
    damaged = newest(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    save_checkpoint(tmp_path, model, optimizer, Progress(), 3)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["step00000001", "step00000003"]


def test_a_checkpoint_of_another_run_is_refused(tiny, interrupted, tmp_path):
    write_arrays(tmp_path / "other", seed=1)
    elsewhere = f"output={tmp_path}/elsewhere", f"data.root={tmp_path}/other"
    ours, theirs = interrupted(tiny()), interrupted(tiny(*elsewhere, "recipe.lr=0.1"))
    shutil.rmtree(ours / "checkpoints")
    shutil.copytree(theirs / "checkpoints", ours / "checkpoints")
    copied, lines = newest(ours / "checkpoints"), (ours / "metrics.jsonl").read_bytes()
    differ = r"data: \w{12} -> \w{12}; recipe\.lr: 0\.1 -> 0\.015"
    with pytest.raises(RunFolderError, match=rf"{copied} is a checkpoint of another run \({differ}\); delete it, and "):
        run(tiny())
    assert (ours / "metrics.jsonl").read_bytes() == lines
    copied.unlink()
    assert run(tiny())["status"] == "done"


def test_a_run_resumes_with_other_settings_that_are_free_to_change(tiny, interrupted, tmp_path, arrays):
    interrupted(tiny())
    arrays.rename(tmp_path / "moved")
    assert run(tiny(f"data.root={tmp_path}/moved", "eval_batch_size=7", "checkpoint_steps=1"))["status"] == "done"
