"""The page of the data-size study: differences from the control, n in every cell, and significant crossings."""

import re

import pytest
from fabricated import LOW, row, seeds

from attnconv.errors import RunFolderError
from attnconv.report.comparisons import cells, gap, spread_of
from attnconv.report.data_size import data_size_page, difference_table, disagreements, need_table, spread_text
from attnconv.report.figures.results import Results, by_seed
from attnconv.report.figures.study_data import accuracy_by_images, frozen_heads, normalizers, windows
from attnconv.report.protocols import protocols
from attnconv.report.stats import logit, points

EPOCHS, STEPS = "data_size_epochs_20", "data_size_steps_5"
NOISE = (-0.01, 0.0, 0.01)


def curve(name, model, by_fraction, wobble=0.002, **changes):
    """Three seeds at each fraction, with an effect shared by all models and a small one per model."""
    shift = wobble if model.startswith("sa") else 0
    return [
        run
        for fraction, accuracy in by_fraction.items()
        for run in seeds(name, model, [accuracy + noise + shift * (seed - 1) * (-1) ** seed
                                       for seed, noise in enumerate(NOISE)], fraction=fraction, **changes)
    ]  # fmt: skip


CONTROL = curve(EPOCHS, "conv3x3", {0.01: 0.5, 0.1: 0.7})
ATTENTION = curve(EPOCHS, "sa_learned", {0.01: 0.4, 0.1: 0.8})


def table_cells(text, line):
    return [cell.strip() for cell in text.splitlines()[line].strip("|").split("|")]


def test_differences_from_the_control_show_n_and_are_bold_if_significant():
    (protocol,) = protocols(ATTENTION + CONTROL)
    line = table_cells(difference_table(protocol), 2)
    assert line[0] == "`sa_learned`"
    assert line[1].startswith("**-10.0 [-")
    assert line[2].startswith("**+10.")
    assert all(", n=3" in cell for cell in line[1:3])
    assert line[3] == "0.01 and 0.1", "each side leads for sure on one side"
    even = curve(EPOCHS, "sa_learned", {0.01: 0.499, 0.1: 0.701})
    line = table_cells(difference_table(protocols(even + CONTROL)[0]), 2)
    assert "**" not in "".join(line)
    assert line[3] == "not located", "although the means change sides"


def test_gaps_convert_mean_logit_differences_to_points():
    by_model = cells(ATTENTION + CONTROL)[0.1]
    found = gap(by_model["sa_learned"], by_model["conv3x3"], spread_of([by_model]))
    logits = [logit(run["test_acc"]) for run in ATTENTION if run["fraction"] == 0.1]
    of_control = [logit(run["test_acc"]) for run in CONTROL if run["fraction"] == 0.1]
    assert found.value == pytest.approx(points((sum(logits) - sum(of_control)) / 3, 0.7))
    assert found.interval.low < found.value < found.interval.high


def test_runs_with_another_seed_subset_or_source_are_not_paired():
    (first, *_) = ATTENTION
    for change in ({"seed": 7}, {"subset_hash": "another"}, {"source": "ada"}):
        by_model = cells([first | change, *CONTROL])[0.01]
        assert gap(by_model["sa_learned"], by_model["conv3x3"], None) is None


def test_external_runs_are_pooled_and_marked():
    theirs = [
        run | {"source": "ada", "run": "../external/ada/x", "test_acc": run["test_acc"] + 0.001}
        for run in CONTROL + ATTENTION
        if run["seed"] == 0
    ]
    page = data_size_page([*CONTROL, *ATTENTION, *theirs], [])
    assert ", n=4 (1 external)" in page


def test_runs_in_different_precisions_are_not_paired_or_averaged():
    in_fp32 = [run | {"precision": "fp32", "name": f"{EPOCHS}_fp32", "test_acc": 0.9} for run in CONTROL]
    bf16, fp32 = protocols([*ATTENTION, *in_fp32])
    assert not bf16.gaps
    assert not fp32.gaps
    page = data_size_page([*ATTENTION, *in_fp32], [])
    assert "Equal epochs: 20 epochs (bf16," in page
    assert "Equal epochs: 20 epochs (fp32," in page
    with pytest.raises(ValueError, match="several kinds: bf16 modern mini, fp32 modern mini"):
        cells([*ATTENTION, *in_fp32])


def test_full_data_at_equal_epochs_comes_from_table1():
    whole = seeds("table1_bf16", "conv3x3", (0.88, 0.89, 0.9))
    other = seeds("table1_fp32", "conv3x3", (0.1, 0.1, 0.1), precision="fp32")
    (protocol,) = protocols([*CONTROL, *whole, *other])
    assert list(protocol.cells) == [0.01, 0.1, 1.0]
    assert "89.0 [" in data_size_page([*CONTROL, *whole, *other], [])


def test_only_the_runs_of_the_study_count():
    mine = [
        run | {"name": name, "test_acc": 0.1, "train_acc": 0.1}
        for name in ("data_size_mine", "data_size_epochs_20_mine", "data_size_epochs_5", "table1_mine")
        for run in [*ATTENTION, *seeds(EPOCHS, "sa_learned", (0.9, 0.9, 0.9))]
    ]
    (protocol,) = protocols([*mine, *CONTROL, *ATTENTION, *mine])
    (alone,) = protocols([*CONTROL, *ATTENTION])
    assert protocol.cells == alone.cells


def test_runs_of_table1_do_not_replace_those_of_the_study():
    own, of_table1 = (seeds(name, "conv3x3", accuracies) for name, accuracies in
                      ((EPOCHS, (0.88, 0.89)), ("table1_bf16", (0.1, 0.1, 0.9))))  # fmt: skip
    (protocol,) = protocols([*of_table1, *CONTROL, *own])
    assert sorted(run["test_acc"] for run in protocol.cells[1.0]["conv3x3"].values()) == [0.88, 0.89, 0.9]


def test_the_figure_shows_the_protocols_and_runs_of_the_page(tmp_path):
    tuned = [run | {"holdout": 0.1, "test_acc": 0.1} for run in CONTROL]
    other = [run | {"recipe": "paper", "test_acc": 0.2} for run in CONTROL]
    theirs = [run | {"source": "ada", "test_acc": run["test_acc"] + 0.001} for run in CONTROL]
    copies = [run | {"source": "bo"} for run in CONTROL]
    results = Results(tmp_path)
    results.runs = [*CONTROL, *ATTENTION, *tuned, *other, *theirs, *copies]
    modern, paper = accuracy_by_images(results)
    assert {model: list(map(len, found.values())) for model, found in modern.accuracies.items()} == {
        "conv3x3": [6, 6],
        "sa_learned": [3, 3],
    }
    assert set(paper.accuracies["conv3x3"][500].values()) == {0.2}


def test_figures_of_studies_show_only_their_own_fraction_and_settings(tmp_path):
    def of(name, model, accuracy, **changes):
        return seeds(f"{name}_bf16", model, [accuracy] * 3, **({"fraction": 0.25} | changes))

    results = Results(tmp_path)
    results.runs = [
        *of("mixers_kernel5", "local_attention", 0.7), *of("mixers_kernel5", "conv5x5", 0.71),
        *of("mixers_kernel5", "local_attention", 0.8, fraction=1.0),
        *of("mixers_kernel5", "local_attention", 0.9, recipe="paper"),
        *of("normalizers_softmax", "sa_learned", 0.6), *of("normalizers_relu", "sa_learned", 0.61),
        *of("normalizers_relu", "sa_learned", 0.9, fraction=1.0),
        *of("frozen_heads", "sa_quadratic", 0.5, fraction=0.1),
        *of("frozen_heads", "sa_quadratic_random", 0.4, fraction=0.1),
        *of("frozen_heads", "sa_quadratic_random", 0.9, fraction=0.1, scale="small"),
    ]  # fmt: skip
    for load, panel, expected in (
        (windows, "12,500 images", [0.7, 0.71]), (normalizers, "sa_learned", [0.6, 0.61]),
        (frozen_heads, "5,000 images", [0.5, 0.4]),
    ):  # fmt: skip
        shown = [set(group.accuracies.values()) for group in load(results).panels[panel]]
        assert shown == [{accuracy} for accuracy in expected]
    with pytest.raises(RunFolderError, match="but epochs=20 and 60"):
        by_seed([*results.runs[:2], results.runs[2] | {"epochs": 60}])


def test_the_control_is_first_even_if_its_smallest_fraction_is_missing():
    (protocol,) = protocols([*curve(STEPS, "sa_learned", {0.1: 0.6, 0.25: 0.7}), *curve(STEPS, "conv3x3", {0.25: 0.7})])
    assert protocol.models == ["conv3x3", "sa_learned"]


def test_disagreements_between_protocols_are_reported():
    steps = [*curve(STEPS, "conv3x3", {0.1: 0.7}), *curve(STEPS, "sa_learned", {0.1: 0.6})]
    found = protocols([*CONTROL, *ATTENTION, *steps])
    (sentence,) = disagreements(found)
    assert sentence == (
        "At 0.1 of the images the protocols disagree on `sa_learned`: ahead after 20 epochs (bf16), behind after "
        "1,955 steps (bf16)."
    )
    assert sentence in data_size_page([*CONTROL, *ATTENTION, *steps], [])


def test_images_needed_and_slope():
    twice = {0.02: 0.5, 0.2: 0.7}  # the control's accuracies, at twice its images
    (protocol,) = protocols([*curve(EPOCHS, "conv3x3", {0.01: 0.5, 0.1: 0.7}, 0), *curve(EPOCHS, "sa_x", twice, 0)])
    line = table_cells(need_table(protocol), 2)
    assert line[2] == "2.00 x, n=3", "without noise there is no interval"
    assert line[1] == line[4] == "out of range"
    (protocol,) = protocols([*curve(EPOCHS, "conv3x3", {0.01: 0.5, 0.1: 0.7}, 0), *curve(EPOCHS, "sa_x", {0.1: 0.6})])
    assert table_cells(need_table(protocol), 2)[1:5] == [""] * 4, "one fraction is no curve"
    (protocol,) = protocols(CONTROL + ATTENTION)
    assert protocol.slope("sa_learned").value > 0
    assert protocol.slope("sa_learned").n == 3


def test_the_spread_is_also_given_for_each_fraction():
    runs = []
    for fraction, wobble in ((0.01, 0.02), (0.1, 0.001)):
        noisy = [accuracy + wobble * sign for accuracy, sign in zip(LOW, (1, -1, 0), strict=True)]
        runs += seeds(EPOCHS, "conv3x3", LOW, fraction=fraction) + seeds(EPOCHS, "sa_x", noisy, fraction=fraction)
    noisy, calm = re.search(r"\((\S+) at 0.01, (\S+) at 0.1\)", spread_text(protocols(runs)[0])).groups()
    assert float(noisy) > 5 * float(calm)


def test_the_page_lists_commits_hosts_trials_and_gains():
    rates = [row(f"learning_rates_{rate}_bf16", "sa_learned", 0.5, 100, 0.25, val_acc=accuracy, holdout=0.1, epochs=10)
             for rate, accuracy in (("0.5", 0.6), ("1", 0.61), ("2", 0.615))]  # fmt: skip
    rates.append(row("learning_rates_2_bf16", "sa_learned", 0.5, 101, 0.25, val_acc=0.9, holdout=0.1, epochs=10))
    rates.append(row("learning_rates_2_bf16", "sa_learned", 0.5, 100, 0.25, val_acc=0.9, holdout=0.1, epochs=20))
    trials = [{"trial": name} for name in ("start", "start", "recipe.lr=0.04", "sa_learned: slower")]
    page = data_size_page([*CONTROL, *ATTENTION, *rates], trials)
    assert "Commit 0000000; bf16; a CPU, 1 thread." in page
    assert "| `sa_quadratic` | 2 | not run |" in page
    assert "| `sa_learned` | 1 | +0.5 at 2 x (bf16, 3 rates, one seed) |" in page
    assert f"](runs/{EPOCHS}/sa_learned/mini-modern)" in page


def test_crossed_seeds_and_subsets_give_variance_components():
    grid = [row(f"grid_{subset}", "conv3x3", 0.5 + 0.01 * seed + 0.03 * subset, seed, 0.01, subset_seed=subset)
            for seed in range(3) for subset in range(3)]  # fmt: skip
    wide = [run | {"name": "grid_wide", "test_acc": 0.9} for run in grid]
    small = [run | {"scale": "small", "test_acc": 0.9} for run in grid]
    page = data_size_page([*CONTROL, *grid, *wide, *small], [])
    assert "| `conv3x3` | bf16 | 0.01 | 3 x 3 | 1.00 | 3.00 | 0.00 |" in page
    assert "Not run: `python train.py -m" in data_size_page([*CONTROL, *grid[:-1]], [])


def test_without_runs_the_page_shows_the_command():
    assert "Not run yet: `python train.py experiment=data_size`" in data_size_page([], [])
    single = data_size_page([row(EPOCHS, "conv3x3", 0.5, fraction=0.1)], [])
    assert "50.0, n=1" in single
    assert "there are no intervals" in single
