"""Work for a borrowed GPU: what is still to be done, most valuable first, in slices that resume, and packed to travel.

A job is a command of this repository. What is done is read from what it left: run folders say it themselves, other jobs
leave a record. Both count wherever they are, in the work folder or in results/, so that the next machine goes on with
what is missing.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnconv.config import compose
from attnconv.errors import ConfigError, RunFolderError
from attnconv.tracking.provenance import REPOSITORY, commit
from attnconv.tracking.run_folder import run_name
from attnconv.tracking.states import collected_folder, look
from attnconv.training.checkpoint import write_whole

GRACE_SECONDS = 30.0  # for a run to save itself, before it is killed
PART_BYTES = 15 * 2**20  # of a pack; what carries them may refuse files of 16 MiB
LEFT_BEHIND = ("checkpoints", "weights.safetensors", ".lock", ".owner", ".sweeps", "packed")

SEEDS = range(5)
PAPER_MODELS = ("sa_quadratic", "resnet18", "sa_learned", "sa_learned_content")
BENCH_PARTS = ("layer", "step", "inference", "epoch", "growth")
SWEPT = ("sa_quadratic", "resnet10")
DATA_SIZE_MODELS = ("sa_quadratic", "conv3x3", "sa_learned", "sa_learned_content", "resnet10")
FRACTIONS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
TINY = (
    "data=digits", "scale=mini", "scale.patch=2", "scale.layers=2", "scale.heads=3", "scale.width=8", "scale.hidden=8",
    "scale.cnn_width=2", "recipe.batch_size=200", "recipe.sizes=[]",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        name: of its record and its log.
        command: arguments of the Python interpreter, run in the repository.
        runs: names of the runs that it makes, if it is done once they are; else its record says so.
        lines: the file of lines that it writes, if it does.
        seconds: what it needs at least: with less left it is not begun.
        plainer: arguments to add for another try, should it fail.
        once: False for one that is to be done again every time.
    """

    name: str
    command: tuple[str, ...]
    runs: tuple[str, ...] = ()
    lines: Path | None = None
    seconds: float = 60.0
    plainer: tuple[str, ...] = ()
    once: bool = True


def gpu_jobs(work: Path, results: Path, device: str, tiny: bool) -> list[Job]:
    """All jobs, most valuable first.

    Args:
        work: where run folders and records go.
        results: what has come home from earlier machines.
        device: of device=.
        tiny: the same jobs on networks of no size, to try them out.
    """
    head, dirty = commit()
    # What was done elsewhere, or on networks of no size, has not been done on a GPU.
    kind = ("" if device == "cuda" else f"-{device}") + ("-tiny" if tiny else "")
    bench_options = ("--device", device, *(["--tiny"] if tiny else []))

    def bench(part: str, *command: str) -> Job:
        lines = work / f"bench-{part}{kind}.jsonl"
        return Job(f"bench-{part}{kind}", (*command, *bench_options, "--json", str(lines)), lines=lines)

    fixed = [f"output={work}/outputs", f"device={device}", "logger=none"]
    small = [*TINY, "epochs=2", "name=tiny"] if tiny else []

    def train(name: str, *overrides: str) -> Job:
        config = compose([*overrides, *small, *fixed])
        command = ("train.py", *overrides, *small, *fixed, f"compile={str(not tiny).lower()}")
        return Job(name, command, (run_name(config),), plainer=() if tiny else ("compile=false",))

    tests = ("-m", "pytest", "-q", "-m", "gpu", "tests")
    return [
        Job(f"tests{kind}-{(head or 'unknown')[:10]}", tests, seconds=120, once=head is not None and not dirty),
        *(bench(part, "scripts/bench.py", "--only", part) for part in BENCH_PARTS),
        *(train(f"speedrun-{seed}", "experiment=speedrun", f"seed={seed}") for seed in SEEDS),
        *(train(f"paper-{model}", f"model={model}", "recipe=paper") for model in PAPER_MODELS),
        *(bench(f"sweep-{model}", "scripts/bench_sweep.py", "--models", model, "--rounds", "1") for model in SWEPT),
        *_data_size(results, fixed, small),
    ]


def _data_size(results: Path, fixed: Sequence[str], small: Sequence[str]) -> Iterator[Job]:
    """The data-size study, a fraction at a time, its seeds stacked."""
    known = [f"collected={results}"] if results.is_dir() else []
    common = ["experiment=data_size", "recipe=modern", *small, *fixed, *known, "retry_failed=true"]
    configs = [compose([*common, f"model={model}"]) for model in DATA_SIZE_MODELS]
    for fraction in FRACTIONS:
        runs = tuple(
            run_name(replace(config, seed=seed, data=replace(config.data, fraction=fraction)))
            for config in configs
            for seed in range(3)
        )
        swept = (f"data.fraction={fraction:g}", f"model={','.join(DATA_SIZE_MODELS)}", "seed=0,1,2")
        command = ("train.py", *common, *swept, "hydra/launcher=stacked", "hydra.launcher.runs=3")
        yield Job(f"data_size-{fraction:g}", command, runs)


def is_done(job: Job, work: Path, results: Path) -> bool:
    """Whether a job needs no more work, here or anywhere whose results came home."""
    if job.runs:
        return all(
            look(work / "outputs" / run).status == "done" or look(collected_folder(results, run)).status == "done"
            for run in job.runs
        )
    return job.once and any(_exit_code(folder / f"{job.name}.json") == 0 for folder in (work / "jobs", results / "gpu"))


def _exit_code(record: Path) -> int | None:
    """Of a job's record; None if there is none, or it was cut off."""
    return json.loads(record.read_text())["exit_code"] if record.exists() else None


def work_through(
    jobs: Sequence[Job],
    work: Path,
    results: Path,
    deadline: float,
    python: str = sys.executable,
    say: Callable[[str], None] = print,
) -> None:
    """Do what is not done, in order, until the time is up; a run that is cut off then has saved itself.

    A job that fails is tried once more in its plainer form, then left for another time. One that cannot resume, and was
    cut off when it had as much time as there is now, is passed over.

    Args:
        work: where records, logs and run folders go.
        results: what has come home from earlier machines.
        deadline: of time.monotonic(): when everything must have ended.
    """
    for folder in (work / "jobs", work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if is_done(job, work, results):
            say(f"done before  {job.name}")
            continue
        for more in ((), job.plainer):
            left = deadline - time.monotonic() - GRACE_SECONDS
            if left < job.seconds or not (job.runs or left > _cut_after(job, work, results)):
                say(f"no time      {job.name}")
                break
            if job.lines is not None:
                job.lines.unlink(missing_ok=True)  # of an attempt that did not end
            started = time.monotonic()
            code = _run([python, *job.command, *more], work / "logs" / f"{job.name}.log", left)
            taken = time.monotonic() - started
            _record(work, job, [*job.command, *more], code, taken)
            outcome = "cut off" if code is None else "done" if code == 0 else f"failed ({code})"
            log = work / "logs" / f"{job.name}.log"
            last = f"  {log.read_text(errors='replace').strip().splitlines()[-1]}" if code else ""
            say(f"{outcome:<12} {job.name}  {taken:.0f} s  log: {log}{last}")
            if not code or not job.plainer:
                break


def _cut_after(job: Job, work: Path, results: Path) -> float:
    """Seconds that were not enough for a job the last time, here or on an earlier machine; 0 if it was not cut off."""
    for record in (work / "jobs" / f"{job.name}.json", results / "gpu" / f"{job.name}.json"):
        if record.exists():
            return float(json.loads(record.read_text())["seconds"]) if _exit_code(record) is None else 0.0
    return 0.0


def _run(command: Sequence[str], log: Path, seconds: float) -> int | None:
    """The exit code of a command; None if it had to be stopped for the time, after which it had its grace."""
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        # A group of its own: Ctrl-C reaches it through here alone, once, and its children end with it.
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=GRACE_SECONDS)
            with suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _record(work: Path, job: Job, command: Sequence[str], code: int | None, seconds: float) -> None:
    head, dirty = commit()
    record: dict[str, Any] = {
        "name": job.name,
        "command": " ".join(command).replace(str(work), "WORK"),
        "exit_code": code,
        "seconds": seconds,
        "commit": head,
        "dirty": dirty,
    }
    write_whole(work / "jobs" / f"{job.name}.json", (json.dumps(record, indent=2) + "\n").encode())


def pack(work: Path, into: Path) -> tuple[list[Path], list[str]]:
    """Put what must be kept into archives of less than 16 MiB; returns them, and what was too large for any.

    Kept are records, logs, lines of benchmarks and run folders without their checkpoints and weights.

    Raises:
        RunFolderError: there is nothing to keep.
    """
    files = [
        path
        for path in sorted(work.rglob("*"))
        if path.is_file() and not set(path.relative_to(work).parts) & set(LEFT_BEHIND)
    ]
    if not files:
        raise RunFolderError(f"there is nothing to pack in {work}")
    into.mkdir(parents=True, exist_ok=True)
    for old in into.glob("gpu-*.tar.gz"):
        old.unlink()
    parts: list[list[Path]] = [[]]
    too_large, size = [], 0
    for path in files:
        more = path.stat().st_size + 2048  # its header, and what rounds it up
        if more > PART_BYTES:
            too_large.append(path.relative_to(work).as_posix())
            continue
        if size + more > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(path)
        size += more
    archives = []
    for number, part in enumerate(parts, start=1):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in part:
                archive.add(path, path.relative_to(work).as_posix())
        archives.append(into / f"gpu-{number}.tar.gz")
        write_whole(archives[-1], buffer.getvalue())
    return archives, too_large


def unpack(archives: Iterable[Path], work: Path) -> None:
    """Take archives of `pack` apart again, into another work folder.

    Raises:
        ConfigError: one cannot be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    for path in archives:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(work, filter="data")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{path} is no archive of scripts/gpu_jobs.py: {error}") from error


def bring_home(work: Path, results: Path) -> list[str]:
    """Add the records and lines of benchmarks of a work folder to results/; returns what was added, or renewed.

    Run folders are scripts/collect.py's to bring.
    """
    kept = results / "gpu"
    kept.mkdir(parents=True, exist_ok=True)
    added = []
    for path in sorted((work / "jobs").glob("*.json")):
        if _exit_code(kept / path.name) != 0:
            write_whole(kept / path.name, path.read_bytes())
            added.append(path.name)
    bench = results / "bench.jsonl"
    known = bench.read_text().splitlines() if bench.exists() else []
    whole = [
        path for path in sorted(work.glob("bench-*.jsonl")) if _exit_code(work / "jobs" / f"{path.stem}.json") == 0
    ]
    lines = [line for path in whole for line in path.read_text().splitlines()]
    new = [line for line in dict.fromkeys(lines) if line not in set(known)]
    if new:
        write_whole(bench, "".join(f"{line}\n" for line in known + new).encode())
        added.append(f"{len(new)} lines of bench.jsonl")
    return added
