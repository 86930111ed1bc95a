"""The list of figures: how to load each one's data, how to draw it, and which command makes its runs.

captions.toml has the captions. This module does not import matplotlib: drawing functions are given by name.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from attnconv.report.evidence import SIXTEEN_HEADS
from attnconv.report.figures import paper_data, report_data, study_data
from attnconv.report.figures.results import Results

CAPTIONS = Path(__file__).with_name("captions.toml")
PRUNED = (
    "python train.py model=sa_quadratic_pruned model.start=RUN/weights.safetensors scale={scale} name=pruned "
    "epochs={epochs} recipe.lr_scale=0.1"
)
SCALES = {
    "mini": "64 channels on 8x8 positions",
    "small": "96 channels on 16x16 positions",
    "paper": "400 channels on 16x16 positions",
}


@dataclass(frozen=True)
class Entry:
    """One figure.

    Attributes:
        name: of its files.
        command: makes the runs for its data.
        load: from results/ to its data; returns None if runs are missing.
        draw: module:function below attnconv.report, from the data to a Figure.
        scale: of its runs, for figures that exist once per scale.
    """

    name: str
    command: str
    load: Callable[[Results], Any]
    draw: str
    scale: str = ""

    @property
    def caption(self) -> str:
        """Return the caption."""
        said = _captions()[self.name.removesuffix(f"_{self.scale}") if self.scale else self.name]
        return f"{said} Here scale={self.scale}: {SCALES[self.scale]}." if self.scale else said


@cache
def _captions() -> dict[str, str]:
    return tomllib.loads(CAPTIONS.read_text("utf-8"))


def _nothing(results: Results) -> tuple[()]:
    return ()


def _of_runs(scale: str) -> list[Entry]:
    """Return the paper's figures that need runs, at one scale."""
    run, table1, generalized, sixteen = {
        "mini": (
            "python train.py experiment=table1 model={}",
            "make study ONLY=table1",
            "make study ONLY=encodings",
            "make study ONLY=encodings",
        ),
        "small": (
            "python train.py experiment=small model={}",
            "make study ONLY=small",
            "python train.py experiment=small model=sa_quadratic_generalized",
            "python train.py experiment=small model=sa_quadratic scale.heads=16 name=small_16_heads",
        ),
        "paper": (
            "python train.py model={}",
            "python train.py -m model=resnet18,sa_quadratic,sa_learned,sa_learned_content",
            "python train.py model=sa_quadratic_generalized",
            "python train.py experiment=many_heads",
        ),
    }[scale]
    quadratic, learned, content = (run.format(model) for model in ("sa_quadratic", "sa_learned", "sa_learned_content"))
    any_covariance = partial(paper_data.gaussians, model="sa_quadratic_generalized", study=paper_data.GENERALIZED)
    sixteen_heads = partial(paper_data.gaussians, study=SIXTEEN_HEADS)
    images = f"{content} && python scripts/collect.py outputs --weights '*/sa_learned_content/*/seed0'"
    pruned = f"{generalized} && {PRUNED.format(scale=scale, epochs=paper_data.CONTINUED[scale])}"
    rows: list[tuple[str, str, Callable[..., Any], str]] = [
        ("02_accuracy_by_epoch", table1, paper_data.accuracy_by_epoch, "curves:by_epoch"),
        ("03_centers_in_training", quadratic, paper_data.centers_in_training, "gaussians:centers_in_training"),
        ("04_centers", quadratic, paper_data.gaussians, "gaussians:centers"),
        ("04_centers_as_printed", quadratic, paper_data.gaussians, "gaussians:as_printed"),
        ("05_learned_maps", learned, partial(paper_data.maps, model="sa_learned"), "maps:zoomed"),
        ("06_content_maps", content, partial(paper_data.maps, model="sa_learned_content"), "maps:whole"),
        ("07_to_10_content_in_images", images, paper_data.weights, "content:from_weights"),
        ("12_non_isotropic", generalized, any_covariance, "gaussians:centers"),
        ("13_pruned", pruned, paper_data.pruned, "curves:by_epoch"),
        ("14_sixteen_heads", sixteen, sixteen_heads, "gaussians:centers"),
    ]
    needs = "  # needs a GPU" if scale == "paper" else ""
    return [
        Entry(f"figure_{name}_{scale}", f"{command}{needs}", partial(load, scale=scale), f"figures.{draw}", scale)
        for name, command, load, draw in rows
    ]


def _ours() -> list[Entry]:
    """Return the figures of this project."""
    compared = "figures.accuracies:compared"
    probe = "python scripts/probe.py RUN && python scripts/collect.py outputs"
    distances = "python train.py experiment=long_range && python scripts/long_range.py outputs"
    return [
        Entry("claims", "make study", report_data.verdicts, "figures.claims:verdicts"),
        Entry("accuracy_by_images", _row("data_size"), study_data.accuracy_by_images, "figures.accuracies:by_images"),
        Entry("images_needed", _row("data_size"), report_data.needs, "figures.accuracies:images_needed"),
        Entry("frozen_heads", _row("frozen_heads"), study_data.frozen_heads, compared),
        Entry("encodings", _row("encodings"), study_data.encodings, compared),
        Entry(
            "accuracy_by_cpu_minutes", _row("table1"), study_data.accuracy_by_cpu_minutes, "figures.curves:by_minutes"
        ),
        Entry("convolution_share", probe, report_data.convolution_shares, "figures.layers:convolution_share"),
        Entry("growth", "python scripts/model_table.py", study_data.costs, "figures.costs:growth"),
        Entry("windows", _row("mixers"), study_data.windows, compared),
        Entry("normalizers", _row("normalizers"), study_data.normalizers, compared),
        Entry("long_range", distances, study_data.reaches, "figures.costs:long_range"),
    ]


def _of_theorem() -> list[Entry]:
    """Return the figures of the theorem, which need no training."""
    rows: list[tuple[str, Callable[[Results], Any], str]] = [
        ("theorem_nine_heads", report_data.small_kernel, "nine_heads"),
        ("theorem_photo", report_data.photo, "through_both"),
        ("theorem_sharpness", _nothing, "sharpness"),
        ("theorem_border", report_data.photo, "border"),
        ("theorem_too_little", report_data.wide_kernel, "too_little"),
    ]
    return [Entry(name, "make figures", load, f"figures.theorem:{draw}") for name, load, draw in rows]


def _row(name: str) -> str:
    return f"make study ONLY={name}"


def entries() -> list[Entry]:
    """Return all figures, in the order of the gallery."""
    drawings = [
        Entry("figure_01_theorem", "make figures", _nothing, "figures.illustrations:theorem"),
        Entry("figure_11_factorization", "make figures", _nothing, "figures.illustrations:factorization"),
    ]
    papers = [*drawings, *(entry for scale in SCALES for entry in _of_runs(scale))]
    first = Entry("overview", _row("data_size"), study_data.overview, "figures.overview:overview")
    return [first, *sorted(papers, key=lambda entry: entry.name.split("_")[1]), *_of_theorem(), *_ours()]
