"""The tables of the data-size study say what their runs say, with intervals that a textbook gives."""

import math
import statistics

import pytest

from attnconv.report.data_size import accuracies, accuracy_table, data_size_page, difference_table, studies


def row(model, fraction, seed, accuracy, name="data_size_epochs_20"):
    return {
        "name": name, "scale": "mini", "recipe": "modern", "equal": "epochs", "epochs": 20, "model": model,
        "fraction": fraction, "seed": seed, "test_acc": accuracy, "precision": "bf16",
    }  # fmt: skip


QUADRATIC = [
    row("sa_quadratic", fraction, seed, 0.4 + fraction + 0.01 * seed) for fraction in (0.01, 0.1) for seed in range(3)
]
CONVOLUTION = [
    row("conv3x3", fraction, seed, 0.4 + fraction + 0.01 * seed + gap)
    for fraction, gap in ((0.01, 0.02), (0.1, -0.02))
    for seed in range(3)
]


def cells(table, line):
    return [cell.strip() for cell in table.splitlines()[line].strip("|").split("|")]


def test_means_and_intervals():
    table = accuracy_table(accuracies(QUADRATIC + CONVOLUTION))
    assert cells(table, 0) == ["model", "0.01", "0.1"]
    half = 4.3027 * statistics.stdev([1, 2, 3]) / math.sqrt(3)  # t of 2 degrees of freedom at 97.5%
    assert cells(table, 2) == ["`sa_quadratic`", f"42.0 ± {half:.1f}", f"51.0 ± {half:.1f}"]


def test_fewer_than_three_seeds_have_no_interval():
    table = accuracy_table(accuracies(QUADRATIC[1:] + CONVOLUTION[:1]))
    assert cells(table, 2)[1] == "42.5 (n=2)"
    assert cells(table, 3) == ["`conv3x3`", "42.0 (n=1)".replace("42.0", "43.0"), ""]


def test_differences_are_paired_and_curves_cross():
    table = difference_table(accuracies(QUADRATIC + CONVOLUTION))
    # Seeds differ by 1 point and models by 2 in each: paired, the interval is a point.
    assert cells(table, 2)[:3] == ["`conv3x3` - `sa_quadratic`", "**+2.0 ± 0.0**", "**-2.0 ± 0.0**"]
    assert cells(table, 2)[3] == "0.032 [0.032, 0.032] (100%)", "half way on the logarithmic axis"


def test_studies_are_kept_apart_and_other_runs_out():
    other = row("conv3x3", 0.01, 0, 0.9, name="data_size_steps_2") | {"equal": "steps", "epochs": 2}
    stranger = row("conv3x3", 0.01, 0, 0.9, name="default")
    found = studies([*QUADRATIC, other, stranger])
    assert {key: len(rows) for key, rows in found.items()} == {
        ("data_size_epochs_20", "mini", "modern", "bf16"): 6,
        ("data_size_steps_2", "mini", "modern", "bf16"): 1,
    }
    page = data_size_page([*QUADRATIC, other, stranger])
    assert "## Equal epochs: 20 passes over the images used (data_size_epochs_20, scale=mini, recipe=modern)" in page
    assert "## Equal steps: those of 2 passes over all images" in page
    assert "precision=" not in page


def test_runs_of_different_precision_are_never_paired_or_averaged():
    in_fp32 = [run | {"precision": "fp32", "test_acc": 0.9} for run in CONVOLUTION]
    page = data_size_page([*QUADRATIC, *in_fp32])
    in_bf16, fp32 = page.split("## ")[1:]
    assert "recipe=modern, precision=bf16)\n" in in_bf16
    assert "recipe=modern, precision=fp32)\n" in fp32
    assert "conv3x3" not in in_bf16
    assert "sa_quadratic" not in fp32
    assert "90.0 ± 0.0" in fp32
    with pytest.raises(ValueError, match="runs of several precisions: bf16, fp32"):
        accuracies([*QUADRATIC, *in_fp32])
