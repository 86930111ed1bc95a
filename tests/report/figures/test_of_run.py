"""The figures of a single run, for several kinds of models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnconv.analysis.attention import attention_layers
from attnconv.analysis.heads import HeadWatcher
from attnconv.data.dataset import Preprocessing, load_dataset, normalize
from attnconv.report.examined import KEYS, PROBE
from attnconv.report.figures import content, maps
from attnconv.report.figures.content import image_maps
from attnconv.report.figures.data import ImageMaps, Maps
from attnconv.report.figures.of_run import figures_of_run
from attnconv.report.figures.style import image_bytes
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import build_untrained, load
from attnconv.runs.trained import Trained
from conftest import write_arrays

pytestmark = pytest.mark.slow

ATTENTION = {"accuracy", "attention_maps"}  # of small maps: a large one is also shown around the query
GAUSSIAN = ATTENTION | {"centers", "centers_as_printed", "centers_in_training"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=sa_quadratic_generalized", "scale.layers=1", "scale.heads=4"], GAUSSIAN),
        (["model=resnet10"], {"accuracy"}),
    ],
)
def test_each_kind_of_model_gets_its_figures(tiny, capsys, overrides, expected):
    config = tiny(*overrides)
    run(config)
    folder = run_folder_path(config)
    (folder / "probe.json").write_text(json.dumps({key: [] for key in KEYS[PROBE]} | {"dirty": True}))
    figures_of_run(folder)
    assert "probe.json was made with uncommitted changes" in capsys.readouterr().out
    for kind in ("png", "pdf"):
        assert {path.stem for path in (folder / "figures").glob(f"*.{kind}")} == expected
    assert {Image.open(path).width for path in (folder / "figures").glob("*.png")} == {1100}


def test_attention_in_images_needs_the_data_set(tiny, tmp_path, capsys):
    config = tiny("model=sa_learned_content", "scale.layers=1", "epochs=1")
    run(config)
    elsewhere = (tmp_path / "arrays").rename(tmp_path / "elsewhere")
    figures_of_run(run_folder_path(config), tmp_path / "drawn")
    assert {path.stem for path in (tmp_path / "drawn").iterdir()} == ATTENTION
    assert "attention_in_images: skipped: " in capsys.readouterr().out

    trained = load(run_folder_path(config), str(elsewhere))
    found = image_maps(trained, "a run")
    assert found.images.shape == (3, 8, 8, 3)
    assert found.probs.shape == (3, 1, 3, 2, 2)
    assert found.queries.tolist() == [[1, 1]] * 3
    np.testing.assert_allclose(found.probs.sum(axis=(3, 4)), 1, rtol=1e-5)
    assert not np.allclose(found.probs[0], found.probs[1]), "attention depends on the image"


def test_names_with_dollar_signs_are_not_formulas():
    for text in ("a$_$b", "$", r"\$_$", "$x$"):
        figure = maps.whole(Maps(text, np.ones((1, 1, 2, 2))))
        (title,) = (part for part in figure.texts if part.get_text())
        image_bytes(figure)
        assert title._preprocess_math(title.get_text()) == (text, False)


def test_attention_in_images_of_layers_with_different_numbers_of_heads(tiny):
    config = tiny("model=sa_learned_content")
    data = load_dataset(config.data, torch.device("cpu"))
    model = build_untrained(config, data)
    model.layers[1].mixer = build_untrained(tiny("model=sa_learned_content", "scale.heads=2"), data).layers[1].mixer
    trained = Trained(Path(), config, Preprocessing.of(config.data, data), model)
    trained.data = data
    found = image_maps(trained, "a run")
    assert np.isnan(found.probs).all(axis=(0, 3, 4)).tolist() == [[False] * 3, [False, False, True]]
    assert image_bytes(maps.of_images(found))


def test_heads_are_sorted_by_their_largest_probability():
    probs = np.zeros((1, 3, 2, 2), np.float16)
    probs[0, :, 0, 0] = 0.25, 0.75, np.nan
    assert maps.in_order(probs)[0, :2, 0, 0].tolist() == [0.75, 0.25], "heads that a layer lacks come last"


def test_zoomed_figure_of_sixteen_heads_on_a_small_rectangular_map():
    probs = np.random.default_rng(0).dirichlet(np.ones(20), size=(2, 16)).reshape(2, 16, 4, 5)
    figure = maps.zoomed(Maps("a run", probs))
    assert len(figure.axes) == 32
    assert figure.axes[0].images[0].get_array().shape == (4, 5)


def test_zoomed_figure_of_a_large_map_keeps_the_scale_of_the_whole_map():
    probs = np.full((1, 2, 16, 16), 0.001)
    probs[0, 0, 0, 0], probs[0, 1, 8, 8] = 0.6, 0.3
    far, near = maps.zoomed(Maps("a run", probs)).axes
    assert far.images[0].get_array().shape == near.images[0].get_array().shape == (7, 7)
    assert [axis.get_xlabel() for axis in (far, near)] == [".60", ".30"], "also if the largest is not in the view"
    assert [axis.images[0].get_clim()[1] for axis in (far, near)] == [0.6, 0.3]


def test_many_heads_are_tiles_of_one_image():
    probs = np.full((3, 50, 4, 5), 0.05)
    probs[0, :, 3, 4], probs[1, 49] = 0.5, np.nan
    (axis,) = maps.whole(Maps("a run", probs)).axes
    image = axis.images[0].get_array()
    assert np.isfinite(image).sum() == 149 * 4 * 5
    np.testing.assert_allclose(image[:4, :5], np.where(probs[0, 0] == 0.5, 1, 0.1), err_msg="darkest at its largest")
    assert axis.lines[0].get_xydata()[:5].max(axis=0).tolist() == [2.5, 2.5], "the query is framed"
    assert np.isfinite(axis.lines[0].get_xdata()).sum() == 5 * 149
    assert [label.get_text() for label in axis.get_yticklabels()] == ["layer 1", "layer 2", "layer 3"]


def test_a_figure_of_too_many_heads_says_how_many_it_shows():
    figure = maps.whole(Maps("a run", np.full((1000, 17, 2, 2), 0.25, np.float16)))
    assert figure.get_size_inches()[1] < 50
    assert "a run: the first 17 of 17 heads in the first 65 of 1,000 layers" in figure.get_suptitle()
    figure = maps.of_images(ImageMaps("a run", np.zeros((1, 4, 4, 3)), np.zeros((1, 2)), np.ones((1, 1, 17, 2, 2))))
    assert figure.get_suptitle() == "a run: the first 16 of 17 heads"
    assert len(figure.axes) == 1 + 16


def test_the_query_is_framed_at_its_position():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    figure = maps.of_images(ImageMaps("a run", images, np.array([[1, 2]]), np.full((1, 1, 1, 4, 4), 1 / 16)))
    assert image_bytes(figure).startswith(b"\x89PNG")
    picture, drawn = (axis.lines[0].get_xydata() for axis in figure.axes)
    assert picture.min(axis=0).tolist() == [3.5, 1.5]
    assert picture.max(axis=0).tolist() == [5.5, 3.5]
    assert drawn.min(axis=0).tolist() == [1.5, 0.5]


def test_attention_in_images_is_that_of_the_marked_query(tiny, arrays, monkeypatch):
    write_arrays(arrays, side=8)
    config = tiny("model=sa_learned_content", "scale.layers=1", "scale.patch=2")
    data = load_dataset(config.data, torch.device("cpu"))
    model = build_untrained(config, data).eval()
    trained = Trained(Path(), config, Preprocessing.of(config.data, data), model)
    trained.data = data
    monkeypatch.setattr(content, "OTHERS", ((0, 0.0, 0.6), (1, 0.6, 0.0)))
    found = image_maps(trained, "a run")
    assert found.queries.tolist() == [[0, 2], [2, 0]]
    for index, (row, column) in enumerate(found.queries):
        shown = normalize(data.test.images[[index]], data.test.mean, data.test.std)
        (layer,) = attention_layers(model, shown)
        expected = layer.probs[0, :, row * 4 + column].unflatten(-1, (4, 4))
        np.testing.assert_allclose(found.probs[index, 0], expected.detach(), atol=1e-5)


@pytest.mark.draws
def test_heads_without_softmax_are_drawn_as_maps_because_they_are_not_gaussian(tiny):
    config = tiny("model=sa_quadratic", "scale.layers=1", "epochs=1", "model.mixer.normalizer=relu")
    run(config)
    figures_of_run(run_folder_path(config))
    assert {path.stem for path in (run_folder_path(config) / "figures").glob("*.png")} == ATTENTION
    watcher = HeadWatcher(load(run_folder_path(config)).model, "relu")
    picture = watcher.figure(1, np.full((1, 3, 2, 2), 0.25, np.float16))
    assert len(picture.axes) == 3, "a map for each head, not one panel of ellipses"
