"""Fabricated rows of runs.csv, for pages and claims, and the verdicts on them."""

import json
from pathlib import Path

from attnconv.report.claims import judge, read_claims
from attnconv.report.deciders import DECIDERS
from attnconv.report.evidence import Evidence
from attnconv.report.examined import OF_HEADS, OF_LAYERS
from conftest import REPOSITORY

RESULTS = REPOSITORY / "results"
CLAIMS = {claim["id"]: claim for claim in read_claims(RESULTS / "claims.yaml", DECIDERS)}
LOW = (0.800, 0.802, 0.801)


def higher(by):
    """Return accuracies of three seeds that are higher than LOW by about `by`."""
    return tuple(accuracy + by + wobble for accuracy, wobble in zip(LOW, (0.0005, -0.0005, 0), strict=True))


def verdict(name, runs=(), results=Path("no results")):
    """Judge one claim, given by its id, on these runs alone."""
    verdicts, errors = judge([CLAIMS[name]], Evidence(results, list(runs)), DECIDERS)
    assert errors == []
    return verdicts[0]


def row(name, model, accuracy, seed=0, fraction=1.0, **changes):
    """A published run at mini scale in bf16; seed and fraction determine the subset."""
    equal, epochs = ("steps", 5) if "steps" in name else ("epochs", 20)
    found = {
        "run": f"{name}/{model}/mini-modern/frac{fraction:g}/seed{seed}", "source": None, "kept_out": None,
        "name": name, "model": model, "recipe": "modern", "scale": "mini", "data": "cifar10", "fraction": fraction,
        "equal": equal, "train_images": int(50_000 * fraction), "subset_seed": seed, "holdout": 0, "seed": seed,
        "epochs": epochs, "steps": 1_955, "train_acc": 0.9, "test_acc": accuracy, "val_acc": None,
        "parameters": 450_000, "precision": "bf16",
        "device": "a CPU, 1 thread", "cpu_family": None, "commit": "0" * 40, "subset_hash": f"{fraction}-{seed}",
        "format": 3,
    }  # fmt: skip
    return found | changes


def seeds(name, model, accuracies, **changes):
    """Return one such run for each accuracy, with seeds 0, 1, ..."""
    return [row(name, model, accuracy, seed, **changes) for seed, accuracy in enumerate(accuracies)]


def probed(results, run, layers=6, **of_layer):
    """Write the probe.json of a run with one head per layer, from lists of values by layer."""
    heads = [
        dict.fromkeys(OF_HEADS, 0) | {"weights": weights, "layer": layer + 1, "head": 1}
        | {name: values[layer] for name, values in of_layer.items() if weights == "trained"}
        for layer in range(layers) for weights in ("initial", "trained")
    ]  # fmt: skip
    found = [
        dict.fromkeys(OF_LAYERS, 0.5)
        | {"layer": layer + 1, "weights": weights, "conv3": conv3, "joint_residual": residual}
        for layer in range(layers)
        for weights, conv3, residual in (("initial", 0.5, 0.5), ("trained", of_layer.get("conv3", [0.5] * 6)[layer],
                                                                  of_layer.get("residual", [0.5] * 6)[layer]))
    ]  # fmt: skip
    path = results / "runs" / run["run"] / "probe.json"
    path.parent.mkdir(parents=True)
    about = {"dirty": False, "images": 8, "fit_images": 8}
    path.write_text(json.dumps(about | {"heads": heads, "layers": found}))
    return run
