"""Test the theorem on whole networks.

Convert the convolutions to attention, and compare both networks image by image.
"""

import copy
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.conv_to_attention import ALPHA, ConvolutionAsAttention
from attnconv.analysis.convert import convert, refuse_opaque
from attnconv.analysis.plain_convolution import Inconvertible
from attnconv.analysis.unchanged import Seen, watching
from attnconv.data.dataset import Split
from attnconv.errors import OutOfMemory, UserError, is_out_of_memory
from attnconv.files import in_one_line, with_line
from attnconv.models.cost import flops_without_memory, parameters
from attnconv.models.process_state import evaluating, kept_generators, seed_generators

# At the default alpha, logits differ by rounding only: by less than this share of their range, with 16-bit numbers too.
LARGEST_DIFFERENCE = 0.1

# Logits that vary less than this between images, relative to the largest, are rounding errors: float32 has 1e-7.
CONSTANT = 1e-6

EXAMPLES = 2  # images of a first look at a network


class Meaningless(UserError):
    """A comparison of networks that proves nothing."""


def exchange(model: nn.Module, split: Split, alpha: float = ALPHA, batch: int = 100) -> dict[str, Any]:
    """Convert a copy of a CNN and compare both on a split, alternating batch by batch, so that timings are comparable.

    The attention network is watched on each batch: it must compute no convolution and call all converted layers.

    Args:
        model: on the split's device, of any floating type; compared in evaluation mode, and not changed.

    Returns:
        Numbers of converted layers and heads; largest_difference of logits, and for scale largest_logit and
        logits_range, the largest range of a logit over images; changed predictions and images; accuracies, parameters,
        FLOPs per image (in full; None if they cannot be counted) and seconds of the convolutional and the attention
        network.

    Raises:
        Inconvertible: a layer cannot be converted; the message names it.
        Meaningless: logits are not finite, or the same for all images.
    """
    refuse_opaque(model)
    with kept_generators(), evaluating(model):
        return _exchanged(model, split, alpha, batch)


def _exchanged(model: nn.Module, split: Split, alpha: float, batch: int) -> dict[str, Any]:
    example = next(split.batches(EXAMPLES))[0].to(_type_of(model))
    with torch.no_grad():
        _logits(model, example)  # reparametrized weights, such as those of weight norm, can be copied only after a call
    try:
        attention = copy.deepcopy(model)
    except Exception as error:  # a network may hold any object
        raise Inconvertible(f"the network cannot be copied: {in_one_line(error)}") from error
    replaced = convert(attention, alpha)
    layers = set(replaced.values())
    row: dict[str, Any] = {"layers": len(layers), "heads": sum(layer.heads for layer in layers), "alpha": alpha}
    seen = Seen()
    row |= _compare((model, attention), split, batch, seen)
    seen.refuse_uncalled(replaced)
    if alpha >= ALPHA and row["largest_difference"] > LARGEST_DIFFERENCE * row["logits_range"]:
        raise Inconvertible(
            f"the logits of the converted network differ by up to {row['largest_difference']:.2g}, of a range of "
            f"{row['logits_range']:.2g}: {_why(model, example, LARGEST_DIFFERENCE * row['logits_range'])}"
        )
    _require_effect(attention, layers, example)
    for name, network in (("convolution", model), ("attention", attention)):
        row |= {
            f"{name}_acc": row.pop(f"{name}_correct") / len(split),
            f"{name}_parameters": parameters(network),
            f"{name}_flops": flops_without_memory(network, example[:1]),
            f"{name}_seconds": row.pop(f"{name}_seconds"),
        }
    return row


@torch.no_grad()
def _why(model: nn.Module, example: Tensor, allowed: float) -> str:
    """Say why the logits of a converted network differ by more than is allowed."""
    calls = []
    for _ in range(2):
        seed_generators(0)
        calls.append(_logits(model, example.clone()))
    if (calls[0] - calls[1]).abs().max() > allowed:
        return "those of the network itself differ from call to call"
    return "a convolution depends on the size of its map or batch"


@torch.no_grad()
def _compare(networks: tuple[nn.Module, nn.Module], split: Split, batch: int, seen: Seen) -> dict[str, Any]:
    """Compare the logits of the convolutional and the attention network; `seen` watches the second."""
    with watching(nn.Identity(), Seen()):  # the first watched operator imports PyTorch's compiler, which takes seconds
        torch.zeros(1).neg()
    seconds, correct, difference, changed, kept = [0.0, 0.0], [0, 0], 0.0, 0, []
    kind = _type_of(networks[0])
    watches = (Seen(), seen)  # watch both networks, so that watching costs both the same time
    for images, labels in split.batches(batch):
        logits = []
        for which, (network, what) in enumerate(zip(networks, ("the network", "the converted network"), strict=True)):
            # Each network has its own copy, because one may change its input in place, and the same random numbers.
            own = images.to(kind, copy=True)
            seed_generators(0)
            with watching(network, watches[which]):
                started = time.perf_counter()
                logits.append(_logits(network, own, what).cpu())  # waits for the device
                seconds[which] += time.perf_counter() - started
            correct[which] += int((logits[-1].argmax(1) == labels.cpu()).sum())
        seen.refuse_convolutions()
        if logits[0].shape != logits[1].shape:
            raise Inconvertible(f"the converted network returns {tuple(logits[1].shape)}, not {tuple(logits[0].shape)}")
        difference = max(difference, (logits[0] - logits[1]).abs().max().item())
        changed += int((logits[0].argmax(1) != logits[1].argmax(1)).sum())
        kept.append(logits[0])
    numbers = {"images": len(split), "largest_difference": difference, **_scale(kept), "predictions_changed": changed}
    for which, name in enumerate(("convolution", "attention")):
        numbers |= {f"{name}_correct": correct[which], f"{name}_seconds": seconds[which]}
    return numbers


@torch.no_grad()
def _require_effect(attention: nn.Module, layers: set[ConvolutionAsAttention], example: Tensor) -> None:
    """Raise Meaningless if the logits do not depend on the kernels of the converted layers; sets these to zero."""
    seed_generators(0)
    before = attention(example.clone())
    for layer in layers:
        layer.value.zero_()
    seed_generators(0)
    try:
        after = attention(example.clone())
    except Exception:  # a network that checks its features depends on them, and may raise any error
        return
    if isinstance(after, Tensor) and torch.equal(before, after):
        raise Meaningless("the logits do not depend on the convolutions: comparing them proves nothing")


def _scale(batches: Iterable[Tensor]) -> dict[str, float]:
    """Return the largest logit, and the largest range of a logit over images, to put differences in proportion."""
    logits = torch.cat(list(batches))
    largest = logits.abs().max().item()
    # For a single image, use the range over classes.
    spread = (logits.amax(0) - logits.amin(0)) if len(logits) > 1 else logits.amax(1) - logits.amin(1)
    if spread.max().item() <= CONSTANT * largest:
        raise Meaningless(
            f"the logits are the same for all images (up to {largest:.3g}): comparing them proves nothing"
        )
    return {"largest_logit": largest, "logits_range": spread.max().item()}


def _logits(network: nn.Module, images: Tensor, what: str = "the network") -> Tensor:
    try:
        out = network(images)
    except Exception as error:  # a network may raise any error
        if is_out_of_memory(error):
            fewer = "; lower --batch" if len(images) > EXAMPLES else ""
            raise OutOfMemory(f"out of memory with {len(images)} images at once{fewer}") from error
        raise Inconvertible(f"{what} cannot run on these images: {with_line(error)}") from error
    if not isinstance(out, Tensor):
        found = f"a {type(out).__name__}"
    elif out.dim() != 2 or len(out) != len(images) or out.shape[1] < 2 or out.is_complex():
        found = f"{tuple(out.shape)}{' of complex numbers' if out.is_complex() else ''}"
    else:
        found = None
    if found:
        wanted = f"not logits ({len(images)} images, 2 or more classes)"
        raise Inconvertible(f"the network returns {found}, {wanted}, so there is nothing to compare")
    if not out.isfinite().all():
        raise Meaningless("the network has logits that are not finite: comparing them proves nothing")
    return out.float() if out.dtype.itemsize < 4 else out


def _type_of(model: nn.Module) -> torch.dtype:
    """Return the floating type of a network: float32, in which networks are trained, unless all of it has another."""
    kinds = {value.dtype for value in model.parameters() if value.is_floating_point()}
    return torch.float32 if torch.float32 in kinds or not kinds else min(kinds, key=str)
