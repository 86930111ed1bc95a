"""The study: the runs that decide the claims, in order. `python scripts/study.py --list` prints it.

A row asks one question. One or several experiments answer it: files of configs/experiment/, with the values to sweep.
Each row has one precision, which is part of its run names, so that runs of two precisions are never compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType

from attnconv.config import freeze
from attnconv.errors import ConfigError, nearest
from attnconv.runs.estimate import Rates, work_of
from attnconv.settings.composition import composed, swept_by
from attnconv.settings.contradictions import require_effect
from attnconv.settings.overrides import check_overrides
from attnconv.sweeps.grid import EMPTY, Cell, clash

# Settings that no override may change, each with what to type instead.
SET_BY_ROWS = {
    "experiment": "; --only ROW chooses",
    "precision": "; --precision chooses",
    "collected": "; runs in results/ count as done",
}

# The essential rows. On a slow machine their cells are mixed, small ones first.
ESSENTIAL = ("table1", "learning_rates", "frozen_heads", "data_size", "small")


@dataclass(frozen=True)
class Sweep:
    """An experiment, and the arguments that a command line would add."""

    experiment: str
    overrides: tuple[str, ...] = ()


def rows(precision: str) -> dict[str, list[Sweep]]:
    """Return the sweeps of each row in order; in fp32, which is slower, the essential rows are smaller."""
    whole = precision == "bf16"
    three = () if whole else ("model=conv3x3,sa_quadratic,sa_learned",)
    named = () if whole else ("name='data_size_${data.equal}_${epochs}_fp32'",)
    fractions = "0.01,0.05,0.25,1" if whole else "0.01,0.05,0.25"
    return {
        "table1": [Sweep("table1", three)],
        "learning_rates": [Sweep("learning_rates")],
        "frozen_heads": _frozen_heads(whole),
        "data_size": [
            *([Sweep("data_size")] if whole else []),
            Sweep("data_size", ("data.equal=steps", "epochs=5", f"data.fraction={fractions}", *named)),
        ],
        "small": _small(whole),
        "encodings": _encodings(),
        "mixers": _mixers(whole),
        "normalizers": [Sweep("normalizers")],
        "optimizer": [Sweep("optimizer")],
        "cutmix": [Sweep("cutmix")],
    }


def _frozen_heads(whole: bool) -> list[Sweep]:
    """Sweep a tenth of the images with five seeds, and all images with three seeds.

    Their learned heads are those of table1.
    """
    sweeps = [Sweep("frozen_heads"), *_copied("${name}", "0.1", seeds=5)]
    if whole:
        frozen = ("data.fraction=1", "seed=0,1,2", "model=sa_quadratic_shifts,sa_quadratic_random")
        sweeps += [Sweep("table1", ("model=sa_quadratic",)), Sweep("frozen_heads", frozen)]
        sweeps += _copied("table1_${precision}", "1", seeds=3)
    return sweeps


def _copied(name: str, fraction: str, seeds: int) -> list[Sweep]:
    """Copy the heads from the next seed's run of sa_quadratic, so that they come from another network.

    Args:
        name: of the experiment that trained that run.
    """
    folder = f"${{output}}/{name}/sa_quadratic/${{scale.name}}-${{recipe.name}}/frac{fraction}"
    sweeps = []
    for seed in range(seeds):
        start = f"model.start='{folder}/seed{(seed + 1) % seeds}/weights.safetensors'"
        fixed = ("model=sa_quadratic_copied", f"data.fraction={fraction}", f"seed={seed}", start)
        sweeps.append(Sweep("frozen_heads", fixed))
    return sweeps


def _small(whole: bool) -> list[Sweep]:
    """Sweep a pilot that measures the time, then the quadratic network, then the two networks to compare it with."""
    pilot = ("model=sa_quadratic", "epochs=5", "eval_every=5", "data.holdout=0.1", "name='small_pilot_${precision}'")
    if not whole:
        return [Sweep("small", pilot), Sweep("small", ("model=sa_quadratic",))]
    return [
        Sweep("small", pilot),
        Sweep("small", ("model=sa_quadratic", "seed=0,1")),
        Sweep("small", ("model=conv3x3,sa_learned",)),
    ]


def _encodings() -> list[Sweep]:
    full_width = ("model=sa_learned_content", "match=null", "name='encodings_full_width_${precision}'")
    heads = ("model=sa_quadratic", "scale.heads=16", "match=null", "seed=0", "name='encodings_16_heads_${precision}'")
    return [Sweep("encodings"), Sweep("encodings", full_width), Sweep("encodings", heads)]


def _mixers(whole: bool) -> list[Sweep]:
    """Sweep windows of all sizes, global mixers at two budgets, and in fp32 the references."""
    kernel = "${model.mixer.kernel_size}"
    name = f"name='mixers_kernel{kernel}_${{precision}}'"
    local = ("model=local_attention", "model.mixer.kernel_size=3,5,7", name)
    convolution = ("model=conv3x3", "model.mixer.kernel_size=5,7", f"model.name='conv{kernel}x{kernel}'", name)
    flops = ("match=flops", "match_model=sa_learned_content", "name='mixers_flops_${precision}'")
    return [
        *([] if whole else [Sweep("mixers", ("model=conv3x3,sa_learned_content",))]),
        Sweep("mixers"),
        Sweep("mixers", local),
        Sweep("mixers", convolution),
        Sweep("mixers", ("model=depthwise_global,mlp_mixer,sa_learned_content", *flops)),
    ]


def plan(precision: str, only: Iterable[str], overrides: list[str], results: Path) -> dict[str, list[Cell]]:
    """Return the cells of each row; a cell that several rows share is listed in the first.

    Args:
        precision: bf16 or fp32.
        only: rows; all of them if empty.
        overrides: for every experiment; they may sweep.
        results: runs that were collected there count as done.

    Raises:
        ConfigError: a row does not exist, or an override has no effect in any of its runs; see `check_overrides`.
    """
    check_overrides(overrides)
    for override in overrides:
        if (key := override.partition("=")[0].lstrip("+")) in SET_BY_ROWS:
            raise ConfigError(f"{override}: the experiments of the study set {key}; leave it out{SET_BY_ROWS[key]}")
        if OverridesParser.create().parse_override(override).value_type is ValueType.GLOB_CHOICE_SWEEP:
            raise ConfigError(f"{override}: the study does not search for names; list them: {key}=NAME,NAME")
        if key.startswith("hydra"):
            raise ConfigError(f"{override} has no effect: the study starts its runs without Hydra's launchers")
    of_study = rows(precision)
    for name in only:
        if name not in of_study:
            raise ConfigError(f"the study has no experiment {name}{nearest(name, of_study)}")
    cells: dict[str, list[Cell]] = {}
    seen: dict[Path, Cell] = {}
    for name in dict.fromkeys(only) or of_study:
        cells[name] = []
        for cell in (cell for sweep in of_study[name] for cell in expand(sweep, precision, overrides)):
            other = seen.setdefault(cell.folder, cell)
            if other is cell:
                cells[name].append(_collected(cell, str(results)))
            elif other.config != cell.config:
                raise ConfigError(clash(other, cell))
    if not any(cells.values()):
        raise ConfigError(EMPTY)
    require_effect([(cell.config, cell.overrides) for of_row in cells.values() for cell in of_row])
    return _with_sources(cells)


def in_order(cells: dict[str, list[Cell]], precision: str, rates: Rates) -> list[Cell]:
    """Return the cells row by row; in fp32 the small cells of the essential rows come first."""
    if precision == "bf16":
        return [cell for of_row in cells.values() for cell in of_row]
    essential = [cell for name in cells if name in ESSENTIAL for cell in cells[name]]
    further = [of_row for name, of_row in cells.items() if name not in ESSENTIAL]
    return [
        cell
        for some in (essential, *further)
        for cell in sorted(some, key=lambda cell: rates.seconds(work_of(cell.config)))
    ]


def expand(sweep: Sweep, precision: str, overrides: list[str]) -> list[Cell]:
    """Return the composed cells of a sweep."""
    return [
        Cell(combination, freeze(composed(combination))) for combination in combinations(sweep, precision, overrides)
    ]


def combinations(sweep: Sweep, precision: str, overrides: list[str]) -> list[list[str]]:
    """Return the overrides of each cell.

    These are all combinations of the values of the experiment, the sweep and `overrides`.
    """
    swept = [f"{key}={values}" for key, values in swept_by(sweep.experiment).items()]
    given = [f"experiment={sweep.experiment}", f"precision={precision}", *swept]
    parsed = OverridesParser.create().parse_overrides([*given, *sweep.overrides, *overrides])
    (grid,) = BasicSweeper.split_arguments(parsed, None)
    return [list(combination) for combination in grid]


def _with_sources(cells: dict[str, list[Cell]]) -> dict[str, list[Cell]]:
    """Repeat collected runs if other runs need their weights, because results/ holds only their numbers."""
    needed = {cell.donor for of_row in cells.values() for cell in of_row if cell.collected is None}
    return {
        name: [_collected(cell, None) if cell.folder / "weights.safetensors" in needed else cell for cell in of_row]
        for name, of_row in cells.items()
    }


def _collected(cell: Cell, results: str | None) -> Cell:
    return replace(cell, config=replace(cell.config, collected=results))
