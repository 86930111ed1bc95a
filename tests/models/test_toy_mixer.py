"""A new attention layer needs one module and one config file, even outside the package."""

import json
import os

import numpy as np
import pytest

from conftest import REPOSITORY, TINY_SCALE, write_arrays
from processes import run_script

pytestmark = pytest.mark.slow

MODULE = '''
import torch
from torch import nn


class RowAttention(nn.Module):
    """Every pixel sees its own row, evenly."""

    def __init__(self, width, heads, grid, attention_dropout=0.0, strength=1.0):
        super().__init__()
        self.heads, self.strength = heads, strength

    def attention_probs(self, height, width, x=None):
        same_row = torch.block_diag(*[torch.full((width, width), 1.0 / width)] * height)
        return same_row.expand(1, self.heads, -1, -1)

    def forward(self, x):
        return self.strength * x.mean(dim=2, keepdim=True).expand_as(x)
'''
CONFIG = """
defaults: [/backbone@_here_, _self_]
name: row_attention
mixer: {_target_: elsewhere.RowAttention, _partial_: true, strength: 0.5}
"""


def test_external_attention_layer_trains_and_its_maps_are_saved(tmp_path):
    (tmp_path / "elsewhere.py").write_text(MODULE)
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/row_attention.yaml").write_text(CONFIG)
    write_arrays(tmp_path / "arrays")
    options = ["data=arrays", f"data.root={tmp_path}/arrays", f"output={tmp_path}/out", "logger=none", "epochs=1"]
    finished = run_script(
        *("train.py", "--config-dir", tmp_path / "configs", "model=row_attention", *TINY_SCALE, *options),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert finished.returncode == 0, finished.stderr
    folder = next((tmp_path / "out").glob("**/result.json")).parent
    assert json.loads((folder / "result.json").read_text())["model"] == "row_attention"
    # On a 2 x 2 map the central pixel is the last: it sees the two pixels of the lower row.
    assert np.load(folder / "attention_maps.npy").tolist() == [[[[0.0, 0.0], [0.5, 0.5]]] * 3] * 2
    assert not (folder / "heads.jsonl").exists(), "no Gaussian heads"
