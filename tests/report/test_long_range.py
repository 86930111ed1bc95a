"""The table of the two-marks task: its file is read by one function, which refuses impossible numbers."""

import re

import pytest

from attnconv.files import FileError
from attnconv.report.long_range import long_range_table, read_long_range

COLUMNS = "model,layers,distance,limit,counting,precision,test_acc"


def written(path, *rows):
    path.write_text("\n".join([COLUMNS, *rows]) + "\n")
    return path


def test_accuracies_beyond_the_limit_are_in_italics(tmp_path):
    path = written(tmp_path / "long_range.csv", "conv3x3,1,4,8,0.5,fp32,0.987", "conv3x3,1,12,8,0.6,fp32,0.5")
    assert "| `conv3x3` | fp32 | 1 | 8 | 98.7% | *50.0%* |" in long_range_table(read_long_range(path))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("conv3x3,1,4,8,0.5,fp32,98.7", "(row 2 has test_acc 98.7, which is not a share from 0 to 1)"),
        ("conv3x3,1,4,8,0.5,fp32,nan", "(row 2 has test_acc nan, which is not a share from 0 to 1)"),
        ("conv3x3,1,4,8,-0.5,fp32,0.9", "(row 2 has counting -0.5, which is not a share from 0 to 1)"),
        ("conv3x3,one,4,8,0.5,fp32,0.9", "has unexpected content"),
    ],
)
def test_impossible_numbers_are_a_one_line_error(tmp_path, row, complaint):
    path = written(tmp_path / "long_range.csv", "conv3x3,1,8,8,0.5,fp32,0.9", row)
    with pytest.raises(FileError, match=re.escape(complaint)):
        read_long_range(path)


def test_a_missing_column_is_a_one_line_error(tmp_path):
    path = written(tmp_path / "long_range.csv", "conv3x3,1,4,8,0.5,fp32,0.9")
    with pytest.raises(FileError, match="lacks 'commit'"):
        read_long_range(path, ("commit",))
