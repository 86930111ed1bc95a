"""results/theorem.md: convolutions converted to attention, and how convolutional attention is, run by run.

It is made from the conversion.json and probe.json that scripts/conv_to_attention.py and scripts/probe.py wrote to run
folders, and that scripts/collect.py copied into results/runs.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from attnconv.files import reading
from attnconv.report.examined import (
    CONVERSION,
    NUMBERS,
    PROBE,
    is_corrected,
    layer_rows,
    read_calibration,
    read_examined,
    read_sweep,
)
from attnconv.report.stats import mean
from attnconv.report.tables import markdown
from attnconv.runs.status import collected_folder

INTRODUCTION = """# Convolution as attention, and attention as convolution

Made by `python scripts/make_tables.py` from conversion.json and probe.json in the run folders of results/runs.
`python scripts/conv_to_attention.py --checkpoint RUN` and `python scripts/probe.py RUN` write these files.

## Any convolution can be converted to attention

Each convolution of a trained network is replaced by attention with a quadratic encoding, one head per tap, and both
networks see the test images in float32. Parameters, FLOPs and time are ratios of attention to convolution. Judge the
largest difference of a logit by the range of that logit over the images (not recorded in older runs).

"""

SWEEP = """
### Twenty families of timm

`python scripts/conv_to_attention.py --sweep --json results/theorem/sweep.json` converts 20 models with random weights,
in float64. We add noise to batch norm statistics and to weights with constant initial values, so that every weight
affects the output. The images are random, of the smallest size from 32 pixels on that the model accepts.

"""

LIKENESS = """
## How convolutional is a trained attention layer?

On test images, before → after training. Means over heads: *distance* from the query to the attended pixels and *spread*
around the head's center, in positions; *entropy* in nats; the largest probability (*one pixel*); shares of the variance
of the probabilities explained by the *shift* alone, the query's *place* (the border) and the image's *content*. For a
layer: the *joint residual*, how far a random 3x3 convolution is from the functions that the heads can compute with
shared values (0: they can compute all); and the share of the layer's output that the best *K x K* convolution explains,
corrected for the size of the fit. `attnconv.analysis.conv_similarity` has the definitions.

The K x K shares depend on a layer's inputs and values, too. Before training, the inputs hardly differ between
positions, so that even uniform attention looks like a small convolution. And the shares fall in training if the heads
are frozen (`sa_quadratic_random` and `sa_quadratic_shifts` below). The joint residual depends on the heads alone.

### Calibration

The same numbers for attention of known kinds, on 8 x 8 positions, made by
`python scripts/probe.py --calibration results/theorem/calibration.json`. Nine hard heads are a 3x3 convolution, except
at the border, where they look at the nearest pixel and a convolution sees padding. Shares of K x K convolutions are for
inputs with independent pixels, and for smooth inputs.

"""

OLD = """Networks that were probed before the joint residual was defined have empty cells: their K x K shares were
biased low, by up to 2 points, and their weights were not kept, so they cannot be measured again. The figure
[convolution_share](figures/convolution_share.png) shows them hollow.
"""

SEEDS = """
### Means over the layers

Means over seeds; with two or more seeds, ± half of Student's 95% interval of the trained value.
"""


def conversion_table(results: Path, runs: Iterable[dict[str, Any]]) -> str:
    """Return one row per published run with a conversion.json."""
    header = [
        "network", "trained on", "convolutions", "heads", "largest difference", "largest logit", "range of a logit",
        "predictions changed", "accuracy", "parameters", "FLOPs", "time",
    ]  # fmt: skip
    rows = []
    for run, found in read_examined(results, runs, CONVERSION):
        with reading(collected_folder(results, run["run"]) / CONVERSION):
            rows.append([*_named(run), *_conversion_cells(found)])
    return markdown(header, rows)


def _conversion_cells(found: dict[str, Any]) -> list[str]:
    differ = f"{found['logits_range']:.1f}" if "logits_range" in found else ""
    accuracies = dict.fromkeys(f"{found[f'{kind}_acc']:.2%}" for kind in ("convolution", "attention"))
    pairs = [(found[f"attention_{of}"], found[f"convolution_{of}"]) for of in ("parameters", "flops", "seconds")]
    return [
        f"{found['layers']}", f"{found['heads']}",
        f"{found['largest_difference']:.1e}", f"{found['largest_logit']:.1f}", differ,
        f"{found['predictions_changed']:d} of {found['images']:,}", " → ".join(accuracies),
        *("" if None in pair else f"{pair[0] / pair[1]:.3g} x" for pair in pairs),
    ]  # fmt: skip


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """Return one row per model of sweep.json."""
    header = ["model", "side", "convolutions", "largest difference", "range of a logit", "predictions changed",
              "refused"]  # fmt: skip
    cells = [
        [f"`{row['model']}`", str(row.get("side", "")), "", "", "", "", row["refused"].replace("|", "/")]
        if "refused" in row
        else [
            f"`{row['model']}`", str(row["side"]), str(row["layers"]), f"{row['largest_difference']:.1e}",
            f"{row['logits_range']:.2g}", f"{row['predictions_changed']:d} of {row['images']}", "",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(header, cells)


def likeness_summary(examined: Iterable[tuple[dict[str, Any], Any]]) -> str:
    """Return one row per attention network: means over its layers and seeds."""
    by_network: dict[Path, list[tuple[dict[str, Any], Any]]] = {}
    for run, found in examined:
        by_network.setdefault(Path(run["run"]).parent, []).append((run, found))
    rows = []
    for seeds in by_network.values():
        layers = [layer_rows(found) for _, found in seeds]
        accuracy = fmean(run["test_acc"] for run, _ in seeds)
        cells = [_over_seeds([_means(name, of_seed) for of_seed in layers]) for name in NUMBERS]
        rows.append([*_named(seeds[0][0]), str(len(seeds)), f"{accuracy:.1%}", *cells])
    return markdown(["network", "trained on", "seeds", "test accuracy", *NUMBERS.values()], rows)


def likeness_table(found: dict[str, Any]) -> str:
    """Return one row per layer of one attention network."""
    rows = [
        [str(number), *(_change(*layer[name]) for name in NUMBERS)] for number, layer in enumerate(layer_rows(found), 1)
    ]
    return markdown(["layer", *NUMBERS.values()], rows)


def calibration_table(rows: list[dict[str, Any]]) -> str:
    """Return one row per known attention, from calibration.json, with a range if the inputs matter."""
    by_attention: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_attention.setdefault(row["attention"], []).append(row)
    cells = [[name, *(_range([row[key] for row in found]) for key in NUMBERS)] for name, found in by_attention.items()]
    return markdown(["attention", *NUMBERS.values()], cells)


def theorem_page(results: Path, runs: list[dict[str, Any]]) -> str:
    """Return results/theorem.md, from the published runs, the files next to them, and results/theorem."""
    probed = read_examined(results, runs, PROBE)
    parts = [INTRODUCTION, conversion_table(results, runs)]
    if networks := read_sweep(results):
        with reading(results / "theorem/sweep.json"):
            parts += [SWEEP, sweep_table(networks)]
    parts.append(LIKENESS)
    if calibrated := read_calibration(results):
        parts.append(calibration_table(calibrated["rows"]))
    parts += [SEEDS, "" if all(is_corrected(found) for _, found in probed) else OLD, "\n", likeness_summary(probed)]
    for run, probe in probed:
        ratio = max((layer.get("fit_ratio", 0) for layer in probe["layers"]), default=0)
        fit = f" (up to {ratio:.2g} weights per pixel)" if ratio else ""
        fitted = probe["fit_images"] // 2
        about = f"`{run['run']}`: {probe['images']} images, convolutions fitted to {fitted}{fit} "
        about += f"and evaluated on {fitted} others"
        parts.append(f"\n### {run['model']}\n\n{about}.\n\n{likeness_table(probe)}")
    return "".join(parts)


def _named(run: dict[str, Any]) -> tuple[str, str]:
    return f"[`{run['model']}`](runs/{run['run']})", f"{int(run['train_images']):,} images, {int(run['epochs'])} epochs"


def _means(name: str, layers: list[dict[str, tuple[float | None, float | None]]]) -> tuple[float | None, float | None]:
    """Return means over the layers that have the number, before and after training."""
    return _mean([layer[name][0] for layer in layers]), _mean([layer[name][1] for layer in layers])


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _over_seeds(seeds: list[tuple[float | None, float | None]]) -> str:
    known = [(before, after) for before, after in seeds if before is not None and after is not None]
    if not known:
        return ""
    before, after = ([seed[when] for seed in known] for when in (0, 1))
    interval = mean(after).interval()
    half = "" if interval is None else f" ± {(interval.high - interval.low) / 2:.2f}"
    return _change(fmean(before), fmean(after)) + half


def _range(values: list[float | None]) -> str:
    known = [f"{value:.2f}".replace("-0.00", "0.00") for value in values if value is not None]
    return " to ".join(dict.fromkeys(known))


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.2f} → {after:.2f}"
