"""An entry of CPU-10 trains for its time, on its images, and reports what happened."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from attnconv.bench import cpu10
from attnconv.bench.peers import Peer, cosine
from attnconv.config import compose
from attnconv.data.dataset import load_dataset
from attnconv.errors import UserError
from conftest import write_arrays

pytestmark = pytest.mark.slow


def linear(split):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))


def flat_sgd(network):
    return torch.optim.SGD([{"params": network[1].weight}, {"params": network[1].bias, "until": 0.5}], 0.01)


PEER = Peer("attention", "a test", linear, flat_sgd, cosine(0.0), batch_size=8)
PEER_DATA = compose(["logger=none", *PEER.data]).data


@pytest.fixture
def data(tmp_path):
    write_arrays(tmp_path / "arrays", train=80)
    config = compose(["data=arrays", f"data.root={tmp_path}/arrays", "data.holdout=0.1", "logger=none"])
    return load_dataset(config.data, torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch):
    """Make every step of training take one second."""
    now = iter(range(10**6))
    monkeypatch.setattr(cpu10.time, "perf_counter", lambda: next(now))


def test_a_peer_trains_until_another_step_would_not_fit(data, clock):
    found = cpu10.train_for(PEER, linear(data.train), data, seed=0, seconds=20.5)
    assert found["train_seconds"] == 20
    assert found["images"] == 20 * 8
    assert found["epochs"] == 160 / 72
    assert [seconds for seconds, _ in found["curve"]] == [5, 9, 13, 17, 20]


def test_a_peer_learns_and_its_rate_follows_the_clock(data, clock, monkeypatch):
    rates = []
    step = cpu10._step

    def watched(network, optimizer, *rest):
        step(network, optimizer, *rest)
        rates.append([group["lr"] for group in optimizer.param_groups])

    monkeypatch.setattr(cpu10, "_step", watched)
    torch.manual_seed(0)
    found = cpu10.train_for(PEER, linear(data.train), data, seed=0, seconds=100)
    assert found["curve"][-1][1] == 1  # noise around one color per class
    assert [first for first, _ in rates] == pytest.approx([0.01 * cosine(0.0)(step / 100) for step in range(100)])
    assert [second > 0 for _, second in rates] == [True] * 50 + [False] * 50


def test_a_pass_shows_every_image_at_most_once(data):
    batches = cpu10._batches(data, compose(["logger=none", *PEER.data]).data, 0, PEER.batch_size)
    shown = torch.cat([next(batches)[1] for _ in range(9)])
    assert shown.bincount().tolist() == data.train.labels.bincount().tolist()


def test_a_peer_takes_no_number_of_epochs():
    with pytest.raises(UserError, match="--epochs=3: airbench94 trains until the clock stops it"):
        cpu10.enter("airbench94", 0, 10, 3)


def test_an_unmeasured_precision_needs_a_number_of_epochs(monkeypatch):
    monkeypatch.setattr(cpu10, "choose_precision", lambda name, device: "bf16")
    with pytest.raises(UserError, match="in bf16 has not been measured: set --epochs"):
        cpu10.OURS["conv3x3"].config(0, None)
    assert cpu10.OURS["conv3x3"].config(0, 3).epochs == 3


def test_an_entry_of_ours_is_a_run_and_a_line(command, tmp_path, monkeypatch):
    write_arrays(tmp_path / "arrays", train=400)
    monkeypatch.chdir(tmp_path)
    tiny = ("model=conv3x3", "data=arrays", f"data.root={tmp_path}/arrays", "scale.patch=1", "scale.layers=1")
    monkeypatch.setitem(cpu10.OURS, "conv3x3", cpu10.Entry("convolution", tiny, {}))
    finished = command("scripts/cpu10.py", "conv3x3", "--seed", 2, "--epochs", 3, "--json", tmp_path / "lines.jsonl")
    assert finished.returncode == 0, finished.stderr
    line = json.loads((tmp_path / "lines.jsonl").read_text())
    (folder,) = (tmp_path / "outputs").glob("**/seed2")
    result = json.loads((folder / "result.json").read_text())
    assert {key: line[key] for key in ("test_acc", "train_seconds", "parameters")} == {
        key: result[key] for key in ("test_acc", "train_seconds", "parameters")
    }
    assert (line["entry"], line["seed"], line["epochs"], line["limit_seconds"]) == ("conv3x3", 2, 3, 600)
    assert line["images"] == 3 * 392
    assert len(line["curve"]) == 3
    assert line["curve"][-1][0] == pytest.approx(result["train_seconds"])
    reached = [seconds for seconds, accuracy in line["curve"] if accuracy >= 0.8]
    assert line["seconds_to_80"] == (reached[0] if reached else None)
    assert f"{result['test_acc']:.2%} on test" in finished.stdout


def test_a_peer_is_scored_on_held_out_images_until_its_end(data, clock, monkeypatch):
    seen, evaluate = [], cpu10.evaluate

    def watched(network, split, *rest):
        seen.append(split)
        return evaluate(network, split, *rest)

    monkeypatch.setattr(cpu10, "evaluate", watched)
    cpu10.train_for(PEER, linear(data.train), data, seed=0, seconds=20.5)
    assert len(seen) == 5
    assert all(split is data.validation for split in seen)


def test_a_peer_smooths_its_labels(data):
    network, (images, labels) = linear(data.train), next(cpu10._batches(data, PEER_DATA, 0, PEER.batch_size))
    expected = nn.functional.cross_entropy(network(images), labels, label_smoothing=0.5)
    (gradient,) = torch.autograd.grad(expected, network[1].bias)
    optimizer = flat_sgd(network)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    cpu10._step(network, optimizer, images, labels, dataclasses.replace(PEER, label_smoothing=0.5), 0.1)
    torch.testing.assert_close(network[1].bias.grad, gradient)


def test_seeds_of_a_peer_show_other_images_and_its_recipe_decides_on_flips(data):
    def shown(seed, **changes):
        return next(cpu10._batches(data, dataclasses.replace(PEER_DATA, **changes), seed, PEER.batch_size))[0]

    assert torch.equal(shown(0), shown(0))
    assert not torch.equal(shown(0), shown(1))
    assert not torch.equal(shown(0, flip=True), shown(0, flip=False))


def test_the_average_of_weights_is_updated_in_training_and_kept_at_its_end(data, clock, monkeypatch):
    calls = []
    monkeypatch.setattr(cpu10.Lookahead, "step", lambda self, progress: calls.append("step"))
    monkeypatch.setattr(cpu10.Lookahead, "end", lambda self: calls.append("end"))
    peer = dataclasses.replace(PEER, lookahead=True)
    cpu10.train_for(peer, linear(data.train), data, seed=0, seconds=10.5)
    assert calls == ["step"] * 10 + ["end"]
