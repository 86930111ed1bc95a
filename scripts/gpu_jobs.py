"""The next piece of the study for whoever has a GPU for a while: `python scripts/gpu_jobs.py --budget 9m`

Runs what is unfinished, most valuable first, until the time is up: the tests that need a GPU; the benchmark; five seeds
of the speedrun; the paper's four networks at paper scale; the data-size study at paper scale. A run that is cut off has
saved itself and goes on at the next call; a job that fails is left for the next call, and its log says why. At the end
everything that must be kept is packed into archives of less than 16 MiB, to be carried to a clone:

    python scripts/gpu_jobs.py --bring-home gpu-1.tar.gz ...       there: adds it to results/
    python scripts/make_tables.py                                  and to the tables

Work counts as done if it is in the work folder or in results/; unfinished runs stay where they are, with checkpoints.
Of a tree that was copied without .git, ATTNCONV_COMMIT tells the commit (git describe --always --abbrev=40 --dirty).
`--budget 5m --tiny --device cpu` tries everything out on networks of no size.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from attnconv.errors import ConfigError, one_line_errors
from attnconv.jobs import bring_home, gpu_jobs, is_done, pack, unpack, work_through
from attnconv.study.collect import check_version, gather, tabulate
from attnconv.tracking.provenance import commit
from attnconv.training.precision import choose_device

REPOSITORY = Path(__file__).resolve().parents[1]
PACKING_SECONDS = 15  # of the budget


def seconds(text: str) -> float:
    """9m, 540s, 540 -> 540.0"""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 9m, 540s or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=seconds, help="all the time there is: 9m, 540s, 1h")
    parser.add_argument("--work", type=Path, help="run folders, records and logs; outputs/gpu unless told")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="where archives go; WORK/packed unless told")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where CIFAR-10 is, if not in data/cifar10")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="jobs whose names begin so")
    parser.add_argument("--tiny", action="store_true", help="networks of no size on handwritten digits")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, and do nothing")
    parser.add_argument("--bring-home", nargs="+", type=Path, metavar="ARCHIVE", help="add archives to results/")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="of this repository")
    arguments = parser.parse_args()
    if not (arguments.budget or arguments.list or arguments.bring_home):
        parser.error("say --budget, --list or --bring-home")
    with one_line_errors([]):
        if arguments.bring_home:
            carry_home(arguments.bring_home, arguments.results)
            return
        default = REPOSITORY / "outputs" / ("gpu-tiny" if arguments.tiny else "gpu")
        work, results = (arguments.work or default).absolute(), arguments.results.absolute()
        jobs = gpu_jobs(work, results, arguments.device, arguments.tiny)
        if arguments.only:
            jobs = [job for job in jobs if job.name.startswith(tuple(arguments.only))]
        if not jobs:
            raise ConfigError(f"no job begins with {' or '.join(arguments.only)}; --list names them")
        if arguments.list:
            for job in jobs:
                print(f"{'done' if is_done(job, work, results) else 'to do':<6} {job.name}")
            return
        choose_device(arguments.device)
        check_commit(arguments.tiny)
        if arguments.data is not None:
            link_data(arguments.data)
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # packing what there is, below
        deadline = started + arguments.budget - PACKING_SECONDS
        try:
            work_through(jobs, work, results, deadline, say=lambda line: print(line, flush=True))
        finally:
            archives, too_large = pack(work, (arguments.pack or work / "packed").absolute())
            for path in archives:
                print(f"packed       {path}  {path.stat().st_size / 2**20:.1f} MiB")
            for name in too_large:
                print(f"left behind  {name}: too large for an archive")


def check_commit(tiny: bool) -> None:
    """Refuse hours of work that no table would take; warn of a tree that is not quite a commit."""
    head, dirty = commit()
    if head is None and not tiny:
        raise ConfigError(
            "this tree does not know its commit: ATTNCONV_COMMIT=$(git describe --always --abbrev=40 --dirty)"
        )
    if dirty and not tiny:
        print(
            "warning: the tree differs from its commit; what it finds is kept out of published tables", file=sys.stderr
        )


def link_data(folder: Path) -> None:
    """Let data/cifar10 be `folder`, so that runs are configured as they are everywhere."""
    place = REPOSITORY / "data/cifar10"
    if not folder.is_dir():
        raise ConfigError(f"--data {folder}: no such folder")
    if place.exists() and place.resolve() != folder.resolve():
        raise ConfigError(f"--data {folder}: there is another {place}")
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(folder.resolve())


def carry_home(archives: list[Path], results: Path) -> None:
    """Add archives to results/, and say what that was."""
    check_version(results)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        unpack(archives, work)
        for name in bring_home(work, results):
            print(f"added  {name}")
        gathered = gather(work / "outputs", results)
        for run in gathered.added:
            print(f"added  {run}")
        for kind in ("other", "unfinished", "damaged"):
            for run, detail in getattr(gathered, kind).items():
                print(f"{kind}  {run}: {detail}")
    for run, detail in tabulate(results).items():
        print(f"damaged  {run}: {detail}")


if __name__ == "__main__":
    main()
