"""Tables as pure functions of results, for the markers in README and pages."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnconv.files import read_csv, reading
from attnconv.report.comparisons import check_alike, distinct
from attnconv.runs.bounds import AMOUNT, COUNT, FINITE, SHARE, Number, check_numbers

TABLE_MARKERS = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end table -->)", flags=re.DOTALL)


def markdown(header: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """Return a Markdown table; with `numbers`, all columns but the first are right-aligned."""
    lines = [header, ["---", *["---:" if numbers else "---"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Sources of published numbers.
SOURCES = {
    "r": "recalled from the paper, not checked against its text",
    "c": "recalled, and confirmed by computing it from the published shapes",
    "f": "recalled, and confirmed by the pixels of Figure 2 to 0.002",
}


def paper_table(paper: list[dict[str, Any]], results: list[dict[str, Any]]) -> str:
    """Return published numbers next to ours under recipe=paper, scale=paper; rows without a full-length run say so.

    Only the paper's own experiment counts: all training images, 300 epochs, the published number of parameters, and no
    study name, so that a variant of a model never fills its row. Each published number has its source.
    """
    header = ["model", "parameters, paper", "ours", "FLOPs, paper", "test accuracy, paper", "ours"]
    the_papers = {
        "name": "default", "recipe": "paper", "scale": "paper", "data": "cifar10", "train_images": 50_000,
        "epochs": 300,
    }  # fmt: skip
    rows = []
    for published in paper:
        parameters = published["parameters"]
        wanted = the_papers | {"model": published["model"], "parameters": parameters}
        measured = _by_precision([*distinct(result for result in results if wanted.items() <= result.items())])
        rows.append([
            f"`{published['model']}`",
            f"{published['parameters_published']} ({published['parameters_source']})", f"{parameters:,}",
            f"{published['flops_published']} ({published['flops_source']})",
            f"{published['test_acc']:.1%} ({published['test_acc_source']})", measured or "not run: needs a GPU",
        ])  # fmt: skip
    legend = "; ".join(f"{letter}: {meaning}" for letter, meaning in SOURCES.items())
    return f"{markdown(header, rows)}\n{legend}.\n"


def _by_precision(runs: list[dict[str, Any]]) -> str:
    """Return the mean test accuracy and the number of runs, separately for each precision.

    Raises:
        RunFolderError: runs differ in other settings than the seed.
    """
    accuracies: dict[str, list[float]] = {}
    for precision in dict.fromkeys(run["precision"] for run in runs):
        alike = check_alike({place: run for place, run in enumerate(runs) if run["precision"] == precision})
        accuracies[precision] = [run["test_acc"] for run in alike.values()]
    means = {name: f"{sum(found) / len(found):.1%} (n={len(found)})" for name, found in accuracies.items()}
    external = sum(run["source"] is not None for run in runs)
    mark = f", {external} external" if external else ""
    if len(means) < 2:
        return "".join(means.values()) + mark
    return ", ".join(f"{mean} in {name}" for name, mean in sorted(means.items())) + mark


def runs_table(results: list[dict[str, Any]], own: Callable[[dict[str, Any]], list[str]]) -> str:
    """Return one row per run without a study name, with its provenance.

    Args:
        results: the rows of runs.csv.
        own: returns the settings of a run that differ from those of its scale and recipe, and have no column here.
    """
    header = ["model", "scale, recipe", "data", "seed", "parameters", "epochs", "test accuracy", "minutes", "hardware"]
    rows = [
        [
            f"[`{result['model']}`](results/runs/{result['run']})",
            f"{result['scale']}, {result['recipe']}" + (f" (own {', '.join(names)})" if (names := own(result)) else ""),
            f"{result['data']}, {result['train_images']:,} images",
            str(result["seed"]),
            f"{result['parameters']:,}",
            str(result["epochs"]),
            f"{result['test_acc']:.2%}",
            f"{result['seconds'] / 60:.1f}",
            f"{result['device']}, {result['precision']}",
        ]
        for result in sorted(results, key=lambda result: (result["data"], result["scale"], -result["test_acc"]))
        if result["name"] == "default" and result["source"] is None
    ]
    return markdown(header, rows)


def read_table(
    path: Path, numbers: Mapping[str, Number], texts: Collection[str] = (), unique: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of a .csv file with their numbers as int or float; other cells stay text.

    Args:
        numbers: what the numbers in some columns may be.
        texts: columns in which no cell may be empty.
        unique: columns that together name a row.

    Raises:
        FileError: see `reading`; also if a number is impossible, a text is empty, or two rows have one name.
    """
    rows: list[dict[str, Any]] = []
    with reading(path):
        for place, row in enumerate(read_csv(path, (*numbers, *texts)), 1):
            for column in texts:
                if not row[column]:
                    raise ValueError(f"row {place} has an empty {column}")
            what = f"row {place} has"
            rows.append(row | {column: one.parse(f"{what} {column}", row[column]) for column, one in numbers.items()})
        if unique and len({tuple(row[column] for column in unique) for row in rows}) < len(rows):
            raise ValueError(f"two rows have the same {', '.join(unique)}")
    return rows


def read_models(path: Path) -> list[dict[str, Any]]:
    """Return the rows of results/models.csv.

    Raises:
        FileError: see `read_table`.
    """
    numbers = {
        **dict.fromkeys(("parameters", "flops_paper", "flops_full", "activation_bytes"), COUNT),
        **dict.fromkeys(("growth_theory", "shift_error", "permutation_error"), AMOUNT),
    }
    rows = read_table(path, numbers, ("model", "scale"), unique=("model", "scale"))
    with reading(path):
        for place, row in enumerate(rows, 1):
            for column in ("field_theory", "field_effective", "growth_measured"):
                row[column] = [FINITE.parse(f"row {place} has {column}", number) for number in row[column].split()]
    return rows


def read_paper(path: Path) -> list[dict[str, Any]]:
    """Return the rows of results/paper.csv, the published numbers.

    Raises:
        FileError: see `read_table`.
    """
    texts = ("model", "parameters_published", "flops_published")
    return read_table(path, {"test_acc": SHARE, "parameters": COUNT}, texts, unique=("model",))


def models_table(rows: list[dict[str, Any]], scale: str) -> str:
    """Return the costs of all models at one scale, cheapest first, from results/models.csv.

    At scale=paper, the table also has their receptive fields, which do not depend on the width.
    """
    header = ["model", "parameters", "GFLOPs, paper's count", "in full", "activations, MB per image"]
    if whole := scale == "paper":
        header += [
            "exponent in pixels, theory", "measured", "receptive field after 1 / 3 / all layers, pixels",
            "effective", "shift error", "shuffle error", "depends on content",
        ]  # fmt: skip
    lines = []
    for row in sorted((row for row in rows if row["scale"] == scale), key=lambda row: row["flops_full"]):
        cells = [
            f"`{row['model']}`",
            f"{row['parameters']:,}",
            f"{row['flops_paper'] / 1e9:.3f}",
            f"{row['flops_full'] / 1e9:.3f}",
            f"{row['activation_bytes'] / 1e6:.1f}",
        ]
        lines.append(cells + _reach(row) if whole else cells)
    return markdown(header, lines)


def _reach(row: dict[str, Any]) -> list[str]:
    """Return the cells on the growth of time, the receptive field, and the symmetries of a model."""
    theory, effective = ([fields[0], fields[min(2, len(fields) - 1)], fields[-1]] for fields in
                         (row["field_theory"], row["field_effective"]))  # fmt: skip
    return [
        f"{row['growth_theory']:g}",
        " ".join(f"{exponent:.2f}" for exponent in row["growth_measured"]),
        " / ".join(f"{side:g}" for side in theory),
        " / ".join(f"{side:.0f}" for side in effective),
        f"{row['shift_error']:.1e}",
        f"{row['permutation_error']:.1e}",
        row["sees_content"],
    ]


BENCH_HEADER = [
    "what", "scale, batch, map", "hardware", "speedup, both fp32", "speedup, ours in its precision",
    "images/s, published", "images/s, ours",
    "peak MiB, published", "peak MiB, ours", "% of fp32 matmul", "% of bf16 matmul",
]  # fmt: skip
OF_BF16 = ("speedup, ours in its precision", "% of bf16 matmul")


def bench_row(line: dict[str, Any]) -> list[str]:
    """Return one comparison of scripts/bench.py, under BENCH_HEADER.

    The last two cells are our FLOP/s over a matmul's.
    """
    height, width = line["positions"]
    both, ours = (line["published"], line["ours"]), line["ours"]["flops_per_second"]
    return [
        f"{line['part']}, `{line['model']}`"
        + (f", dropout {line['dropout']}" if line.get("dropout") else "")
        + (", matched" if "match=parameters" in line["overrides"] else "")
        + (", compiled" if line["compiled"] else ""),
        f"{line['scale']}, {line['batch']} images, {height}x{width}",
        f"{line['device']}, {line['precision']}",
        _spread(line["ratio_fp32"]),
        _spread(line["ratio"]),
        *(f"{side['images_per_second']:,.4g}" for side in both),
        *(f"{side['peak_bytes'] / 2**20:,.0f}" for side in both),
        *(f"{ours / line[key]['median']:.0%}" if key in line else "-" for key in ("matmul_fp32", "matmul_bf16")),
    ]


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def bench_table(lines: Iterable[dict[str, Any]]) -> str:
    """Compare ours with the published formulation, from results/bench.jsonl.

    Of repeated measurements, the last one counts.

    Measurements with uncommitted changes, of tiny networks or with fewer images or rounds than usual, or against an
    earlier baseline that shared our backbone, are left out.
    """
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        for side in ("published", "ours"):
            bounds = {"images_per_second": AMOUNT, "peak_bytes": COUNT, "flops_per_second": AMOUNT}
            check_numbers(f"line {number}, {side},", line.get(side, {}), bounds)
        if line["dirty"] is False and "ratio_fp32" in line and line.get("standard", True):
            names = ("device", "precision", "part", "model", "scale", "batch", "compiled", "dropout")
            key = tuple(line.get(name, 0.0) for name in names)
            last[(*key, *line["positions"], *line["overrides"])] = line
    rows = [bench_row(line) for line in last.values()]
    if all(line["precision"] == "fp32" for line in last.values()):  # columns about bf16 would repeat others or be empty
        kept = [place for place, name in enumerate(BENCH_HEADER) if name not in OF_BF16]
        return markdown([BENCH_HEADER[place] for place in kept], [[row[place] for place in kept] for row in rows])
    return markdown(BENCH_HEADER, rows)


def fill(text: str, tables: Mapping[str, str | None]) -> str:
    """Replace the text between `<!-- table: NAME -->` and `<!-- end table -->`; a table that is None stays.

    Raises:
        KeyError: the text names an unknown table.
        ValueError: a table is not between such marks, or is there twice.
    """
    marks = re.findall(r"<!-- *(table: *\w+|end table\w*) *-->", text)
    expected = [mark for name in re.findall(r"<!-- table: (\w+) -->", text) for mark in (f"table: {name}", "end table")]
    if marks != expected or sorted(expected[::2]) != sorted(f"table: {name}" for name in tables):
        raise ValueError(
            f"the marks of its tables must be <!-- table: NAME --> and <!-- end table -->, once for each of "
            f"{', '.join(sorted(tables))}, and are {', '.join(marks)}"
        )

    def filled(match: re.Match[str]) -> str:
        table = tables[match[2]]
        return match[0] if table is None else f"{match[1]}{table}{match[3]}"

    return TABLE_MARKERS.sub(filled, text)
