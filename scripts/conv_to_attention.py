"""Convert all convolutions of a trained CNN to attention, and check that its predictions do not change (Theorem 1).

    python scripts/conv_to_attention.py --checkpoint RUN                        a finished run
    python scripts/conv_to_attention.py --checkpoint RUN/checkpoints/step00000900-1f0c.pt      an unfinished one
    python scripts/conv_to_attention.py --model mobilenetv2_100 --checkpoint FILE    weights alone (.safetensors, .pt)
    python scripts/conv_to_attention.py --model resnet18 scale=mini             untrained; settings as for train.py
    python scripts/conv_to_attention.py --sweep [NAME ...] --json FILE      models of timm with random weights

A model's name is one of configs/model/ or one of timm's. Prints layers and heads, the largest difference between the
logits of both networks on the test images, changed predictions (0 expected), accuracies, parameters, FLOPs and times.
If a layer cannot be converted, the command names it and does nothing. Exit code 1 if a prediction changed. For a run,
with all test images and the default alpha, the numbers are also written to RUN/conversion.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnconv.analysis.conv_to_attention import ALPHA
from attnconv.analysis.exchange import exchange
from attnconv.analysis.model_sweep import MODELS, sweep_row
from attnconv.analysis.probe import compact
from attnconv.config import CONFIGS, compose, valid_keys
from attnconv.data.dataset import Split, load_dataset
from attnconv.errors import ConfigError, one_line_errors
from attnconv.files import first_bytes, write_whole
from attnconv.models.timm_models import check_timm_name
from attnconv.models.weight_files import load_weights
from attnconv.runs.folder import run_name
from attnconv.runs.load import build_untrained, load_trained, run_folder_of
from attnconv.runs.provenance import commit, describe_device
from attnconv.settings.arguments import ScriptParser, a_path, a_place, above_zero, check_target, positive
from attnconv.training.device import choose_device

SWEPT_IMAGES = 8
LABELS = {
    "layers": "converted convolutions", "heads": "heads, one per tap", "images": "test images",
    "largest_difference": "largest difference of logits", "largest_logit": "largest logit",
    "logits_range": "largest range of a logit over images",
    "predictions_changed": "predictions changed",
}  # fmt: skip


def network(arguments: argparse.Namespace) -> tuple[str, nn.Module, Split]:
    """Return the name of the network to convert, the network in evaluation mode, and the images to compare on."""
    checkpoint, device = arguments.checkpoint, torch.device(arguments.device)
    if checkpoint is not None and not checkpoint.is_dir():
        first_bytes(checkpoint)  # check before building a network for it
    if checkpoint is not None and (arguments.model is None or checkpoint.is_dir()):
        return _of_run(arguments, checkpoint)
    if arguments.model is None:
        raise ConfigError("choose a network: --checkpoint RUN or --model NAME")
    ours = (CONFIGS / f"model/{arguments.model}.yaml").exists()
    chosen = [f"model={arguments.model}"] if ours else ["model=timm", f"model.timm_name={arguments.model}"]
    if not ours:
        check_timm_name(arguments.model)  # check before reading data for it
    root = [f"data.root={arguments.data}"] if arguments.data else []
    config = compose([*chosen, *root, *arguments.overrides])
    data = load_dataset(config.data, device)
    model = build_untrained(config, data)
    name = f"{arguments.model}, untrained"
    if checkpoint is not None:
        name = f"{arguments.model}, {checkpoint.name}"
        load_weights(model, checkpoint, data.classes)
    model.to(device).eval()
    return name, model, data.test


def _of_run(arguments: argparse.Namespace, checkpoint: Path) -> tuple[str, nn.Module, Split]:
    """Return the network of a run folder, or of a file of weights in one."""
    weights = None if checkpoint.is_dir() else checkpoint
    folder = checkpoint if weights is None else run_folder_of(weights)
    if folder is None:
        raise ConfigError(
            f"{weights} does not say which network it belongs to: add --model NAME and settings as for train.py"
        )
    if (arguments.model is not None or arguments.overrides) and (folder / "config.yaml").exists():
        raise ConfigError(f"{folder}/config.yaml already describes the network: leave out --model and settings")
    trained = load_trained(folder, arguments.data, arguments.device, weights, arguments.trust)
    name = run_name(trained.config)
    return name if weights is None else f"{name}, {weights.name}", trained.model, trained.data.test


def report(name: str, row: dict[str, Any]) -> str:
    """Return the comparison as text, one fact per line."""
    lines = [name, *(f"  {label:<30} {row[key]:,.6g}" for key, label in LABELS.items())]
    for quantity, form in (("acc", "{:.2%}"), ("parameters", "{:,}"), ("flops", "{:,}"), ("seconds", "{:.1f}")):
        before, after = (row[f"{kind}_{quantity}"] for kind in ("convolution", "attention"))
        if None in (before, after):
            lines.append(f"  {'FLOPs per image':<30} not counted, because the network reads the values of its tensors")
            continue
        ratio = "" if quantity == "acc" else f"  ({after / before:.2f} x)"
        label = {"acc": "accuracy", "flops": "FLOPs per image"}.get(quantity, quantity)
        lines.append(f"  {label:<30} {form.format(before)} -> {form.format(after)}{ratio}")
    return "\n".join(lines)


def sweep(names: Sequence[str], images: int, target: Path | None) -> bool:
    """Convert timm models, print one line for each, and return whether a prediction changed."""
    rows = []
    for name in names:
        check_timm_name(name)
    for name in names:
        row = sweep_row(name, images)
        rows.append(row)
        verdict = row.get("refused") or (
            f"{row['layers']} convolutions, {row['predictions_changed']} of {row['images']} predictions changed, "
            f"difference {row['largest_difference']:.1e} of logits that differ by {row['logits_range']:.2g}"
        )
        print(f"{name}: {verdict}", flush=True)
    if target is not None:
        head, dirty = commit()
        about = {"device": describe_device(torch.device("cpu")), "commit": head, "dirty": dirty}
        write_whole(target, compact(about | {"rows": rows}).encode())
    return any(row.get("predictions_changed") for row in rows)


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--model", metavar="NAME", help="a model of configs/model/ or of timm")
    parser.add_argument("--checkpoint", type=a_path, help="a run folder, a file in one, or any file of weights")
    parser.add_trust()
    parser.add_argument("--data", type=a_place, help="folder of the data, if it has moved")
    parser.add_argument("--images", type=positive, help="compare on the first N test images only", metavar="N")
    parser.add_argument("--alpha", type=above_zero, default=ALPHA, help="sharpness of the heads, in 1/pixels^2")
    parser.add_argument("--batch", type=positive, default=100, help="test images per batch")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", type=a_path, help="write the numbers to this file (default for a run: its folder)")
    parser.add_argument(
        "--sweep", nargs="*", metavar="NAME", help="convert timm models: the named ones, or twenty families"
    )
    parser.add_argument("overrides", nargs="*", help="settings, as for train.py")
    arguments = parser.parse_intermixed_args()
    check_target(parser, arguments.json)
    if arguments.sweep is not None:
        if arguments.model or arguments.checkpoint or arguments.overrides:
            parser.error("--sweep converts timm models: leave out --model, --checkpoint and settings")
        changed = sweep(arguments.sweep or MODELS, arguments.images or SWEPT_IMAGES, arguments.json)
        sys.exit(1 if changed else 0)
    of_run = arguments.checkpoint is not None and arguments.checkpoint.is_dir()
    whole = arguments.images is None and arguments.alpha == ALPHA  # a try on few images must not pass for the real one
    target = arguments.json or (arguments.checkpoint / "conversion.json" if of_run and whole else None)
    check_target(parser, target)
    arguments.device = str(choose_device(arguments.device))
    name, model, split = network(arguments)
    if arguments.images is not None:
        split = Split(split.images[: arguments.images], split.labels[: arguments.images], split.mean, split.std)
    row = exchange(model, split, arguments.alpha, arguments.batch)
    print(report(name, row))
    if target is not None:
        head, dirty = commit()
        about = {"network": name, "device": describe_device(split.images.device), "commit": head, "dirty": dirty}
        write_whole(target, compact(about | row).encode())
        print(f"  written to {target}")
    sys.exit(1 if row["predictions_changed"] else 0)


if __name__ == "__main__":
    with one_line_errors(valid_keys()):
        main()
