"""Which checkpoints are kept next to a new one."""

import torch
from torch import nn

from attnconv.runs.checkpoint import Progress, newest, save_checkpoint


def test_the_earlier_checkpoint_that_is_kept_is_not_a_damaged_one(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2):
        save_checkpoint(tmp_path, model, optimizer, Progress(), step)
    damaged = newest(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    save_checkpoint(tmp_path, model, optimizer, Progress(), 3)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["step00000001", "step00000003"]
