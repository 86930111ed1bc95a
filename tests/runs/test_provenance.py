"""The commit, the hardware and the memory in a result."""

import hashlib
import importlib
import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attnconv.errors import counted
from attnconv.report.runs_table import kept_out
from attnconv.run import run
from attnconv.runs import provenance
from attnconv.runs.folder import run_folder_path
from attnconv.runs.provenance import describe_cpu, parse_cpuinfo, peak_memory

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu sse avx avx2 avx512f avx512bw avx512_bf16 vaes

processor\t: 1
model\t\t: 99
"""
INTEL = """vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("text", "model", "family", "flags"),
    [
        (AMD, "AMD EPYC", "AMD family 25 model 17", ["avx2", "avx512f", "avx512_bf16"]),
        (
            INTEL,
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "Intel family 6 model 143",
            ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"],
        ),
        (AMD.replace("AuthenticAMD", "HygonGenuine"), "AMD EPYC", "HygonGenuine family 25 model 17", None),
        (ARM, None, platform.machine(), []),
        ("", None, platform.machine(), []),
    ],
    ids=["AMD", "Intel", "another maker", "ARM", "no /proc/cpuinfo"],
)
def test_cpuinfo_is_parsed_into_model_family_and_flags(text, model, family, flags):
    found = parse_cpuinfo(text)
    assert found["model"] == model or (model is None and found["model"])
    assert found["family"] == family
    assert found["flags"] == flags or flags is None


def test_results_record_the_cpu_and_cpu_seconds(tiny):
    config = tiny()
    result = run(config)
    assert result["cpu"] == describe_cpu()
    assert result["cpu"]["threads"] == torch.get_num_threads()
    assert result["device"] == f"{result['cpu']['model']}, {counted(torch.get_num_threads(), 'thread')}"
    lines = (run_folder_path(config) / "timing.jsonl").read_text().splitlines()
    times = [json.loads(line) for line in lines]
    assert all(record["train_cpu_seconds"] > 0 and record["eval_cpu_seconds"] > 0 for record in times)
    assert result["cpu_seconds"] == sum(record["train_cpu_seconds"] + record["eval_cpu_seconds"] for record in times)


def test_the_commit_is_that_of_this_repository(monkeypatch, tmp_path):
    monkeypatch.delenv(provenance.COMMIT, raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of another repository
    assert provenance._git("rev-parse", "--show-toplevel").strip() != str(tmp_path)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path / "copy")  # inside of another checkout
    assert provenance.commit.__wrapped__() == (None, None)
    monkeypatch.setenv(provenance.COMMIT, "c" * 40)
    assert provenance.commit.__wrapped__() == ("c" * 40, False)


@pytest.mark.parametrize("began", [("a" * 40, True), ("b" * 40, False)])
def test_the_result_says_whether_any_start_had_uncommitted_changes(tiny, interrupted, monkeypatch, began):
    """Steps before an interruption count, whatever the commit that finishes the run."""
    config, commits = tiny("epochs=2"), iter([began, ("b" * 40, False)])
    monkeypatch.setattr(provenance, "commit", lambda: next(commits))
    interrupted(config, epoch=2)
    result = run(config)
    assert (result["commit"], result["dirty"]) == ("b" * 40, began[1])
    assert [start["commit"] for start in result.get("starts", [])] == ([began[0], "b" * 40] if began[1] else [])
    assert bool(kept_out(result)) == began[1]


def test_starts_before_the_first_step_do_not_count(tiny, interrupted, monkeypatch):
    config, commits = tiny("epochs=2"), iter([("a" * 40, True), ("b" * 40, False)])
    monkeypatch.setattr(provenance, "commit", lambda: next(commits))
    interrupted(config, epoch=1)
    result = run(config)
    assert (result["dirty"], "starts" in result) == (False, False)


NETWORK = """from torch import nn
import helper_of_user
class Net(nn.Module):
    def __init__(self, image_shape, classes):
        super().__init__()
        self.head = nn.Linear(image_shape[0], classes)
    def forward(self, x):
        return self.head(x.mean((2, 3)))
"""


@pytest.mark.parametrize("changed", [True, False])
def test_the_code_of_a_network_of_the_user_is_recorded(tiny, interrupted, monkeypatch, tmp_path, capsys, changed):
    (tmp_path / "own").mkdir()
    module = tmp_path / f"own/net_of_user_{changed}.py"
    module.write_text(NETWORK)
    for name in ("helper", "stranger"):
        (tmp_path / f"own/{name}_of_user.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.setattr(provenance, "commit", lambda: ("a" * 40, False))
    importlib.import_module("stranger_of_user")  # not by the network
    config = tiny("epochs=2")
    config.model = {"name": "mine", "_target_": f"{module.stem}.Net"}
    interrupted(config, epoch=2)
    module.write_text(NETWORK + "# changed\n")
    if changed:  # else the process has the code of before
        del sys.modules[module.stem]
    result = run(config)
    loaded = module.read_bytes() if changed else NETWORK.encode()
    assert result["code"][module.stem] == hashlib.sha256(loaded).hexdigest()[:16]
    assert result["code"].keys() == {module.stem, "helper_of_user"}
    assert (result["dirty"], "starts" in result) == (changed, changed)
    warning = f"warning: the code of {module.stem} has changed since this run began"
    assert (warning in capsys.readouterr().err) == changed
    assert "code" not in run(tiny("name=ours"))


def test_a_network_without_a_file_counts_as_unknown_code(tiny, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: ("a" * 40, False))
    monkeypatch.setattr(provenance, "code_of_user", lambda parts: {"__main__": None})
    config = tiny("epochs=1")
    config.model = {"name": "mine", "_target_": f"{__name__}.Linear"}
    result = run(config)
    assert (result["code"], result["dirty"]) == ({"__main__": None}, None)
    assert kept_out(result) == "unknown commit"


class Linear(torch.nn.Module):
    def __init__(self, image_shape, classes):
        super().__init__()
        self.head = torch.nn.Linear(image_shape[0], classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def test_a_start_that_was_not_recorded_has_an_unknown_commit(tiny, interrupted, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: ("a" * 40, False))
    config = tiny("epochs=2")
    (interrupted(config) / "starts.jsonl").unlink()
    assert run(config)["dirty"] is None


@pytest.mark.skipif(platform.system() != "Linux", reason="of /proc")
def test_peak_memory_is_not_that_of_the_process_that_started_this_one(monkeypatch):
    largest = 10**15
    monkeypatch.setattr(provenance.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=largest))
    assert 10**7 < peak_memory(torch.device("cpu")) < 10**12


def test_peak_memory_is_that_of_one_run(tiny):
    alone = run(tiny())["peak_memory_bytes"]
    np.ones(10**9, np.uint8)  # freed at once
    assert run(tiny("seed=1"))["peak_memory_bytes"] < alone + 5 * 10**8


def test_times_of_a_result_are_sums_over_its_epochs(tiny):
    config = tiny("epochs=3")
    result = run(config)
    lines = [json.loads(line) for line in (run_folder_path(config) / "timing.jsonl").read_text().splitlines()]
    train, evaluation = (sum(line[f"{part}_seconds"] for line in lines) for part in ("train", "eval"))
    assert result["train_seconds"] == pytest.approx(train)
    assert result["seconds"] == pytest.approx(train + evaluation)
    assert result["images_per_second"] == pytest.approx(3 * 40 / train)
