"""Work for a borrowed GPU: in order, in slices, and packed to travel; here with commands that take no GPU."""

import importlib
import json
import subprocess
import time
from pathlib import Path

import pytest

from attnconv import jobs as jobs_module
from attnconv.errors import ConfigError, RunFolderError
from attnconv.jobs import Job, bring_home, gpu_jobs, is_done, pack, unpack, work_through
from attnconv.run import run
from attnconv.tracking.provenance import commit
from attnconv.tracking.run_folder import run_name
from attnconv.tracking.states import look
from conftest import PYTHON, REPOSITORY

COUNT = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
PATIENT = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function: jobs, seconds -> what was said of them."""
    monkeypatch.setattr(jobs_module, "GRACE_SECONDS", 1.0)

    def start(*jobs, seconds=100.0):
        said = []
        work_through(jobs, tmp_path / "work", tmp_path / "results", time.monotonic() + seconds, say=said.append)
        return [" ".join(line.partition("log:")[0].split()[: -2 if "log:" in line else None]) for line in said]

    return start


def record(tmp_path, name):
    return json.loads((tmp_path / "work/jobs" / f"{name}.json").read_text())


def test_jobs_are_done_in_order_and_once(work, tmp_path):
    first, second = (Job(name, ("-c", COUNT, f"{tmp_path}/{name}")) for name in ("first", "second"))
    assert work(first, second) == ["done first", "done second"]
    assert work(first, second) == ["done before first", "done before second"]
    assert (tmp_path / "first").read_text() == "x"
    assert record(tmp_path, "first")["exit_code"] == 0
    assert (tmp_path / "work/logs/first.log").read_text().startswith("$ ")


def test_what_came_home_is_not_done_again(work, tmp_path):
    job = Job("once", ("-c", COUNT, f"{tmp_path}/once"))
    (tmp_path / "results/gpu").mkdir(parents=True)
    (tmp_path / "results/gpu/once.json").write_text('{"exit_code": 0}')
    assert work(job) == ["done before once"]
    (tmp_path / "results/gpu/once.json").write_text('{"exit_code": 1}')
    assert work(job) == ["done once"]


def test_what_is_cut_off_may_save_itself_and_the_rest_waits(work, tmp_path):
    started = time.monotonic()
    long = Job("long", ("-c", PATIENT, f"{tmp_path}/long"), runs=("a/run",), seconds=1)
    said = work(long, Job("next", ("-c", ""), seconds=5), seconds=6)
    assert said == ["cut off long", "no time next"]
    assert (tmp_path / "long").read_text() == "saved"
    assert record(tmp_path, "long")["exit_code"] is None
    assert time.monotonic() - started < 20


def test_what_does_not_stop_is_killed_with_its_children(work, tmp_path):
    started = time.monotonic()
    nested = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
{STUBBORN}"""
    assert work(Job("stubborn", ("-c", nested), seconds=1), seconds=4) == ["cut off stubborn"]
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()


def test_what_had_too_little_time_does_not_hold_up_the_rest_again(work, tmp_path):
    slow = Job("slow", ("-c", "import time; time.sleep(60)"), seconds=1)
    after = Job("after", ("-c", COUNT, f"{tmp_path}/after"), seconds=1)
    assert work(slow, after, seconds=4) == ["cut off slow", "no time after"]
    assert work(slow, after, seconds=4) == ["no time slow", "done after"]
    assert work(slow, seconds=9) == ["cut off slow"]


def test_lines_of_an_attempt_that_failed_are_not_kept(work, tmp_path):
    lines = tmp_path / "work/bench-x.jsonl"
    write = f"import sys; open({str(lines)!r}, 'a').write('{{}}\\n'); sys.exit(len(sys.argv) < 2)"
    job = Job("bench-x", ("-c", write), lines=lines, plainer=("plainer",))
    assert work(job) == ["failed (1) bench-x", "done bench-x"]
    assert lines.read_text() == "{}\n"


def test_what_fails_is_tried_in_its_plainer_form_and_does_not_stop_the_others(work, tmp_path):
    picky = Job("picky", ("-c", "import sys; sys.exit(len(sys.argv) < 2)"), plainer=("plainer",))
    broken = Job("broken", ("-c", "raise SystemExit(3)"))
    assert work(broken, picky) == ["failed (3) broken", "failed (1) picky", "done picky"]
    assert record(tmp_path, "picky")["command"].endswith("plainer")
    assert work(broken, picky) == ["failed (3) broken", "done before picky"]


def test_tests_of_a_tree_that_is_no_commit_are_never_done(tmp_path, monkeypatch):
    for head, dirty in (("abc", True), (None, None), ("abc", False)):
        monkeypatch.setattr(jobs_module, "commit", lambda head=head, dirty=dirty: (head, dirty))
        tests = gpu_jobs(tmp_path, tmp_path / "results", "cuda", tiny=False)[0]
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / f"jobs/{tests.name}.json").write_text('{"exit_code": 0}')
        assert is_done(tests, tmp_path, tmp_path / "results") == (dirty is False)
        tried = gpu_jobs(tmp_path, tmp_path / "results", "cpu", tiny=True)[0]
        assert not is_done(tried, tmp_path, tmp_path / "results"), "what was done on a CPU was not done on a GPU"


def test_a_run_is_done_when_its_folder_says_so(tmp_path, tiny):
    config = tiny(f"output={tmp_path / 'work'}/outputs", "epochs=1")
    job = Job("run", (), (run_name(config),))
    assert not is_done(job, tmp_path / "work", tmp_path / "results")
    run(config)
    assert is_done(job, tmp_path / "work", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "work/outputs").rename(tmp_path / "results/runs")
    assert is_done(job, tmp_path / "work", tmp_path / "results")


def test_the_most_valuable_comes_first_and_every_command_can_be_composed(tmp_path):
    jobs = gpu_jobs(tmp_path, tmp_path, "cuda", tiny=False)
    names = [job.name.partition("-")[0] for job in jobs]
    assert list(dict.fromkeys(names)) == ["tests", "bench", "speedrun", "paper", "data_size"]
    by_name = {job.name: job for job in jobs}
    assert by_name["paper-sa_learned"].runs == ("default/sa_learned/paper-paper/frac1/seed0",)
    assert by_name["speedrun-3"].runs == ("speedrun/sa_quadratic/paper-speedrun/frac1/seed3",)
    assert len(by_name["data_size-0.01"].runs) == 15
    assert "data_size_epochs_100/resnet10/paper-modern/frac0.01/seed2" in by_name["data_size-0.01"].runs


def test_packs_hold_what_must_be_kept_and_no_more(tmp_path, monkeypatch):
    work, run = tmp_path / "work", tmp_path / "work/outputs/s/m/mini-modern/frac1/seed0"
    (run / "checkpoints").mkdir(parents=True)
    (work / "jobs").mkdir()
    kept = {"outputs/s/m/mini-modern/frac1/seed0/metrics.jsonl": b"a" * 900, "jobs/tests.json": b"{}",
            "bench-layer.jsonl": b"b" * 400}  # fmt: skip
    left = {"outputs/s/m/mini-modern/frac1/seed0/checkpoints/step.pt": b"c", "packed/gpu-1.tar.gz": b"old",
            "outputs/s/m/mini-modern/frac1/seed0/weights.safetensors": b"w"}  # fmt: skip
    large = {"logs/huge.log": b"d" * 7000}
    for name, content in (kept | left | large).items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    monkeypatch.setattr(jobs_module, "PART_BYTES", 7000)  # the headers of two files and a little
    archives, too_large = pack(work, tmp_path / "packs")
    assert too_large == ["logs/huge.log"]
    assert len(archives) == 2
    assert all(path.stat().st_size < 7000 for path in archives)
    unpack(archives, tmp_path / "home")
    found = {path.relative_to(tmp_path / "home").as_posix(): path.read_bytes()
             for path in (tmp_path / "home").rglob("*") if path.is_file()}  # fmt: skip
    assert found == kept
    assert sorted(path.name for path in (tmp_path / "packs").iterdir()) == ["gpu-1.tar.gz", "gpu-2.tar.gz"]
    (work / "bench-layer.jsonl").unlink()
    assert [path.name for path in pack(work, tmp_path / "packs")[0]] == ["gpu-1.tar.gz"]
    assert not (tmp_path / "packs/gpu-2.tar.gz").exists(), "which would be of the pack before"
    with pytest.raises(RunFolderError, match="there is nothing to pack"):
        pack(tmp_path / "nowhere", tmp_path / "packs")


def test_an_archive_that_is_none_is_said(tmp_path):
    (tmp_path / "gpu-1.tar.gz").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="is no archive"):
        unpack([tmp_path / "gpu-1.tar.gz"], tmp_path / "home")


def test_what_comes_home_comes_once_and_failure_does_not_replace_success(tmp_path):
    work, results = tmp_path / "work", tmp_path / "results"
    (work / "jobs").mkdir(parents=True)
    results.mkdir()
    (results / "bench.jsonl").write_text('{"old": 1}\n')
    (work / "bench-layer.jsonl").write_text('{"new": 1}\n{"old": 1}\n')
    (work / "bench-step.jsonl").write_text('{"cut off": 1}\n')
    for name, code in (("tests", 0), ("bench-layer", 0), ("bench-step", "null")):
        (work / f"jobs/{name}.json").write_text(f'{{"exit_code": {code}}}')
    assert bring_home(work, results) == ["bench-layer.json", "bench-step.json", "tests.json", "1 lines of bench.jsonl"]
    assert (results / "bench.jsonl").read_text() == '{"old": 1}\n{"new": 1}\n'
    (work / "jobs/tests.json").write_text('{"exit_code": 1}')
    assert bring_home(work, results) == ["bench-step.json"], "which is not done yet"
    assert (results / "gpu/tests.json").read_text() == '{"exit_code": 0}'


def options(tmp_path, results, only):
    """Options of scripts/gpu_jobs.py for one kind of job of no size, into folders of their own."""
    folders = ["--work", str(tmp_path / "work"), "--results", str(results)]
    return ["--tiny", "--device", "cpu", *folders, "--only", only]


def test_the_command(tmp_path):
    def start(*arguments):
        command = [PYTHON, "scripts/gpu_jobs.py", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    results = tmp_path / "results"
    results.mkdir()
    fixed = options(tmp_path, results, "speedrun-0")
    assert start(*fixed, "--list").stdout == "to do  speedrun-0\n"
    done = start(*fixed, "--budget", "4m")
    assert done.stdout.startswith("done         speedrun-0"), done.stdout + done.stderr
    assert "packed " in done.stdout
    assert start(*fixed, "--list").stdout == "done   speedrun-0\n"
    archive = tmp_path / "work/packed/gpu-1.tar.gz"
    home = start("--bring-home", str(archive), "--results", str(results))
    assert home.returncode == 0, home.stderr
    assert "added  tiny/sa_quadratic/mini-speedrun/frac1/seed0" in home.stdout
    assert "tiny" in (results / "runs.csv").read_text()
    assert (results / "gpu/speedrun-0.json").exists()
    assert start("--budget", "soon").stderr.strip().endswith("soon is no time such as 9m, 540s or 1h")
    assert start(*fixed[:-1], "nothing", "--list").stderr == "error: no job begins with nothing; --list names them\n"
    elsewhere = start(*fixed, "--budget", "1s", "--data", f"{tmp_path}/nowhere").stderr
    assert elsewhere == f"error: --data {tmp_path}/nowhere: no such folder\n"


def test_a_tree_that_does_not_know_its_commit_is_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    script = importlib.import_module("gpu_jobs")
    monkeypatch.setattr(script, "commit", lambda: (None, None))
    with pytest.raises(ConfigError, match="ATTNCONV_COMMIT"):
        script.check_commit(tiny=False)
    monkeypatch.setattr(script, "commit", lambda: ("abc", True))
    script.check_commit(tiny=False)
    assert "kept out of published tables" in capsys.readouterr().err


def test_data_that_lie_elsewhere_are_linked_to_their_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    script = importlib.import_module("gpu_jobs")
    monkeypatch.setattr(script, "REPOSITORY", tmp_path / "clone")
    (tmp_path / "clone").mkdir()
    for name in ("cifar10", "other"):
        (tmp_path / name).mkdir()
    for _ in range(2):
        script.link_data(tmp_path / "cifar10")
        assert (tmp_path / "clone/data/cifar10").resolve() == tmp_path / "cifar10"
    with pytest.raises(ConfigError, match="there is another"):
        script.link_data(tmp_path / "other")


def test_a_killed_session_ends_its_work_and_packs_it(tmp_path):
    fixed = options(tmp_path, tmp_path, "data_size")
    command = [PYTHON, "scripts/gpu_jobs.py", *fixed, "--budget", "5m"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "work/logs/data_size-0.01.log"
    for _ in range(600):
        if log.exists() and "epoch" in log.read_text():
            break
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "packed " in output
    assert not [cell for cell in (tmp_path / "work/outputs").glob("**/seed*") if look(cell).status == "running"]


def test_a_tree_without_its_history_is_what_it_is_told_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr("attnconv.tracking.provenance.REPOSITORY", tmp_path)
    monkeypatch.delenv("ATTNCONV_COMMIT", raising=False)
    assert commit() == (None, None)
    monkeypatch.setenv("ATTNCONV_COMMIT", "abc")
    assert commit() == ("abc", False)
    monkeypatch.setenv("ATTNCONV_COMMIT", "abc-dirty")
    assert commit() == ("abc", True)
