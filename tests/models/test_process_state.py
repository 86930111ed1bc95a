"""Settings and generators of the process: kept while other code uses them, and never shared by two threads."""

import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from attnconv.models.build import import_target
from attnconv.models.process_state import (
    default_settings,
    evaluation_draws,
    kept_generators,
    kept_settings,
    settings,
)


def test_an_import_changes_no_settings(tmp_path, monkeypatch):
    (tmp_path / "changes_settings.py").write_text(
        "import os, torch\n\ntorch.set_default_dtype(torch.bfloat16)\nos.chdir('/')\n"
        "torch.set_float32_matmul_precision('medium')\ntorch.set_default_device('meta')\n"
        "torch.set_num_threads(torch.get_num_threads() + 1)\ntorch.use_deterministic_algorithms(True)\n\n\n"
        "class Net:\n    pass\n"
    )
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert import_target("changes_settings.Net").__name__ == "Net"
    assert (torch.get_default_dtype(), Path.cwd()) == (torch.float32, tmp_path)
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("highest", threads)
    assert (torch.get_default_device(), torch.are_deterministic_algorithms_enabled()) == (torch.device("cpu"), False)


@pytest.fixture
def hasty():
    """Let threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def drawing(seed):
    with evaluation_draws(torch.device("cpu"), seed, start=0):
        return torch.rand(3).tolist(), random.random(), np.random.rand()  # noqa: NPY002


def computing(_):
    with default_settings():
        kinds = torch.zeros(1).dtype, torch.get_float32_matmul_precision()
    with kept_settings():
        torch.set_default_dtype(torch.float16)
    with kept_generators():
        return kinds, random.random(), torch.rand(1).item()


@pytest.mark.parametrize("work", [drawing, computing])
def test_threads_share_neither_settings_nor_generators(work, hasty):
    def state():
        return settings(), torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def several(seed):
        found.extend((seed, work(seed)) for _ in range(20))

    found = []
    torch.set_default_dtype(torch.float64)
    try:
        expected, before = {seed: work(seed) for seed in range(4)}, state()
        threads = [threading.Thread(target=several, args=[seed]) for seed in expected]
        for step in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                step(thread)
        after = state()
    finally:
        torch.set_default_dtype(torch.float32)
    assert after == before
    assert len(found) == 80
    assert all(drawn == expected[seed] for seed, drawn in found)
