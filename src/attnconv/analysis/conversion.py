"""What scripts/conv_to_attention.py converts, and the text that it prints."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnconv.analysis.model_sweep import randomize, sweep_row
from attnconv.analysis.probe import compact
from attnconv.config import CONFIGS, compose, valid_keys
from attnconv.data.dataset import Split, load_dataset
from attnconv.data.root import move_root
from attnconv.errors import ConfigError
from attnconv.files import first_bytes, write_whole
from attnconv.models.timm_models import check_timm_name
from attnconv.models.weight_files import load_weights
from attnconv.runs.folder import run_name
from attnconv.runs.load import build_untrained, load, run_folder_of
from attnconv.runs.provenance import commit, describe_device
from attnconv.training.device import full_float32

LABELS = {
    "layers": "converted convolutions", "heads": "heads, one per tap", "images": "test images",
    "largest_difference": "largest difference of logits", "largest_logit": "largest logit",
    "logits_range": "largest range of a logit",
    "predictions_changed": "predictions changed",
}  # fmt: skip

RANDOMIZED_ON = 20  # images
OF_NETWORK = ("model", "scale", "match", "match_model", "data", "seed", "experiment")  # settings that a conversion uses


def chosen_network(arguments: argparse.Namespace) -> tuple[str, nn.Module, Split]:
    """Return the name of the network to convert, the network in evaluation mode, and the images to compare on.

    Args:
        arguments: of the command line.
    """
    checkpoint, device = arguments.checkpoint, torch.device(arguments.device)
    if checkpoint is not None and not checkpoint.is_dir():
        first_bytes(checkpoint)  # check before building a network for it
    if checkpoint is not None and (arguments.model is None or checkpoint.is_dir()):
        return _of_run(arguments, checkpoint)
    if arguments.model is None:
        raise ConfigError("choose a network: --checkpoint RUN or --model NAME")
    if arguments.trust:
        raise ConfigError("--trust is for runs, and --model builds the network from its settings: leave it out")
    known = set(valid_keys())
    for override in arguments.overrides:
        key = override.partition("=")[0].lstrip("+")
        if key == "model" or (key in known and key.partition(".")[0] not in OF_NETWORK):
            raise ConfigError(
                f"{override} has no effect on a conversion: --model chooses the network, and only settings of "
                f"{', '.join(OF_NETWORK)} change it"
            )
    ours = (CONFIGS / f"model/{arguments.model}.yaml").exists()
    chosen = [f"model={arguments.model}"] if ours else ["model=timm", f"model.timm_name={arguments.model}"]
    if not ours:
        check_timm_name(arguments.model)  # check before reading data for it
    config = compose([*chosen, *arguments.overrides])
    if arguments.data:
        move_root(config.data, arguments.data)
    data = load_dataset(config.data, device)
    model = build_untrained(config, data)
    full_float32()
    if checkpoint is not None:
        load_weights(model, checkpoint, data.classes)
        return f"{arguments.model}, {checkpoint.name}", model.to(device).eval(), data.test
    model.to(device).eval()
    # A deep network with its initial weights may predict one class for all images, whatever is converted.
    if len(data.test) > 1:
        randomize(model, data.test.examples(RANDOMIZED_ON), config.seed)
    return f"{arguments.model}, random weights", model, data.test


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
    trained = load(folder, arguments.data, arguments.device, weights, arguments.trust)
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
    head, dirty = commit()  # of the code that is loaded now
    about = {"device": describe_device(torch.device("cpu")), "commit": head, "dirty": dirty}
    rows = []
    for name in names:
        check_timm_name(name)
    for name in dict.fromkeys(names):
        row = sweep_row(name, images)
        rows.append(row)
        verdict = row.get("refused") or (
            f"{row['layers']} convolutions, {row['predictions_changed']} of {row['images']} predictions changed, "
            f"largest difference of logits {row['largest_difference']:.1e}, of a range of {row['logits_range']:.2g}"
        )
        print(f"{name}: {verdict}", flush=True)
        if target is not None:  # after each network, because a later one may run out of memory
            write_whole(target, compact(about | {"rows": rows}).encode())
    return any(row.get("predictions_changed") for row in rows)
