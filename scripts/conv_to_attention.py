"""Convert all convolutions of a trained CNN to attention, and check that its predictions do not change (Theorem 1).

    python scripts/conv_to_attention.py --checkpoint RUN                        a finished run
    python scripts/conv_to_attention.py --checkpoint RUN/checkpoints/step00000900-1f0c.pt      an unfinished one
    python scripts/conv_to_attention.py --model mobilenetv2_100 --checkpoint FILE    weights alone (.safetensors, .pt)
    python scripts/conv_to_attention.py --model resnet18 scale=mini        random weights; settings as for train.py
    python scripts/conv_to_attention.py --sweep [NAME ...] --json FILE      models of timm with random weights

A model's name is one of configs/model/ or one of timm's. Prints layers and heads, the largest difference between the
logits of both networks on the test images, changed predictions (0 expected), accuracies, parameters, FLOPs and times.
If a layer cannot be converted, the command names it and does nothing. Exit code 1 if a prediction changed, or if
--alpha is so low that logits differ by more than 1e-4 of the largest one. For a run, with all test images and the
default alpha, the numbers are also written to RUN/conversion.json.
"""

import argparse
import sys

from attnconv.config import valid_keys
from attnconv.errors import one_line_errors
from attnconv.files import write_whole
from attnconv.report.examined import CONVERSION
from attnconv.settings.arguments import ScriptParser, a_path, above_zero, check_target, positive

SWEPT_IMAGES = 8
TOLERANCE = 1e-4  # of the largest logit, as in claim T1
OF_ONE_NETWORK = ("model", "checkpoint", "trust", "data", "alpha", "batch", "device")  # arguments


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--model", metavar="NAME", help="a model of configs/model/ or of timm")
    parser.add_argument(
        "--checkpoint", type=a_path, metavar="FILE", help="a run folder, a file in one, or any file of weights"
    )
    parser.add_trust()
    parser.add_data()
    parser.add_argument("--images", type=positive, help="compare on the first N test images only", metavar="N")
    parser.add_argument(
        "--alpha", type=above_zero, help="sharpness of the heads, in 1/pixels^2 (default: exact in float32)"
    )
    parser.add_argument("--batch", type=positive, default=100, help="test images per batch (default: 100)")
    parser.add_device()
    parser.add_argument(
        "--json", type=a_path, metavar="FILE", help="write the numbers to this file (default for a run: its folder)"
    )
    parser.add_argument(
        "--sweep", nargs="*", metavar="NAME", help="convert timm models: the named ones, or twenty families"
    )
    parser.add_argument("overrides", nargs="*", help="settings, as for train.py")
    arguments = parser.parse_intermixed_args()
    check_target(parser, arguments.json)
    if arguments.sweep is not None:
        others = [f"--{name}" for name in OF_ONE_NETWORK if getattr(arguments, name) != parser.get_default(name)]
        if others or arguments.overrides:
            unused = " and ".join([*others, *(["settings"] if arguments.overrides else [])])
            parser.error(f"--sweep converts timm models and takes --images and --json only: leave out {unused}")
        if arguments.images == 1:
            parser.error("--sweep compares the logits of different images: set --images to 2 or more")
    convert(arguments, parser)


def convert(arguments: argparse.Namespace, parser: ScriptParser) -> None:
    """Convert what the command line asks for, print and write the comparison, and exit."""
    from attnconv.analysis.conv_to_attention import ALPHA  # imports torch, as the others do
    from attnconv.analysis.conversion import MODELS, chosen_network, report, sweep
    from attnconv.analysis.exchange import exchange
    from attnconv.analysis.probe import compact
    from attnconv.data.dataset import Split
    from attnconv.runs.provenance import commit, describe_device
    from attnconv.training.device import choose_device

    if arguments.sweep is not None:
        changed = sweep(arguments.sweep or MODELS, arguments.images or SWEPT_IMAGES, arguments.json)
        sys.exit(1 if changed else 0)
    alpha = arguments.alpha or ALPHA
    of_run = arguments.checkpoint is not None and arguments.checkpoint.is_dir()
    whole = arguments.images is None and alpha == ALPHA  # a quick try must not replace the real measurement
    target = arguments.json or (arguments.checkpoint / CONVERSION if of_run and whole else None)
    check_target(parser, target)
    if not whole and target is not None and target.name == CONVERSION:
        parser.error(f"{CONVERSION} is for all test images and the default alpha: choose another file")
    head, dirty = commit()  # of the code that is loaded now
    arguments.device = str(choose_device(arguments.device))
    name, model, split = chosen_network(arguments)
    if arguments.images is not None:
        split = Split(split.images[: arguments.images], split.labels[: arguments.images], split.mean, split.std)
    row = exchange(model, split, alpha, arguments.batch)
    print(report(name, row))
    if target is not None:
        about = {"network": name, "device": describe_device(split.images.device), "commit": head, "dirty": dirty}
        write_whole(target, compact(about | row).encode())
        print(f"  written to {target}")
    differs = row["largest_difference"] > TOLERANCE * row["largest_logit"]
    sys.exit(1 if row["predictions_changed"] or differs else 0)


if __name__ == "__main__":
    with one_line_errors(valid_keys()):
        main()
