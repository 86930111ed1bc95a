"""Test the theorem on models of timm, with random weights and statistics.

Untrained models hide errors: residual branches start at zero, statistics have zero mean and unit variance, and biases
are zero. So all constant parameters and all statistics are randomized before the conversion. The comparison uses
float64, because a random model can amplify float32 rounding by any factor (a batch norm channel with variance 1e-8 by
1e4), which says nothing about the conversion.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attnconv.analysis.exchange import Meaningless, exchange
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.data.dataset import Split
from attnconv.errors import ConfigError
from attnconv.models.timm_models import timm_model

# Twenty families, the smallest model of each.
MODELS = (
    "botnet26t_256", "coatnet_nano_rw_224", "convmixer_768_32", "convnext_atto", "cs3darknet_s", "densenet121",
    "dla46_c", "ghostnet_050", "hardcorenas_a", "lcnet_035", "levit_128s", "mixnet_s", "mobileone_s0", "nf_regnet_b0",
    "poolformer_s12", "regnetx_002", "repvgg_a0", "resnetv2_50x1_bit", "rexnetr_100", "xcit_nano_12_p16_224",
)  # fmt: skip
SIDES = (32, 64, 128, 224, 256)  # of images, in pixels; the smallest one that a model accepts is used
CLASSES, SPREAD = 10, 0.2


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
