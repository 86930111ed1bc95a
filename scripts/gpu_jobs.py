"""The next piece of the study for whoever has a GPU for a while: `python scripts/gpu_jobs.py --budget 9m`

Runs what is unfinished, most valuable first, until the time is up: the tests that need a GPU; the benchmark; five seeds
of the speedrun; the paper's four networks at paper scale; the data-size study at paper scale. A run that is cut off has
saved itself and goes on at the next call; a job that fails is left for the next call, and its log says why. At the end
everything that must be kept is packed into archives of less than 16 MiB, to be carried to a clone:

    python scripts/gpu_jobs.py --bring-home gpu-1.tar.gz ...       there: adds it to results/
    python scripts/make_tables.py                                  and to the tables

Work counts as done if it is in the work folder or in results/. Of a tree that was copied without .git, ATTNCONV_COMMIT
tells the commit. `--tiny --device cpu` tries everything out on networks of no size.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

from attnconv.errors import one_line_errors
from attnconv.jobs import bring_home, gpu_jobs, is_done, pack, unpack, work_through
from attnconv.study.collect import gather, tabulate
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
    parser.add_argument("--weights", action="store_true", help="pack trained weights too")
    parser.add_argument("--device", default="cuda")
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
        choose_device(arguments.device)
        default = REPOSITORY / "outputs" / ("gpu-tiny" if arguments.tiny else "gpu")
        work = (arguments.work or default).absolute()
        jobs = gpu_jobs(work, arguments.device, arguments.tiny)
        if arguments.only:
            jobs = [job for job in jobs if job.name.startswith(tuple(arguments.only))]
        if not jobs:
            sys.exit(f"error: no job begins with {' or '.join(arguments.only)}; --list names them")
        if arguments.list:
            for job in jobs:
                print(f"{'done' if is_done(job, work, arguments.results) else 'to do':<6} {job.name}")
            return
        deadline = started + arguments.budget - PACKING_SECONDS
        work_through(jobs, work, arguments.results, deadline, say=lambda line: print(line, flush=True))
        archives, too_large = pack(work, (arguments.pack or work / "packed").absolute(), arguments.weights)
        for path in archives:
            print(f"packed       {path}  {path.stat().st_size / 2**20:.1f} MiB")
        for name in too_large:
            print(f"left behind  {name}: too large for an archive")


def carry_home(archives: list[Path], results: Path) -> None:
    """Add archives to results/, and say what that was."""
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
