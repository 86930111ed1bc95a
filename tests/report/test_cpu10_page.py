"""The table of CPU-10: means over seeds, one row per entry and machine, nothing that breaks the rules."""

import json

from attnconv.report.cpu10_page import cpu10_lines, cpu10_table

LINE = {
    "entry": "ours", "mixing": "attention", "seed": 0, "limit_seconds": 600.0, "train_seconds": 540.0,
    "test_acc": 0.85, "seconds_to_80": 300.0, "epochs": 5, "parameters": 450540, "matmul_gflops": [120.2, 130.4],
    "device": "a CPU, 2 threads", "precision": "fp32", "dirty": False,
}  # fmt: skip


def rows(*lines):
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in cpu10_table(lines).splitlines()[2:]]


def line(**changes):
    return LINE | {"source": ""} | changes


def test_seeds_of_an_entry_on_one_machine_are_one_row():
    found = rows(line(), line(seed=1, test_acc=0.87, seconds_to_80=360.0), line(device="another CPU", test_acc=0.9))
    assert found == [
        ["attention only", "`ours`", "1", "90.0%", "5.0 min", "5", "450,540", "9.0", "120 to 130", "another CPU, fp32"],
        ["attention only", "`ours`", "2", "86.0% (85.0% to 87.0%)", "5.5 min", "5", "450,540", "9.0", "120 to 130",
         "a CPU, 2 threads, fp32"],
    ]  # fmt: skip


def test_a_seed_that_never_reached_80_percent_does_not_hide_the_others():
    (found,) = rows(line(), line(seed=1, seconds_to_80=360.0), line(seed=2, seconds_to_80=None))
    assert found[4] == "2 of 3: 5.5 min"


def test_runs_with_another_number_of_epochs_are_another_row():
    found = rows(line(epochs=8), line(epochs=7, seed=1), line(epochs=7.2, entry="peer"), line(epochs=6.9, entry="peer"))
    assert [(row[1], row[2], row[5]) for row in found] == [
        ("`ours`", "1", "8"),
        ("`ours`", "1", "7"),
        ("`peer`", "1", "6.9"),
    ]


def test_classes_keep_their_order_and_entries_are_ranked_in_them():
    found = rows(
        line(entry="a", mixing="both", test_acc=0.99),
        line(entry="b", mixing="convolution", test_acc=0.5),
        line(entry="c", mixing="convolution", test_acc=0.6),
        line(entry="d", test_acc=0.1),
    )
    assert [row[1] for row in found] == ["`d`", "`c`", "`b`", "`a`"]


def test_what_is_over_the_limit_or_never_reaches_80_says_so():
    (over, never) = rows(line(train_seconds=601.0, test_acc=0.9), line(seed=1, seconds_to_80=None))
    assert (over[1], never[1]) == ("`ours`, over ten minutes", "`ours`")
    assert (over[4], never[4]) == ("5.0 min", "not reached")


def test_a_repeated_seed_counts_once_with_its_last_line():
    (row,) = rows(line(test_acc=0.5), line(test_acc=0.75))
    assert row[2:4] == ["1", "75.0%"]


def test_lines_that_do_not_count_are_left_out_and_those_of_others_are_marked(tmp_path):
    ours = [LINE, LINE | {"seed": 1, "dirty": True}, LINE | {"seed": 2, "limit_seconds": 60.0}]
    (tmp_path / "cpu10.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ours))
    (tmp_path / "external/ada").mkdir(parents=True)
    (tmp_path / "external/bob").mkdir()
    (tmp_path / "external/ada/cpu10.jsonl").write_text(json.dumps(LINE) + "\n")
    lines = cpu10_lines(tmp_path)
    assert [(found["source"], found["seed"]) for found in lines] == [("", 0), ("ada", 0)]
    assert [row[1] for row in rows(*lines)] == ["`ours`", "`ours` by ada"]
