"""The public API: loading networks, prediction, evaluation and attention maps, with one-line errors."""

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import ListConfig
from PIL import Image

import attnconv
from attnconv.analysis.attention import LayerAttention
from attnconv.analysis.evaluation import Evaluation
from attnconv.config import checked
from attnconv.errors import ConfigError, DataError, RunFolderError, UserError
from attnconv.models.weight_files import read_weights
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import find_run, read_preprocessing
from attnconv.runs.trained import _token
from conftest import TINY_SCALE, script, write_arrays

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a finished run on arrays, whose data set has been moved away."""
    root = tmp_path_factory.mktemp("api")
    write_arrays(root / "arrays")
    overrides = ["data=arrays", f"data.root={root}/arrays", f"output={root}/outputs", "logger=none", "device=cpu"]
    config = attnconv.compose([*TINY_SCALE, *overrides, "model=sa_learned_content", "epochs=1"])
    result = attnconv.run(config)
    (root / "arrays").rename(root / "moved")
    assert result["status"] == "done"
    return run_folder_path(config)


@pytest.fixture
def network(folder):
    return attnconv.load(folder)


@pytest.fixture
def moved(folder):
    return folder.parents[5] / "moved"


def test_mode_and_settings_of_the_caller_change_no_prediction(folder):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    network = attnconv.load(folder)
    expected, maps = network.predict_proba(images), network.attention(images[0], layer=1)
    network.model.train()
    assert np.array_equal(network.predict_proba(images), expected)
    assert np.array_equal(network.attention(images[0], layer=1), maps)
    assert network.model.training, "the caller's choice"
    for context in (torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.device("meta")):
        with context:
            assert np.array_equal(attnconv.load(folder).predict_proba(images), expected)
            assert np.array_equal(network.attention(images[0], layer=1), maps)


def test_threads_predict_one_after_the_other(network):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    expected = network.predict_proba(images)
    network.model.train()
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(network.predict_proba, [images] * 60))
        assert torch.get_default_dtype() == torch.float64, "the caller's choice"
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(np.array_equal(probabilities, expected) for probabilities in found)
    assert network.model.training, "the caller's choice"


def test_attnconv_run_is_the_function_not_the_module():
    from attnconv.run import run

    assert attnconv.run is run


@pytest.mark.parametrize("given", ["seed=1", [1], {"seed": 1}, 5, [None]])
def test_compose_takes_a_list_of_texts(given):
    with pytest.raises(ConfigError, match="compose takes a list of strings"):
        attnconv.compose(given)


def test_compose_reads_its_settings_as_a_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = attnconv.compose(setting for setting in ("seed=1", "output=~/runs"))
    assert (config.seed, config.output) == (1, f"{tmp_path}/runs")
    for wrong in ("seed=1,2", "retry_failed=true", "sead=1"):
        with pytest.raises(ConfigError):
            attnconv.compose([wrong])


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("epochs", 0, "epochs"),
        ("epochs", "many", "epochs must be a whole number"),
        ("epoch", 3, "unknown setting 'epoch'; did you mean 'epochs'"),
        ("recipe.optimizer", "lion", "recipe.optimizer=lion is not one of sgd"),
        ("recipe.batch_size", 0, "recipe.batch_size"),
        ("data.fraction", 2.0, "data.fraction"),
        ("output", Path("outputs"), "output must be text, .* not PosixPath: use 'outputs'"),
        ("name", "a/../b", "name"),
        ("model", None, "model must not be null"),
        ("recipe.lr", np.ones(1), "recipe.lr must be text, a number, .* not ndarray"),
        ("model", {"name": "a", "width": {1, 2}}, "model.width must be text, a number, .* not set"),
        ("model", {"name": True, "width": 8}, "model.name must be text, not true"),
        ("model", {"name": ["a"], "width": 8}, "model.name must be text, not .'a'."),
    ],
)
def test_an_edited_configuration_is_checked_before_it_runs(tiny, tmp_path, key, value, complaint):
    config = tiny()
    part = config
    *parents, leaf = key.split(".")
    for name in parents:
        part = getattr(part, name)
    setattr(part, leaf, value)
    with pytest.raises(ConfigError, match=complaint):
        attnconv.run(config)
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(ConfigError, match="this is a dict, not a configuration"):
        attnconv.run({"seed": 1})


def test_numbers_of_numpy_and_tuples_are_those_of_a_command_line(tiny):
    edited, expected = tiny(), tiny("recipe.lr=0.1", "recipe.sizes=[0.5]", "seed=3")
    edited.seed, edited.recipe.lr, edited.recipe.sizes = np.int64(3), np.float64(0.1), (0.5,)
    edited.model |= {
        "name": 2024,
        "kernel_size": np.int8(3),
        "more": {"of": (1, np.float64(2), np.bool_(True), ListConfig([1]))},
    }
    expected.model |= {"name": "2024", "kernel_size": 3, "more": {"of": [1, 2.0, True, [1]]}}
    assert repr(checked(edited)) == repr(expected)


def test_load_takes_texts_for_paths(folder):
    assert attnconv.load(folder, weights=f"{folder}/weights.safetensors", trusted="mine").folder == folder
    with pytest.raises(RunFolderError, match="by its folder or its name"):
        attnconv.load(None)


def test_predict_works_without_the_data_set(network, folder, moved, tmp_path):
    images = np.load(moved / "test_images.npy")
    predictions = np.load(folder / "predictions.npy")
    assert network.class_names == ("0", "1", "2", "3")
    assert network.predict(images).tolist() == [str(label) for label in predictions]
    assert network.predict(images[0]).shape == (1,)
    assert np.allclose(network.predict_proba(images).sum(axis=1), 1)
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    same = [tmp_path / "one.png", str(tmp_path / "one.png"), Image.fromarray(images[0]), torch.from_numpy(images[:1])]
    for one in same:
        assert np.array_equal(network.predict_proba(one), network.predict_proba(images[:1]))
    assert np.array_equal(network.predict_proba(same[:3]), network.predict_proba(images[[0, 0, 0]]))


def test_evaluate_accepts_a_folder_or_arrays(network, moved, folder):
    own = attnconv.load(str(folder), root=str(moved)).evaluate()
    images, labels = (np.load(moved / f"test_{kind}.npy") for kind in ("images", "labels"))
    predictions = np.load(folder / "predictions.npy")
    assert own.accuracy == (predictions == labels).mean()
    assert own.confusion[1, 2] == ((labels == 1) & (predictions == 2)).sum()
    assert own.class_accuracies["1"] == (predictions == labels)[labels == 1].mean()
    assert str(network.evaluate(moved)) == str(own) == str(network.evaluate((images, labels)))
    half = network.evaluate((images[:10, :, ::-1], labels[:10]))
    assert half.images == 10
    with pytest.raises(UserError, match="arrays"):
        network.evaluate()


def test_attention_returns_one_map_per_head(network, moved):
    image = np.load(moved / "test_images.npy")[0]
    every = network.attention(image, layer=2)
    assert every.shape == (3, 2, 2, 2, 2)
    assert np.allclose(every.sum(axis=(3, 4)), 1, atol=1e-5)
    assert np.array_equal(network.attention(image, layer=2, query=(1, 0)), every[:, 1, 0])
    rows = network.heads(np.load(moved / "test_images.npy"))
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in (1, 2) for head in (1, 2, 3)]
    assert all(0 <= row["entropy"] <= np.log(4) + 1e-6 for row in rows)
    for arguments, complaint in (
        ({"layer": 0}, r"layer must be in 1\.\.2, not 0"),
        ({"layer": 1, "query": (2, 0)}, "outside the map, which has 2x2 positions"),
        ({"layer": 1, "query": "class"}, "no class token"),
    ):
        with pytest.raises(UserError, match=complaint):
            network.attention(image, **arguments)


def test_positional_heads_need_no_images(tiny, arrays):
    config = tiny("model=sa_quadratic", "epochs=1")
    attnconv.run(config)
    shutil.rmtree(arrays)
    assert len(attnconv.load(run_folder_path(config)).heads()) == 6


def test_heads_refuses_more_images_than_fit_into_memory(network):
    with pytest.raises(UserError, match=r"heads\(\) averages at most 1,000 images, not 1,001"):
        network.heads(np.zeros((1_001, 8, 8, 3), np.uint8))


def test_notebooks_complete_the_public_names():
    assert {"compose", "load", "run", "__version__"} <= set(dir(attnconv))


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((1, 9, 8, 3), np.uint8), "image 0 is 8x9 RGB, and the network takes 8x8 RGB; resize=True converts"),
        (np.zeros((1, 8, 8, 1), np.uint8), "image 0 is 8x8 L, and the network takes 8x8 RGB"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"; put channels last: images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((8, 8), np.uint8), r"images must be uint8 \(N, 8, 8, 3\) or one \(8, 8, 3\), not \(8, 8\)"),
        (np.zeros((1, 8, 8, 3)), "not float64 .*; scale values to 0..255 and convert them"),
        (np.zeros((0, 8, 8, 3), np.uint8), "not"),
        (Image.new("RGBA", (8, 8)), "the image is 8x8 RGBA, and the network takes 8x8 RGB"),
        (Image.new("I;16", (8, 8)), "more than 8 bits per channel"),
        ([], "there are no images"),
        ("nowhere.png", "nowhere.png does not exist"),
        ("", "the path of an image is empty"),
        ([Image.new("RGB", (8, 8)), ""], "the path of an image is empty"),
    ],
)  # fmt: skip
def test_invalid_images_are_one_line_errors(network, images, complaint):
    with pytest.raises(UserError, match=complaint) as refused:
        network.predict(images)
    assert "\n" not in str(refused.value)


def test_images_are_turned_upright_and_tensors_taken_from_anywhere(network, moved, tmp_path):
    images = np.load(moved / "test_images.npy")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(images[0]).save(tmp_path / "turned.png", exif=exif)
    opened = network.predict_proba(Image.open(tmp_path / "turned.png"))
    assert np.array_equal(opened, network.predict_proba(tmp_path / "turned.png"))
    assert np.array_equal(opened, network.predict_proba(images[0][::-1, ::-1]))
    mixed = network.predict_proba([Image.open(tmp_path / "turned.png"), images[1]])
    assert np.array_equal(mixed, network.predict_proba([images[0][::-1, ::-1], images[1]]))
    with pytest.raises(DataError, match="a list of arrays has an image of mode P; convert it"):
        network.predict_proba([Image.new("P", (8, 8)), images[1]])
    several = [torch.from_numpy(image) for image in images[:3]]
    assert np.array_equal(network.predict_proba(several), network.predict_proba(images[:3]))
    with pytest.raises(DataError, match="not images of one size"):
        network.predict([images[0], images[1][:4]])
    for layer, query in ((1.5, None), (1, 3), (1, (1, 2, 3)), (1, (1.5, 1))):
        with pytest.raises(ConfigError):
            network.attention(images[0], layer, query)


def test_one_image_is_evaluated_however_it_is_given(network, moved, tmp_path):
    images, labels = (np.load(moved / f"test_{kind}.npy") for kind in ("images", "labels"))
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    expected = str(network.evaluate((images[:1], labels[:1])))
    for one in (str(tmp_path / "one.png"), Image.open(tmp_path / "one.png"), images[0], [images[0]]):
        assert str(network.evaluate((one, [int(labels[0])]))) == expected
    for wrong in ([0] * 8, torch.zeros(1, dtype=torch.int64, device="meta"), torch.zeros(1, requires_grad=True)):
        with pytest.raises(DataError, match="labels must be"):
            network.evaluate((images[0], wrong))
    with pytest.raises(DataError, match=f"labels span {2**63}..{2**63}"):
        network.evaluate((images[0], np.array([2**63], np.uint64)))
    with pytest.raises(DataError, match="the path of the data is empty"):
        network.evaluate("")
    with pytest.raises(DataError, match="x does not exist"):
        network.evaluate(5000 * "x")


def test_resize_converts_images_of_other_sizes_and_modes(network, tmp_path):
    for image in (Image.new("RGBA", (20, 9)), Image.new("P", (8, 8)), np.zeros((2, 5, 5, 1), np.uint8)):
        assert set(network.predict(image, resize=True)) <= set(network.class_names)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"cut.png is a PNG image that is damaged"):
        network.predict(tmp_path / "cut.png", resize=True)
    with pytest.raises(UserError, match=r"text.png is not an image: it is text, beginning 'no image'"):
        network.predict(tmp_path / "text.png", resize=True)


def test_networks_with_committed_weights_are_found_by_name(folder, tmp_path):
    run = "table1/sa_learned_content/mini-modern/frac1/seed0"
    for name in ("no weights yet", run):
        if name == run:
            (tmp_path / "weights" / run).parent.mkdir(parents=True)
            shutil.copy(folder / "weights.safetensors", tmp_path / "weights" / f"{run}.safetensors")
            shutil.copytree(
                folder, tmp_path / "runs" / run, ignore=shutil.ignore_patterns("*.safetensors", "checkpoints")
            )
            assert find_run("sa_learned_content", tmp_path) == find_run(run, tmp_path) == tmp_path / "runs" / run
            network = attnconv.load(tmp_path / "runs" / run)
            (first, *_) = read_weights(folder / "weights.safetensors").items()
            assert torch.equal(network.model.state_dict()[first[0]], first[1])
        with pytest.raises(UserError, match="sa_learned_contents is neither a run folder") as refused:
            find_run("sa_learned_contents", tmp_path)
        hint = "did you mean 'sa_learned_content'" if name == run else "results/weights is empty"
        assert hint in str(refused.value)
        assert "python train.py model=NAME" in str(refused.value)


def test_runs_without_preprocessing_json_fall_back_to_the_data_set(folder, moved, tmp_path):
    older = shutil.copytree(folder, tmp_path / "older")
    kept = (older / "preprocessing.json").read_bytes()
    (older / "preprocessing.json").unlink()
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        attnconv.load(older)
    assert attnconv.load(older, root=str(moved)).preprocessing.encode() == kept
    cifar10 = attnconv.compose(["data.root=nowhere"])
    found = read_preprocessing(tmp_path, cifar10.data)
    assert (found.image_shape, found.class_names[3], found.mean[0]) == ((3, 32, 32), "cat", 0.4914)


@pytest.fixture
def shell(monkeypatch, capsys):
    """Return a function that runs a script in this process and returns its exit code, stdout and stderr."""
    return functools.partial(script, monkeypatch, capsys)


def test_evaluate_and_predict_commands(shell, network, folder, moved, tmp_path):
    assert shell("evaluate", folder, "--data", moved)[:2] == (0, f"{network.evaluate(moved)}\n")
    Image.fromarray(np.load(moved / "test_images.npy")[0]).save(tmp_path / "one.png")
    code, out, _ = shell("predict", folder, tmp_path / "one.png", "--top", 1)
    (probabilities,) = network.predict_proba(tmp_path / "one.png")
    assert (code, out) == (0, f"{tmp_path}/one.png  {probabilities.argmax()} {probabilities.max():.1%}\n")
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    assert shell("predict", "--resize", folder, tmp_path / "large.png")[0] == 0


def test_evaluate_and_predict_commands_report_one_line_errors(shell, folder, tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    np.save(tmp_path / "half/test_labels.npy", np.zeros(3, int))
    for arguments, complaint in (
        (("predict", folder, tmp_path / "large.png"), "large.png is 9x9 L, and the network takes 8x8 RGB"),
        (("predict", folder, tmp_path / "larg.png"), f"larg.png does not exist; {tmp_path} has large.png"),
        (("predict", tmp_path, tmp_path / "large.png"), "is not a run folder: no config.yaml"),
        (("predict", folder / "config.yaml", tmp_path / "large.png"), "is a file, not a run folder"),
        (("evaluate", "sa_quadratik"), "sa_quadratik is neither a run folder nor a network"),
        (("evaluate", folder, "--data", tmp_path / "empty"), "empty has no test_images.npy and test_labels.npy"),
        (("evaluate", folder, "--data", tmp_path / "none"), "does not exist"),
        (("evaluate", folder, "--data", tmp_path / "half"), "half has test_labels.npy, but no test_images.npy"),
        (("evaluate", ""), "argument RUN: the path is empty"),
    ):
        code, out, err = shell(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ")
        assert complaint in err


@pytest.mark.parametrize("prefix", [0, 1])
def test_queries_are_rows_before_columns_on_oblong_maps(prefix):
    layer = LayerAttention(torch.zeros(1, 1, 10 + prefix, 10 + prefix), (2, 5), prefix)
    assert [_token(query, layer) - prefix for query in ((0, 4), (1, 0), (1, 2))] == [4, 5, 7]


def test_the_most_often_confused_class_is_that_of_the_predictions():
    confusion = np.array([[1, 2, 0], [0, 3, 0], [5, 0, 1]])
    _, *lines = str(Evaluation(0.0, confusion, ("a", "b", "c"))).splitlines()
    assert lines[0].endswith("most often confused with b (2)")
    assert "confused" not in lines[1]
    assert lines[2].endswith("most often confused with a (5)")
