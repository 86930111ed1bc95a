"""preprocessing.json, which a network needs in order to read images without its data set."""

import json

import pytest

import attnconv
from attnconv.data.preprocessing import read_preprocessing
from attnconv.files import FileError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", ["a", "b", "c"]),
        ("mean", [None] * 3),
        ("mean", [0.5]),
        ("mean", [float("nan")] * 3),
        ("std", [0.2, 0.2, 0]),
        ("std", 0.2),
        ("image_shape", ["3", 8, 8]),
        ("image_shape", [3, 0, 8]),
        ("class_names", "abcd"),
        ("class_names", [1, 2, 3, 4]),
    ],
)
def test_a_damaged_preprocessing_is_a_one_line_error(tmp_path, key, value):
    good = {"image_shape": [3, 8, 8], "class_names": ["a", "b", "c", "d"], "mean": [0, 0.5, 0.5], "std": [1, 0.2, 0.2]}
    (tmp_path / "preprocessing.json").write_text(json.dumps(good))
    config = attnconv.compose(["data.root=nowhere"]).data
    assert read_preprocessing(tmp_path, config).std == (1, 0.2, 0.2)
    (tmp_path / "preprocessing.json").write_text(json.dumps(good | {key: value}))
    with pytest.raises(FileError, match=r"preprocessing\.json has unexpected content \("):
        read_preprocessing(tmp_path, config)
