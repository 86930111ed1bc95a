"""Kill a run at random moments, restart it each time, and compare its files with those of an uninterrupted run.

    python tests/torture.py --kills 50

After some of the kills, it also flips a bit in the newest checkpoint, truncates it, or appends half a line to a log.
A child process is forked for each start, so imports cost nothing, and most kills hit training, evaluation or a write.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from attnconv.analysis.heads import HeadWatcher
from attnconv.config import compose
from attnconv.run import run
from attnconv.runs.checkpoint import is_sound, newest
from attnconv.runs.folder import run_folder_path
from conftest import TINY_SCALE, empty_figure, write_arrays

OVERRIDES = (
    *TINY_SCALE, "data=arrays", "logger=none", "device=cpu", "epochs=12", "recipe.batch_size=4", "checkpoint_steps=1",
    "recipe.dropout=0.1", "recipe.attention_dropout=0.1", "recipe.momentum=0.9",
)  # fmt: skip
KEPT = ("metrics.jsonl", "heads.jsonl", "predictions.npy", "attention_maps.npy", "heads.png", "weights.safetensors")
LINES = ("metrics.jsonl", "timing.jsonl", "heads.jsonl")
# Keys that may differ in result.json.
CLOCK = ("seconds", "train_seconds", "cpu_seconds", "images_per_second", "peak_memory_bytes", "name")
FAULTS = ("none", "none", "flipped bit", "truncated", "torn line")


def configuration(root: Path, name: str, *overrides: str) -> Any:
    if not (root / "arrays").exists():
        write_arrays(root / "arrays")
    return compose([*OVERRIDES, f"data.root={root}/arrays", f"output={root}/outputs", f"name={name}", *overrides])


def sit(config: Any, log: Path) -> int:
    """Start the run in a child process, and return its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a", buffering=1) as sys.stdout:
            sys.stderr = sys.stdout
            run(config)
        status = 0
    except BaseException:
        traceback.print_exc(file=log.open("a"))
    finally:
        os._exit(status)


def injure(folder: Path, fault: str, draw: random.Random) -> tuple[str, str | None]:
    """Damage a file as a crash or a failing disk could, and return the fault and the damaged checkpoint."""
    checkpoint, checkpoints = newest(folder / "checkpoints"), list((folder / "checkpoints").glob("*.pt"))
    written = [folder / name for name in LINES if (folder / name).exists()]
    if fault == "torn line" and written:
        with draw.choice(written).open("a") as file:
            file.write('{"epoch": 99, "train/lo')
        return fault, None
    if len(checkpoints) < 2 or not all(map(is_sound, checkpoints)) or fault not in ("flipped bit", "truncated"):
        return "none", None
    assert checkpoint is not None
    content = bytearray(checkpoint.read_bytes())
    if fault == "flipped bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    else:
        del content[draw.randrange(len(content)) :]
    checkpoint.write_bytes(content)
    return fault, checkpoint.name


def torture(root: Path, faults: Sequence[str], seed: int, *overrides: str) -> dict[str, int]:
    """Kill a run until each of the faults was injected after a kill, in order, and compare it with a run left alone.

    A fault waits for the next kill while the files that it needs do not exist.

    Returns:
        How often each fault was injected, and how often the run had already ended.

    Raises:
        AssertionError: something differs.
    """
    draw, met, injured, left = random.Random(seed), Counter[str](), set[str | None](), list(faults)
    calm, hurt = (configuration(root, name, *overrides) for name in ("calm", "hurt"))
    started = time.monotonic()
    assert os.waitpid(sit(calm, root / "calm.log"), 0)[1] == 0, (root / "calm.log").read_text()
    whole = time.monotonic() - started
    while left:
        assert met.total() < 20 * len(faults), f"{left[0]} cannot be injected"
        child = sit(hurt, root / "hurt.log")
        time.sleep(draw.uniform(0.0, 0.7 * whole))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if is_done(hurt):
            assert_same(calm, hurt)
            shutil.rmtree(run_folder_path(hurt))
            met["had ended"] += 1
            continue
        fault, checkpoint = injure(run_folder_path(hurt), left[0], draw)
        injured |= {checkpoint} - {None}
        met[fault] += 1
        if fault == left[0]:
            del left[0]
    status = os.waitpid(sit(hurt, root / "hurt.log"), 0)[1]
    log = (root / "hurt.log").read_text()
    assert status == 0, log
    assert_same(calm, hurt)
    assert "Traceback" not in log, log
    # Compare names, because a checkpoint that is written again between epochs has the same name as before.
    noticed = {Path(line.split()[1]).name for line in log.splitlines() if "is damaged (its hash" in line}
    assert noticed == injured, "a damaged checkpoint went unnoticed, or a sound one was refused"
    assert len(list((run_folder_path(hurt) / "checkpoints").iterdir())) <= 2, "something was left behind"
    return dict(met)


def torture_without_heads(found: Connection, *arguments: Any) -> None:
    """Torture a run that draws no heads, and send what was met."""
    HeadWatcher.figure = empty_figure  # type: ignore[method-assign]
    found.send(torture(*arguments))


def is_done(config: Any) -> bool:
    result = run_folder_path(config) / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] == "done"


def assert_same(calm: Any, hurt: Any) -> None:
    """Compare the files without timings byte by byte, and result.json except for timings and the name."""
    folders = [run_folder_path(config) for config in (calm, hurt)]
    for file in KEPT:
        one, other = ((folder / file).read_bytes() if (folder / file).exists() else None for folder in folders)
        assert one == other, file
    assert (folders[0] / "metrics.jsonl").stat().st_size > 0
    one, other = (json.loads((folder / "result.json").read_text()) for folder in folders)
    for key in CLOCK:
        del one[key], other[key]
    assert one == other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="at least; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faults = random.Random(arguments.seed).choices(FAULTS, k=arguments.kills)
    for recipe in ("modern", "paper"):
        with tempfile.TemporaryDirectory() as root:
            met = torture(Path(root), faults, arguments.seed, f"recipe={recipe}")
        print(f"recipe={recipe}: the same bytes after {met}", flush=True)


if __name__ == "__main__":
    main()
