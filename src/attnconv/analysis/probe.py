"""Measure how convolutional the attention layers of a trained network are."""

import json
import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from attnconv.analysis.conv_similarity import KERNELS, head_rows, layer_numbers
from attnconv.analysis.heads import attention_mixers, mixer_inputs, probs_of
from attnconv.errors import ConfigError, DataError
from attnconv.models.process_state import evaluating
from attnconv.runs.load import build_untrained, recorded_widths
from attnconv.runs.trained import Trained
from attnconv.training.whitening import whiten_stem

FEWEST_PIXELS = 38_400  # to fit and to test convolutions


def compact(record: dict[str, Any]) -> str:
    """Return JSON with one line per fact and per table row, which is easy to read, search and compare."""
    lines = []
    for key, value in record.items():
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        text = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in value) + "\n ]" if rows else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def probe(trained: Trained, images: int = 100, fit_images: int = 600) -> dict[str, list[dict[str, Any]]]:
    """Describe each head and layer of an attention network on test images, with trained and with initial weights.

    Args:
        images: number of test images to average attention over.
        fit_images: number of test images for the best convolutions, half to fit them and half to test them.

    Returns:
        `heads` and `layers`: rows with `weights` (trained or initial), `layer`, `head` (from 1), and the numbers of
        attnconv.analysis.conv_similarity.

    Raises:
        ConfigError: the network has no attention layer, or a layer gives numbers that are not finite.
        DataError: there are fewer than two test images to fit and test on.
    """
    if min(fit_images, len(trained.data.test)) < 2:
        raise DataError(f"{trained.data.origin}: fitting and testing convolutions need two or more test images")
    found: dict[str, list[dict[str, Any]]] = {"heads": [], "layers": []}
    shown = trained.data.test.examples(max(images, fit_images))
    initial = initial_network(trained).to(shown.device)
    initial.eval()
    for weights, model in (("initial", initial), ("trained", trained.model)):
        for kind, rows in _describe(model, shown, images, fit_images).items():
            found[kind] += [{"weights": weights, **row} for row in rows]
    if not found["layers"]:
        raise ConfigError(f"model={trained.config.model['name']} has no attention layer to probe")
    return found


def images_to_fit(trained: Trained) -> int:
    """Return how many test images the convolutions need: half for the fit, with four pixels for each of its weights.

    There are at least 38,400 pixels, those of 600 images of 8 x 8 positions.
    """
    positions, needed = 1, FEWEST_PIXELS
    for inputs in mixer_inputs(trained.model, trained.data.test.examples(1)):
        _, height, width, channels = inputs.shape
        positions, needed = height * width, max(needed, 8 * (channels * max(KERNELS) ** 2 + 1))
    return math.ceil(needed / positions)


def initial_network(trained: Trained) -> nn.Module:
    """Return the network as it was before its first step."""
    model = build_untrained(trained.config, trained.data, recorded_widths(trained.folder))
    if trained.config.recipe.whitening:
        whiten_stem(model, trained.data.train)
    return model


@torch.no_grad()
def _describe(model: nn.Module, shown: Tensor, images: int, fit_images: int) -> dict[str, list[dict[str, Any]]]:
    heads, layers = [], []
    mixers = attention_mixers(model)
    for layer, (mixer, (inputs, outputs)) in enumerate(zip(mixers, mixer_traffic(model, shown), strict=True), 1):
        _, height, width, _ = inputs.shape
        probs = probs_of(mixer, height, width, inputs[:images].to(shown.device)).cpu()
        if not outputs.isfinite().all():
            raise ConfigError(
                f"attention layer {layer} gives numbers that are not finite: there is nothing to describe"
            )
        heads += head_rows(layer, probs, height, width)
        layers.append(
            {"layer": layer, **layer_numbers(probs, inputs[:fit_images], outputs[:fit_images], height, width)}
        )
    return {"heads": heads, "layers": layers}


@torch.no_grad()
def mixer_traffic(model: nn.Module, images: Tensor, batch: int = 250) -> list[tuple[Tensor, Tensor]]:
    """Return the inputs and outputs of each attention mixer, (B, H, W, D) each, on the CPU.

    Args:
        images: (B, C, height, width), passed to the model without dropout, `batch` at a time.

    Raises:
        NotShown: see `attnconv.analysis.heads.mixer_inputs`.
    """
    mixer_inputs(model, images[:1])
    mixers = attention_mixers(model)
    traffic: list[list[tuple[Tensor, Tensor]]] = [[] for _ in mixers]
    with ExitStack() as hooks:
        hooks.enter_context(evaluating(model))
        for mixer, seen in zip(mixers, traffic, strict=True):
            hooks.enter_context(mixer.register_forward_hook(
                # copies, because the network may go on in place
                lambda _, inputs, named, out, seen=seen: seen.append(
                    tuple(part.detach().to("cpu", copy=True) for part in ((*inputs, *named.values())[0], out))
                ),
                with_kwargs=True,
            ))  # fmt: skip
        for chunk in images.split(batch):
            model(chunk.clone())
    return [(torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])) for seen in traffic]
