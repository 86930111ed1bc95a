"""Runs per hour of a sweep over seeds, three ways: `python scripts/bench_sweep.py`

    one by one   one run after the other, each with the whole machine
    joblib       several processes at once, the machine's threads shared out among them
    stacked      one process, parameters stacked (attnconv.training.stacked)

Each is the command that a user would give, timed from its start to its end, in turn, on images that are made up:
starting Python, making the data and evaluating count. Prints runs per hour, medians over rounds, and the ratio to one
by one.
`--json` appends every line to a file, with hardware, versions and commit.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from attnconv.errors import UserError, one_line_errors
from attnconv.study.bench import Spread, ratios, take_turns
from attnconv.study.tables import SWEEP_HEADER, markdown, sweep_row
from attnconv.tracking.provenance import commit, describe_device, versions
from attnconv.training.precision import choose_device, choose_precision

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = ("scale.layers=1", "scale.width=8", "scale.hidden=8", "scale.heads=2", "scale.cnn_width=2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sa_quadratic", "resnet10"], metavar="MODEL")
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, help="runs of the sweep; 4 on a CPU, else 8")
    parser.add_argument("--jobs", type=int, help="processes at once of joblib; a core each on a CPU, else 4")
    parser.add_argument("--images", type=int, default=1250, help="training images of a run: 2.5%% of CIFAR-10")
    parser.add_argument("--epochs", type=int, help="4 on a CPU, else 20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="networks of no size, to try it out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every line to it")
    arguments = parser.parse_args()
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    with one_line_errors([]):
        device = choose_device(arguments.device)
        on_cpu = device.type == "cpu"
        seeds = arguments.seeds or (2 if arguments.tiny else 4 if on_cpu else 8)
        jobs = arguments.jobs or (min(seeds, os.cpu_count() or 1) if on_cpu else min(seeds, 4))
        epochs = arguments.epochs or (1 if arguments.tiny else 4 if on_cpu else 20)
        images, rounds = (64, 1) if arguments.tiny else (arguments.images, arguments.rounds)
        ways = {
            "one by one": (),
            "joblib": ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"),
            "stacked": ("hydra/launcher=stacked", f"hydra.launcher.runs={seeds}"),
        }
        if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
            print("without joblib, whose launcher is not installed: pip install -r requirements.txt")
            del ways["joblib"]
        head, dirty = commit()
        about = {"device": describe_device(device), "commit": head, "dirty": dirty, "versions": versions()}
        print(f"{about['device']}, {seeds} runs of {images:,} images and {epochs} epochs, joblib with {jobs} processes")
        rows = []
        for model in arguments.models:
            sweep = [
                "-m", f"model={model}", f"seed={','.join(map(str, range(seeds)))}", f"scale={arguments.scale}",
                "recipe=modern", "data=pairs", f"data.train_images={images}", f"data.test_images={images}",
                "logger=none", f"eval_every={epochs}", f"epochs={epochs}", f"device={device}",
                *(TINY if arguments.tiny else ()),
            ]  # fmt: skip
            works = {
                way: partial(start, [*sweep, *more], seeds if way == "stacked" else 1) for way, more in ways.items()
            }
            seconds = take_turns(works, rounds, device)
            for way, taken in seconds.items():
                ratio, hourly = ratios(seconds["one by one"], taken), Spread.of([3600 * seeds / each for each in taken])
                line: dict[str, Any] = {
                    "part": "sweep", "model": model, "scale": arguments.scale, "way": way, "seeds": seeds, "jobs": jobs,
                    "images": images, "epochs": epochs, "rounds": rounds, "precision": choose_precision("auto", device),
                    "runs_per_hour": vars(hourly), "ratio": vars(ratio), **about,
                }  # fmt: skip
                if arguments.json is not None:
                    with arguments.json.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                rows.append(sweep_row(line))
        print(markdown(SWEEP_HEADER, rows))


def start(overrides: list[str], stacked: int) -> None:
    """Run a sweep into a folder of its own.

    Raises:
        UserError: it failed, or so many runs did not share their time.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *overrides, f"output={folder}"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        results = [json.loads(path.read_text()) for path in Path(folder).glob("**/result.json")]
    complaint = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {complaint}")
    if any(result.get("stacked", 1) != stacked for result in results):
        raise UserError(f"{' '.join(command)}: not all runs were stacked: {complaint}")


if __name__ == "__main__":
    main()
