"""Train one entry of CPU-10 for ten minutes, and print and keep its line: the rules are in results/cpu10.md.

    python scripts/cpu10.py sa_quadratic --seed 0 --json results/cpu10.jsonl
    python scripts/cpu10.py airbench94 --json results/external/NAME/cpu10.jsonl      (on your machine)

Run it alone on the machine. Our networks train for as many epochs as fit into ten minutes on the machines in LOG.md; if
your machine is slower or faster, set --epochs. A run of ours is also a run folder in outputs/, which scripts/collect.py
keeps. To repeat an entry, move or delete that folder.
"""

import json

from attnconv.errors import one_line_errors
from attnconv.files import append_json_line
from attnconv.settings.arguments import (
    ScriptParser,
    a_path,
    above_zero,
    check_names,
    check_target,
    positive,
    whole_number,
)


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("entry", metavar="ENTRY", help="one of ours, or a peer, in results/cpu10.md")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="default: 0")
    parser.add_argument("--minutes", type=above_zero, help="only for peers (default: 10); use less for a quick test")
    parser.add_argument(
        "--epochs", type=positive, help="only for sa_quadratic and conv3x3, which train a fixed number of epochs"
    )
    parser.add_argument("--json", type=a_path, metavar="FILE", help="append the line to this file")
    arguments = parser.parse_args()
    check_target(parser, arguments.json)
    import torch  # --help does not need it

    from attnconv.bench.cpu10 import ENTRIES, enter
    from attnconv.runs.provenance import measured_on

    check_names(parser, "ENTRY", [arguments.entry], ENTRIES)
    about = measured_on(torch.device("cpu"))  # before the training, during which files may change
    line = about | enter(arguments.entry, arguments.seed, arguments.minutes, arguments.epochs)
    minutes = line["train_seconds"] / 60
    print(
        f"{line['entry']}, seed {line['seed']}: {line['test_acc']:.2%} on test after {minutes:.2f} minutes of training"
    )
    print(json.dumps(line))
    if arguments.json is not None:
        append_json_line(arguments.json, line)


if __name__ == "__main__":
    with one_line_errors():
        main()
