"""preprocessing.json, which a network needs in order to read images without its data set."""

import json

import pytest
import torch

import attnconv
from attnconv.data.dataset import class_names
from attnconv.data.synthetic_pairs import draw_scene, make_pairs
from attnconv.files import FileError
from attnconv.runs.load import read_preprocessing


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


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("agreement", lambda scene, i: "same" if (scene.colors[i, 0] == scene.colors[i, 1]).all() else "different"),
        ("texture", lambda scene, i: "vertical" if scene.vertical[i] else "horizontal"),
    ],
)
def test_the_names_of_classes_say_what_the_images_show(task, name):
    scene = draw_scene(20, 8, 0, 0, split=0)
    labels = make_pairs(task, 8, 0, 20, 20, 0, torch.device("cpu"))["train_labels"]
    names = class_names(attnconv.compose(["data=pairs", f"data.task={task}"]).data, 2)
    assert [names[label] for label in labels] == [name(scene, i) for i in range(20)]
