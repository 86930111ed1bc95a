"""What scripts/conv_to_attention.py converts, and the text that it prints.

The sweep tests the theorem on models of timm with random weights and statistics. Untrained models hide errors: residual
branches start at zero, statistics have zero mean and unit variance, and biases are zero. So all constant parameters and
all statistics are randomized before the conversion. The comparison uses float64, because a random model can amplify
float32 rounding by any factor (a batch norm channel with variance 1e-8 by 1e4), which says nothing about the
conversion.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnconv.analysis.exchange import Meaningless, exchange
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.analysis.probe import compact
from attnconv.config import CONFIGS, compose, valid_keys
from attnconv.data.dataset import Split, load_dataset
from attnconv.data.root import move_root
from attnconv.errors import ConfigError
from attnconv.files import first_bytes, write_whole
from attnconv.models.timm_models import check_timm_name, timm_model
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

# Twenty families, the smallest model of each.
MODELS = (
    "botnet26t_256", "coatnet_nano_rw_224", "convmixer_768_32", "convnext_atto", "cs3darknet_s", "densenet121",
    "dla46_c", "ghostnet_050", "hardcorenas_a", "lcnet_035", "levit_128s", "mixnet_s", "mobileone_s0", "nf_regnet_b0",
    "poolformer_s12", "regnetx_002", "repvgg_a0", "resnetv2_50x1_bit", "rexnetr_100", "xcit_nano_12_p16_224",
)  # fmt: skip
SIDES = (32, 64, 128, 224, 256)  # of images, in pixels; the smallest one that a model accepts is used
CLASSES, SPREAD = 10, 0.2


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


def sweep_row(name: str, images: int, seed: int = 0) -> dict[str, Any]:
    """Convert the convolutions of timm's model `name`, and compare it on `images` random images, at least two.

    Return the numbers of `exchange`, or `refused` with the reason.
    """
    started = time.perf_counter()
    row: dict[str, Any] = {"model": name}
    try:
        side, model = _smallest(name, seed)
        row["side"] = side
        split = _random_images(images, side, seed)
        randomize(model, next(split.batches(len(split)))[0], seed)
        row |= exchange(model.double(), split)
    except (Inconvertible, Meaningless, ConfigError) as reason:
        row["refused"] = str(reason)
    return row | {"seconds": time.perf_counter() - started}


@torch.no_grad()
def randomize(model: nn.Module, images: Tensor, seed: int) -> None:
    """Add noise to all constant parameters and to the statistics, which are measured on the images.

    With statistics that do not match their inputs, signals would vanish or explode from layer to layer.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W) as the model takes them, two or more.
    """
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(SPREAD * torch.randn(parameter.shape, generator=draw).to(parameter.device))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.momentum = 1.0  # use the statistics of these images alone
        norm.train()
    model(images)
    for norm in norms:
        norm.eval()
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        mean.add_(SPREAD * var.sqrt() * torch.randn(mean.shape, generator=draw).to(mean.device))
        var.mul_(0.5 + torch.rand(var.shape, generator=draw).to(var.device))


def _smallest(name: str, seed: int) -> tuple[int, nn.Module]:
    """Return the smallest side of images that a model accepts, and the model."""
    for side in SIDES:
        torch.manual_seed(seed)
        try:
            return side, timm_model((3, side, side), CLASSES, name).eval()
        except ValueError as error:
            refused = str(error)
    raise ConfigError(refused)


def _random_images(count: int, side: int, seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=draw)
    # The mean and standard deviation of values spread evenly over 0..1.
    mean, std = torch.full((3,), 0.5), torch.full((3,), 1 / math.sqrt(12))
    return Split(pixels, torch.arange(count) % CLASSES, mean, std)
