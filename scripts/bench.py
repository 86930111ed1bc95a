"""Time our network against the published formulation: `python scripts/bench.py [--only PART ...]`

Both run alternately in one process, with the same network, weights and batches. Before timing, their outputs must
agree, in float32 and in the timed precision. The published formulation is src/attnconv/bench/published.py: float32,
eager, dense. Ours is what train.py runs, in the precision that it chooses; both use SGD. Dropout is off, except in the
cases that name it: dropout on probabilities, which recipe=paper has and recipe=modern does not have, leaves only dense
products. Parts:

    layer      one attention layer, forward and backward
    step       a training step: forward, loss, backward, SGD
    epoch      training on --images images, loading and augmentation included (published: one by one, two workers)
    inference  a forward pass

Prints the median ratio of times over alternating rounds, its extremes, images/s and the peak memory of one round (of
one step, if it is an epoch), and our FLOP/s divided by those of a plain float32 and bf16 matrix product in the same
rounds. `--json` appends each line to a file, with hardware, versions and commit.
"""

import argparse
import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: else the profiler prints a lot when it measures memory

from attnconv.errors import one_line_errors
from attnconv.files import append_json_line
from attnconv.report.tables import BENCH_HEADER, bench_row, markdown
from attnconv.settings.arguments import ScriptParser, a_path, check_names, check_target, positive


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="PART", help="measure only these of the parts above (all)")
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", help="measure only these models, such as sa_quadratic (all)"
    )
    parser.add_device("auto")
    parser.add_argument("--rounds", type=positive, help="number of rounds (5, or 1 with --tiny)")
    parser.add_argument("--images", type=positive, help="images of an epoch (2560, or 32 with --tiny)")
    parser.add_argument("--tiny", action="store_true", help="the same cases on tiny networks, as a quick test")
    parser.add_argument(
        "--compile", action="store_true", help="run our network under torch.compile, as with compile=true"
    )
    parser.add_argument("--json", type=a_path, metavar="FILE", help="append each line to this file")
    arguments = parser.parse_args()
    check_target(parser, arguments.json)
    measure(arguments, parser)


def measure(arguments: argparse.Namespace, parser: ScriptParser) -> None:
    """Time what the command line asks for, and print each line when it is measured."""
    import torch  # --help does not need it

    from attnconv.bench.compare import IMAGES, ON_CPU, ON_GPU, PARTS, ROUNDS, TINY, Bench, Case
    from attnconv.runs.provenance import measured_on
    from attnconv.training.device import choose_device

    known = sorted({case.model for case in ON_CPU + ON_GPU})
    parts, models = arguments.only or PARTS, arguments.models or known
    check_names(parser, "--only", parts, PARTS)
    check_names(parser, "--models", models, known)
    if arguments.images is not None and "epoch" not in parts:
        parser.error("--images is for the part epoch: leave it out")
    device = choose_device(arguments.device)
    rounds, images = (1, 32) if arguments.tiny else (ROUNDS, IMAGES)
    bench = Bench(device, arguments.rounds or rounds, arguments.images or images, arguments.compile, arguments.tiny)
    about = measured_on(device)
    print(f"{about['device']}, ours in {bench.precision}, torch {torch.__version__}")
    found = False
    cases = ON_GPU if device.type == "cuda" else ON_CPU
    if arguments.tiny:
        cases = tuple(dict.fromkeys(Case(case.part, case.model, "mini", 4, TINY, case.dropout) for case in cases))
    for case in cases:
        if case.part in parts and case.model in models:
            line = bench.compare(case)
            table = markdown(BENCH_HEADER, [bench_row(line | about)]).splitlines()
            print("\n".join(table[2:] if found else table), flush=True)
            found = True
            if arguments.json is not None:
                append_json_line(arguments.json, line | about)
    if not found:
        parser.error("no measurement has one of these parts and one of these models")
    if arguments.tiny:
        print("These networks are tiny: the numbers show that the comparison runs, and not which is faster.")


if __name__ == "__main__":
    with one_line_errors():
        main()
