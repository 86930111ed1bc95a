"""Rehearse training steps of a network from elsewhere, to refuse what cannot train before a byte is written."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.errors import counted
from attnconv.models.cost import build_untrained
from attnconv.models.layout import place
from attnconv.runs.checkpoint import check_state
from attnconv.settings.limits import is_ours
from attnconv.training.device import autocast

FEW, MANY = 2, 32  # images of a rehearsal; MANY only if FEW fail, as they do if a network splits its batch into groups


def from_elsewhere(node: dict[str, Any]) -> bool:
    """Return whether a `model` node names a class that is not part of this package, or a model of timm."""
    foreign = "_target_" in node and (not is_ours(node) or node["_target_"].endswith(".timm_model"))
    return foreign or any(from_elsewhere(part) for part in node.values() if isinstance(part, dict))


def rehearse(node: dict[str, Any], image_shape: tuple[int, int, int], classes: int, images: Tensor, bf16: bool) -> None:
    """Take training steps, but for the optimizer's, with a new network on the CPU.

    A network with an operator that the CPU lacks passes: training on the GPU shows whether it runs.

    Args:
        images: (B, C, H, W) on the CPU, laid out as in training.
        bf16: use autocast.

    Raises:
        ConfigError: see `build_model`.
        Exception: whatever the network raises; ValueError if it does not give logits, or cannot learn.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            _steps(build_untrained(node, image_shape, classes), images[:FEW], classes, bf16)
        except Exception as error:
            if isinstance(error, NotImplementedError) and "backend" in str(error):
                return
            if len(images) <= FEW:
                raise
            _steps(build_untrained(node, image_shape, classes), images, classes, bf16)


def check_logits(logits: Any, images: int, classes: int) -> None:
    """Raise ValueError for what is not one floating-point logit per image and class."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"it gives a {type(logits).__name__}, not logits")
    if logits.shape != (images, classes):
        what, wanted = counted(images, "image"), (images, classes)
        raise ValueError(f"it gives {tuple(logits.shape)} for {what}, not {wanted}: one logit per class")
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise ValueError(f"it gives numbers of type {kind}, not logits, which are floating-point numbers")


def _steps(model: nn.Module, images: Tensor, classes: int, bf16: bool) -> None:
    check_state(model)
    place(model, images.device)
    model.train()
    for _ in range(2):  # the second step fails if a network keeps what it computed in the first
        with autocast("bf16" if bf16 else "fp32", images.device):
            logits = model(images.clone())
        check_logits(logits, len(images), classes)
        if not logits.requires_grad:
            raise ValueError("it has no parameters, only frozen ones, or a forward pass without gradients")
        loss = F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64))
        if not loss.isfinite():
            raise ValueError("it gives nan or inf before any training")
        loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise ValueError(f"the gradient of {name} is sparse, which the optimizers cannot use")
