"""The page's JavaScript, run in Node without a browser, computes the attention maps and logits of PyTorch."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from page_runs import own_page, run_folders

from attnconv.analysis.conv_to_attention import ConvolutionAsAttention
from attnconv.analysis.heads import DECIMALS, attention_mixers, mixer_inputs
from attnconv.mixers.encodings import QuadraticEncoding
from attnconv.mixers.positional import PositionalAttention
from attnconv.report.page.images import first_of_each_class, read_images
from attnconv.runs.load import load
from conftest import REPOSITORY

HERE = Path(__file__).parent
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NODE is None, reason="needs node: apt-get install nodejs"),
]

POSITION = (
    "quadratic", "non-isotropic", "learned", "sinusoidal", "distance", "radial", "relu", "sigmoid", "16 heads",
    "pruned",
)  # fmt: skip
CONTENT = ("content", "learned content", "four terms", "quadratic content")


@pytest.fixture(scope="module")
def computed():
    """The results from Node, by kind of attention."""
    shown = subprocess.run([str(NODE), HERE / "arithmetic.mjs", own_page()], capture_output=True, text=True, check=True)
    return dict(zip(run_folders(), json.loads(shown.stdout), strict=True))


def as_in_the_page(trained, maps):
    """Round the weights as on the page: everything but encodings to float16.

    Maps of Gaussian heads are drawn from heads.jsonl and have its decimals. Logits, and heads that depend on content,
    are computed from the weights.
    """
    sees_content = any(name.endswith("query.weight") for name, _ in trained.model.named_parameters())
    for name, parameter in trained.model.named_parameters():
        if maps and name.endswith((".centers", ".spreads")) and not sees_content:
            parameter.data = parameter.data.double().round(decimals=DECIMALS).float()
        elif "encoding." not in name:
            parameter.data = parameter.data.half().float()
    return trained


@pytest.mark.parametrize("kind", [*POSITION, *CONTENT])
def test_attention_maps_match_pytorch_at_every_query_pixel(computed, kind):
    trained = as_in_the_page(load(run_folders()[kind]), maps=True)
    image = next(trained.data.test.batches(len(trained.data.test)))[0]
    first = first_of_each_class(trained.data, "arrays").places[:1]
    inputs = mixer_inputs(trained.model, image[first])
    assert computed[kind]["shown"] == ("content" if kind in CONTENT else "position")
    assert len(computed[kind]["maps"]) == len(inputs) == 2
    for mixer, x, maps in zip(attention_mixers(trained.model), inputs, computed[kind]["maps"], strict=True):
        expected = mixer.attention_probs(4, 4, x)[0].transpose(0, 1).detach()
        np.testing.assert_allclose(np.array(maps), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [*POSITION, *CONTENT])
def test_logits_and_predictions_match_pytorch(computed, kind):
    trained = as_in_the_page(load(run_folders()[kind]), maps=False)
    images = next(trained.data.test.batches(len(trained.data.test)))[0]
    with torch.no_grad():
        expected = trained.model(images[first_of_each_class(trained.data, "arrays").places]).numpy()
    logits = np.array(computed[kind]["logits"])
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert (logits.argmax(1) == expected.argmax(1)).all()


def test_the_published_page_computes_the_logits_of_the_committed_weights():
    page = REPOSITORY / "docs/index.html"
    command = [str(NODE), HERE / "arithmetic.mjs", page, "20"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    live = [found for found in json.loads(shown.stdout) if found["logits"]]
    assert live
    kept = read_images(REPOSITORY / "results/test_images.npz")
    pixels, labels = kept.pixels[:20], kept.labels[:20]
    for found in live:
        trained = load(found["run"])
        with torch.no_grad():
            expected = trained.model(trained.preprocessing.normalize(torch.from_numpy(pixels))).numpy()
        logits = np.array(found["logits"])
        np.testing.assert_allclose(logits, expected, atol=1e-2)
        assert (logits.argmax(1) == expected.argmax(1)).all()
        assert (logits.argmax(1) == labels).mean() > 0.5


def test_unsupported_models_show_the_recorded_attention_maps(computed):
    maps = np.load(run_folders()["gated"] / "attention_maps.npy").astype(float)
    assert computed["gated"]["shown"] == "center"
    assert computed["gated"]["epochs"] == [2], "the maps are those of the end"
    assert computed["quadratic"]["epochs"] == [0, 1, 2]
    shown = np.array(computed["gated"]["maps"])[:, 0].reshape(maps.shape)
    np.testing.assert_array_equal(shown, maps)
    assert computed["gated"]["logits"] is None
    assert computed["resnet"] == computed["resnet"] | {"shown": None, "maps": [], "logits": None}


@pytest.mark.parametrize("alpha", [0.5, 2.0, 46.0, 104.0])
def test_theorem_demo_matches_pytorch(alpha):
    draw = np.random.default_rng(0)
    image, weights = torch.from_numpy(draw.random((1, 1, 9, 7), np.float32)), draw.normal(size=9).astype(np.float32)
    convolution = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    convolution.weight.data = torch.from_numpy(weights).reshape(1, 1, 3, 3)
    taps = [[row, column] for row in (-1, 0, 1) for column in (-1, 0, 1)]
    moved = [[row + 0.2, column - 0.3] for row, column in taps]
    about = {"image": image.flatten().tolist(), "height": 9, "width": 7, "weights": weights.tolist(), "alpha": alpha}
    settings = [about | {"centers": taps, "padded": True}, about | {"centers": moved, "padded": False}]
    command = [str(NODE), str(HERE / "theorem.mjs")]
    shown = subprocess.run(command, input=json.dumps(settings), capture_output=True, text=True, check=True)
    padded, alone = json.loads(shown.stdout)

    with torch.no_grad():
        expected = ConvolutionAsAttention(convolution, alpha)(image).flatten()
        np.testing.assert_allclose(padded["attention"], expected, atol=1e-6)
        np.testing.assert_allclose(padded["convolution"], convolution(image).flatten(), atol=1e-6)
        layer = PositionalAttention(1, 9, (9, 7), QuadraticEncoding)
        layer.encoding.centers.copy_(torch.tensor(moved))
        layer.encoding.spreads.fill_((2 * alpha) ** 0.5)
        layer.value.weight.copy_(torch.from_numpy(weights)[None])
        layer.value.bias.zero_()
        np.testing.assert_allclose(alone["attention"], layer(image.permute(0, 2, 3, 1)).flatten(), atol=1e-5)
    if alpha == 104:
        assert padded["attention"] == padded["convolution"], "from alpha = 104 on nothing is left of other pixels"
