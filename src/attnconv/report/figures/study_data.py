"""The data of this project's own figures: each loader returns its figure's data, or None if runs are missing.

This module does not import matplotlib.
"""

from collections.abc import Hashable
from statistics import median

from attnconv.report.figures.data import ByImages, Cost, Curves, Group, Groups, Overview, Reach
from attnconv.report.figures.paper_data import curve_of, gaussians
from attnconv.report.figures.results import Results, Row, by_seed
from attnconv.report.long_range import read_long_range
from attnconv.report.protocols import Protocol, protocols
from attnconv.report.tables import read_models

ORDER = ("conv3x3", "resnet10", "sa_quadratic", "sa_learned", "sa_learned_content")
ENCODINGS = ("sa_quadratic", "sa_quadratic_generalized", "sa_distance", "sa_sinusoidal", "sa_learned")
WITH_CONTENT = ("sa_learned_content", "sa_sinusoidal_content")
FROZEN = {"sa_quadratic": "learned", "sa_quadratic_copied": "copied from another network",
          "sa_quadratic_shifts": "fixed on the 3x3 shifts", "sa_quadratic_random": "fixed at random"}  # fmt: skip
MINI = {"scale": "mini", "recipe": "modern"}
QUARTER = MINI | {"fraction": 0.25}  # the runs of most studies
MINUTES = ("table1", "frozen_heads")
LAYER = 5  # the layer in README's figure


def accuracy_by_images(results: Results) -> list[ByImages] | None:
    """Return the protocols of the data-size study that have several numbers of images."""
    return [_by_images(protocol) for protocol in protocols(results.runs) if len(protocol.cells) > 1] or None


def _by_images(protocol: Protocol) -> ByImages:
    accuracies: dict[str, dict[int, dict[Hashable, float]]] = {
        model: {} for model in sorted(protocol.models, key=place)
    }
    for cell in protocol.cells.values():
        for model, runs in cell.items():
            images = int(next(iter(runs.values()))["train_images"])
            accuracies[model][images] = by_seed(runs.values())
    return ByImages(f"scale={protocol.scale}, {protocol.title} each, {protocol.precision}", accuracies)


def place(model: str) -> int:
    """Return the rank of a model in the order of figures."""
    return ORDER.index(model) if model in ORDER else len(ORDER)


def groups(results: Results, study: str, models: dict[str, str]) -> dict[str, list[Group]] | None:
    """Return the models of a study, labeled, one panel per number of images; None if fewer than two have runs."""
    runs = [run for run in results.of_study(study, **MINI) if run["model"] in models]
    panels = {}
    for images in sorted({int(run["train_images"]) for run in runs}):
        here = [run for run in runs if run["train_images"] == images]
        present = [model for model in models if any(run["model"] == model for run in here)]
        if len(present) > 1:
            panels[f"{images:,} images"] = [
                Group(models[model], model, by_seed([run for run in here if run["model"] == model]))
                for model in present
            ]
    return panels or None


def frozen_heads(results: Results) -> Groups | None:
    """Return learned heads and heads that do not learn where to look."""
    panels = groups(results, "frozen_heads", FROZEN)
    return None if panels is None else Groups("Where Gaussian heads look: learned or fixed (scale=mini)", panels)


def encodings(results: Results) -> Groups | None:
    """Return all position encodings, on all images, with the same number of parameters."""
    runs = results.of_study("encodings", fraction=1.0, **MINI)
    if not runs:
        return None
    runs = runs + results.of_study("table1", precision=runs[0]["precision"], fraction=1.0, **MINI)
    panel = [
        Group(model, model, by_seed(found))
        for model in ("conv3x3", *ENCODINGS, *WITH_CONTENT)
        if (found := [run for run in runs if run["model"] == model])
    ]
    return Groups("Encodings of position (scale=mini)", {f"{runs[0]['train_images']:,} images": panel})


def accuracy_by_cpu_minutes(results: Results) -> Curves | None:
    """Return test accuracy by CPU minutes, of Table 1's models, or of the first study whose runs recorded minutes."""
    for study in MINUTES:
        runs = results.of_study(study, **MINI)
        most = max((run["train_images"] for run in runs), default=0)
        runs = [run for run in runs if run["train_images"] == most]  # one title for all
        curves = [curve for run in runs for curve in curve_of(run, results.epochs(run), "minutes")]
        if len({curve.model for curve in curves}) > 1:
            title = f"CIFAR-10, {runs[0]['train_images']:,} images, scale=mini, {runs[0]['precision']}"
            devices = sorted({run["device"] for run in runs})
            if len(devices) == 1:
                return Curves(f"{title} on {devices[0]}", curves)
            models = [", ".join(sorted({run["model"] for run in runs if run["device"] == one})) for one in devices]
            return Curves("\n".join([title, *map("{}: {}".format, devices, models)]), curves)
    return None


def windows(results: Results) -> Groups | None:
    """Return local attention and convolution with the same windows."""
    panel: list[Group] = []
    for size in (3, 5, 7):
        runs = results.of_study(f"mixers_kernel{size}", **QUARTER)
        if size == 3 and runs:  # other studies have its convolution as their reference
            runs = runs + _reference(results, runs[0])
        for model in ("local_attention", f"conv{size}x{size}"):
            found = [run for run in runs if run["model"] == model]
            label = f"{model}, {size}x{size}" if model == "local_attention" else model
            panel += [Group(label, model, by_seed(found))] if found else []
    return Groups("Windows: attention or convolution (scale=mini)", {"12,500 images": panel}) if panel else None


def _reference(results: Results, run: Row) -> list[Row]:
    """Return the runs of conv3x3 to compare with a run of experiment=mixers."""
    wanted = {key: run[key] for key in ("scale", "recipe", "precision", "train_images", "epochs")}
    found = (results.of_study(study, model="conv3x3", **wanted) for study in ("mixers", "data_size_epochs_20"))
    return next((runs for runs in found if runs), [])


def normalizers(results: Results) -> Groups | None:
    """Return the normalizers, in attention to positions and to content."""
    panels = {}
    for model in ("sa_learned", "sa_learned_content"):
        wanted = {"model": model, **QUARTER}
        runs = {kind: results.of_study(f"normalizers_{kind}", **wanted) for kind in ("softmax", "relu", "sigmoid")}
        panel = [Group(kind, model, by_seed(found)) for kind, found in runs.items() if found]
        if len(panel) > 1:
            panels[model] = panel
    return Groups("Normalizers (scale=mini, 12,500 images)", panels) if panels else None


def costs(results: Results) -> list[Cost] | None:
    """Return exponents and activations of all models at scale=paper."""
    path = results.path / "models.csv"
    if not path.exists():
        return None
    return [
        Cost(row["model"], row["growth_theory"], median(row["growth_measured"]), row["activation_bytes"] / 1e6)
        for row in read_models(path)
        if row["scale"] == "paper"
    ]


def reaches(results: Results) -> list[Reach] | None:
    """Return accuracy by distance of all models of experiment=long_range."""
    path = results.path / "long_range.csv"
    if not path.exists():
        return None
    found: dict[tuple[str, int, int], dict[int, float]] = {}
    counting: dict[int, float] = {}
    for row in read_long_range(path):
        found.setdefault((row["model"], row["layers"], row["limit"]), {})[row["distance"]] = row["test_acc"]
        counting[row["distance"]] = row["counting"]
    return [Reach(*key, accuracies, counting) for key, accuracies in sorted(found.items())]


def overview(results: Results) -> Overview | None:
    """Return README's figure: the widest data-size protocol, and one layer of quadratic heads of the largest scale."""
    by_images = accuracy_by_images(results)
    heads = next((found for scale in ("paper", "small", "mini") if (found := gaussians(results, scale))), None)
    if not by_images or heads is None:
        return None
    widest = max(by_images, key=lambda protocol: max(map(len, protocol.accuracies.values())))  # the first of equals
    return Overview(widest, heads, min(LAYER, len(heads.centers)))
