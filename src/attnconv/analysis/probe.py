"""The theorem on trained networks: convolutions exchanged for attention, and how convolutional attention has become."""

import copy
import json
import time
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.conv_similarity import head_numbers, layer_numbers
from attnconv.analysis.conv_to_attention import ALPHA, convert, refuse_convolutions
from attnconv.analysis.heads import attention_mixers, mixer_traffic
from attnconv.data.dataset import Split
from attnconv.errors import ConfigError
from attnconv.models.cost import flops_full, parameters
from attnconv.runs.load import Trained, build_untrained


def compact(record: dict[str, Any]) -> str:
    """JSON with a line per fact, and a line per row of every table: to be read, searched and compared by eye."""
    lines = []
    for key, value in record.items():
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        text = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]" if rows else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


@torch.inference_mode()
def exchange(model: nn.Module, split: Split, alpha: float = ALPHA, batch: int = 100) -> dict[str, Any]:
    """Convert a copy of a CNN and compare both on a split, batch by batch in turn, so that both meet the same machine.

    Args:
        model: in evaluation mode, on the split's device; it is left as it is.

    Returns:
        layers and heads converted; largest_difference of logits, beside largest_logit; predictions changed, of images;
        accuracies, parameters, FLOPs per image (in full) and seconds of the convolutional and the attention network.

    Raises:
        Inconvertible: naming what cannot be converted.
    """
    attention = copy.deepcopy(model)
    replaced = convert(attention, alpha)
    example = next(split.batches(2))[0]
    refuse_convolutions(attention, example)
    models, seconds, correct = (model, attention), [0.0, 0.0], [0, 0]
    difference, largest, changed = 0.0, 0.0, 0
    for images, labels in split.batches(batch):
        logits = []
        for which, network in enumerate(models):
            started = time.perf_counter()
            logits.append(network(images).float().cpu())  # waits for the device
            seconds[which] += time.perf_counter() - started
            correct[which] += int((logits[-1].argmax(1) == labels.cpu()).sum())
        difference = max(difference, (logits[0] - logits[1]).abs().max().item())
        largest = max(largest, logits[0].abs().max().item())
        changed += int((logits[0].argmax(1) != logits[1].argmax(1)).sum())
    row: dict[str, Any] = {
        "layers": len(replaced),
        "heads": sum(layer.heads for layer in replaced.values()),
        "alpha": alpha,
        "images": len(split),
        "largest_difference": difference,
        "largest_logit": largest,
        "predictions_changed": changed,
    }
    for which, name in enumerate(("convolution", "attention")):
        counted = copy.deepcopy(models[which]).to("meta")
        row |= {
            f"{name}_acc": correct[which] / len(split),
            f"{name}_parameters": parameters(models[which]),
            f"{name}_flops": flops_full(counted, example[:1].to("meta")),
            f"{name}_seconds": seconds[which],
        }
    return row


def probe(trained: Trained, images: int = 100, fit_images: int = 600) -> dict[str, list[dict[str, Any]]]:
    """Describe every head and layer of an attention network on test images, trained and as it began.

    Args:
        images: test images over which attention is averaged.
        fit_images: test images for the best convolutions, half to fit them and half to judge them.

    Returns:
        `heads` and `layers`: rows with `weights` (trained or initial), `layer`, `head` (from 1), and the numbers of
        attnconv.analysis.conv_similarity.

    Raises:
        ConfigError: the network has no attention layer.
    """
    found: dict[str, list[dict[str, Any]]] = {"heads": [], "layers": []}
    shown, _ = next(trained.data.test.batches(max(images, fit_images)))
    initial = build_untrained(trained.config, trained.data).to(shown.device).eval()
    for weights, model in (("initial", initial), ("trained", trained.model)):
        for kind, rows in _describe(model, shown[:images], shown[:fit_images]).items():
            found[kind] += [{"weights": weights, **row} for row in rows]
    if not found["layers"]:
        raise ConfigError(f"model={trained.config.model['name']} has no attention layer to probe")
    return found


@torch.no_grad()
def _describe(model: nn.Module, images: Tensor, fit_images: Tensor) -> dict[str, list[dict[str, Any]]]:
    heads, layers = [], []
    mixers = attention_mixers(model)
    for layer, (mixer, (inputs, outputs)) in enumerate(zip(mixers, mixer_traffic(model, fit_images), strict=True), 1):
        _, height, width, _ = inputs.shape
        seen: Any = mixer
        probs = seen.attention_probs(height, width, inputs[: len(images)].to(images.device)).float().cpu()
        numbers = head_numbers(probs, height, width)
        count = len(next(iter(numbers.values())))
        heads += [
            {"layer": layer, "head": head + 1, **{name: values[head] for name, values in numbers.items()}}
            for head in range(count)
        ]
        layers.append({"layer": layer, **layer_numbers(probs, inputs, outputs, height, width)})
    return {"heads": heads, "layers": layers}
