"""Impossible numbers in the files about networks are errors that name the file, and are never published."""

import json
import re

import pytest

from attnconv.files import FileError
from attnconv.report.examined import CONVERSION, PROBE, read_calibration, read_examination, read_sweep
from conftest import REPOSITORY

RESULTS = REPOSITORY / "results"


def damaged(path, copy, change):
    """Write a copy of a .json file after `change(content)`."""
    content = json.loads(path.read_text())
    change(content)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(json.dumps(content))
    return copy


def some(file):
    return next(iter(sorted((RESULTS / "runs").rglob(file))))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("largest_difference", -1, "it has largest_difference -1, which is not a number of at least 0"),
        ("largest_difference", float("nan"), "found NaN instead of a number"),
        ("largest_logit", float("inf"), "found Infinity instead of a number"),
        ("images", -10_000, "it has images -10000, which is not a whole number of at least 1"),
        ("images", 10_000.7, "it has images 10000.7, which is not a whole number of at least 1"),
        ("predictions_changed", -5, "it has predictions_changed -5, which is not a whole number"),
        ("predictions_changed", 10**9, "it has 1000000000 changed predictions of"),
        ("attention_acc", 88.6, "it has attention_acc 88.6, which is not a share from 0 to 1"),
    ],
)
def test_impossible_numbers_of_a_conversion(tmp_path, key, value, complaint):
    path = damaged(some(CONVERSION), tmp_path / CONVERSION, lambda found: found.update({key: value}))
    with pytest.raises(FileError, match=re.escape(str(path)) + ".*" + re.escape(complaint)):
        read_examination(tmp_path, CONVERSION)


@pytest.mark.parametrize(
    ("part", "key", "value", "complaint"),
    [
        ("layers", "conv3", 7.5, "layer 1 has conv3 7.5, which is not a number of at most 1"),
        ("layers", "joint_residual", -3, "layer 1 has joint_residual -3, which is not a share"),
        ("heads", "radius_50", float("nan"), "found NaN instead of a number"),
        ("heads", "by_shift", 1.5, "layer 1 has by_shift 1.5, which is not a share"),
    ],
)
def test_impossible_numbers_of_a_probe(tmp_path, part, key, value, complaint):
    damaged(some(PROBE), tmp_path / PROBE, lambda found: found[part][0].update({key: value}))
    with pytest.raises(FileError, match=re.escape(complaint)):
        read_examination(tmp_path, PROBE)


@pytest.mark.parametrize(
    ("file", "read", "key", "value", "complaint"),
    [
        ("sweep.json", read_sweep, "images", 0, "has images 0, which is not a whole number of at least 1"),
        ("sweep.json", read_sweep, "logits_range", -1, "has logits_range -1, which is not a number of at least 0"),
        ("calibration.json", read_calibration, "conv3", float("nan"), "found NaN instead of a number"),
        ("calibration.json", read_calibration, "conv3", 3, "has conv3 3, which is not a number of at most 1"),
    ],
)
def test_impossible_numbers_of_the_theorem(tmp_path, file, read, key, value, complaint):
    def change(found):
        next(row for row in found["rows"] if "refused" not in row)[key] = value

    damaged(RESULTS / "theorem" / file, tmp_path / "theorem" / file, change)
    with pytest.raises(FileError, match=re.escape(complaint)):
        read(tmp_path)
