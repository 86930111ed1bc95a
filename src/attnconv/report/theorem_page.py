"""results/theorem.md: convolutions that became attention, and how convolutional attention became, run by run.

From the conversion.json and probe.json that scripts/conv_to_attention.py and scripts/probe.py wrote beside a run and
scripts/collect.py took into results/runs.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from attnconv.files import read_json
from attnconv.report.tables import markdown

OF_HEADS = {
    "distance": "distance", "spread": "spread", "entropy": "entropy", "one_pixel": "one pixel",
    "by_shift": "by shift", "by_place": "by place", "by_content": "by content",
}  # fmt: skip
OF_LAYERS = {"lemma_residual": "lemma residual", "conv1": "1x1", "conv3": "3x3", "conv5": "5x5", "conv7": "7x7"}
NUMBERS = {**OF_HEADS, **OF_LAYERS}

INTRODUCTION = """# Convolution into attention, and how far back

Made by `python scripts/make_tables.py` from the conversion.json and probe.json of the runs in results/runs, which
`python scripts/conv_to_attention.py --checkpoint RUN` and `python scripts/probe.py RUN` wrote.

## Every convolution becomes attention

Each convolution of a trained network is replaced by attention with a quadratic encoding, one head per tap, and both
networks see the test images in float32. Parameters, FLOPs and time are those of attention over those of convolution.

"""

LIKENESS = """
## How convolutional is a trained attention layer?

On test images, with the weights that the run began with → with those that it ended with. A convolution looks at fixed
shifts, one pixel per tap: off the border one pixel, by shift and 3x3 would be 1, spread, entropy and lemma residual 0.
Means over heads: *distance* from the query to what is attended to and *spread* around the head's center, in positions;
*entropy* in nats; the largest probability (*one pixel*); shares of the probabilities' variance that the *shift* alone,
the query's *place* (the border) and the image's *content* account for. Of a layer: the *lemma residual*, how far the
nine shifts of a 3x3 kernel are from the span of the heads' maps (1: orthogonal to it); and the share of the layer's
output that the best *K x K* convolution of its input explains, on images that it was not fitted to.
`attnconv.analysis.conv_similarity` has the definitions.

### Means over the layers

"""


def read_examined(results: Path, runs: Iterable[dict[str, Any]], file: str) -> list[tuple[dict[str, Any], Any]]:
    """The published runs that were examined, with what was found: `file` is probe.json or conversion.json.

    What a dirty tree found is left out.

    Raises:
        FileError: a file is damaged, or lacks what it should hold.
    """
    found = []
    for run in runs:
        path = results / "runs" / run["run"] / file
        if path.exists() and not (examined := read_json(path, ("dirty", "images", "heads", "layers")))["dirty"]:
            found.append((run, examined))
    return found


def conversion_table(examined: Iterable[tuple[dict[str, Any], Any]]) -> str:
    """A row per converted network."""
    header = [
        "network", "trained on", "convolutions", "heads", "largest difference", "of logits up to",
        "predictions changed", "accuracy", "parameters", "FLOPs", "time",
    ]  # fmt: skip
    rows = []
    for run, found in examined:
        accuracies = dict.fromkeys(f"{found[f'{kind}_acc']:.2%}" for kind in ("convolution", "attention"))
        ratios = (found[f"attention_{of}"] / found[f"convolution_{of}"] for of in ("parameters", "flops", "seconds"))
        rows.append([
            *_named(run), f"{found['layers']}", f"{found['heads']}", f"{found['largest_difference']:.1e}",
            f"{found['largest_logit']:.1f}", f"{found['predictions_changed']} of {found['images']:,}",
            " → ".join(accuracies), *(f"{ratio:.3g} x" for ratio in ratios),
        ])  # fmt: skip
    return markdown(header, rows)


def layer_rows(found: dict[str, Any]) -> list[dict[str, tuple[float | None, float | None]]]:
    """For every layer each number before and after training; those of heads are means over the layer's heads."""
    layers: dict[int, dict[str, dict[str, float | None]]] = {}
    for row in found["layers"]:
        values = {name: row[name] for name in OF_LAYERS}
        heads = [head for head in found["heads"] if (head["layer"], head["weights"]) == (row["layer"], row["weights"])]
        values |= {name: fmean(head[name] for head in heads) for name in OF_HEADS}
        layers.setdefault(row["layer"], {})[row["weights"]] = values
    return [
        {name: (both["initial"][name], both["trained"][name]) for name in NUMBERS} for _, both in sorted(layers.items())
    ]


def likeness_summary(examined: Iterable[tuple[dict[str, Any], Any]]) -> str:
    """A row per attention network: means over its layers."""
    rows = []
    for run, found in examined:
        layers = layer_rows(found)
        means = {name: tuple(_mean([layer[name][when] for layer in layers]) for when in (0, 1)) for name in NUMBERS}
        rows.append([*_named(run), f"{run['test_acc']:.1%}", *(_change(*means[name]) for name in NUMBERS)])
    return markdown(["network", "trained on", "test accuracy", *NUMBERS.values()], rows)


def likeness_table(found: dict[str, Any]) -> str:
    """A row per layer of one attention network."""
    rows = [
        [str(number), *(_change(*layer[name]) for name in NUMBERS)] for number, layer in enumerate(layer_rows(found), 1)
    ]
    return markdown(["layer", *NUMBERS.values()], rows)


def theorem_page(results: Path, runs: list[dict[str, Any]]) -> str:
    """results/theorem.md, from the published rows of runs.csv and what lies beside those runs."""
    probed = read_examined(results, runs, "probe.json")
    parts = [INTRODUCTION, conversion_table(read_examined(results, runs, "conversion.json")), LIKENESS]
    parts.append(likeness_summary(probed))
    for run, found in probed:
        about = (
            f"`{run['run']}`: {found['images']} images, convolutions fitted to {found['fit_images'] // 2} and judged"
        )
        parts.append(f"\n### {run['model']}\n\n{about} on as many others.\n\n{likeness_table(found)}")
    return "".join(parts)


def _named(run: dict[str, Any]) -> tuple[str, str]:
    return f"[`{run['model']}`](runs/{run['run']})", f"{int(run['train_images']):,} images, {int(run['epochs'])} epochs"


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.2f} → {after:.2f}"
