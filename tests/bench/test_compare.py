"""Benchmark measurements match known answers, and the baseline computes the same function as our network."""

import json
import math
import time

import pytest
import torch
from torch import nn

from attnconv.bench import compare
from attnconv.bench.compare import Bench, Case
from attnconv.bench.published import PerImage, published_loader, published_network
from attnconv.bench.timing import (
    Disagree,
    Spread,
    check_same,
    flops_of,
    growth_exponent,
    peak_bytes,
    ratios,
    take_turns,
)
from attnconv.config import compose
from attnconv.models.build import build_model

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SMALL = ["scale=mini", "scale.layers=2", "scale.heads=3", "scale.width=8", "scale.hidden=12", "logger=none"]


def pair(model, *overrides):
    """Our network and the published one, with equal weights, in float64."""
    config = compose([f"model={model}", *SMALL, "recipe=paper", *overrides])
    torch.manual_seed(0)
    ours = build_model(config.model, (3, 32, 32), 10).double()
    return ours, published_network(config, (3, 32, 32), 10, ours)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("overrides", [["scale.patch=4"], ["scale.patch=2"]])
@pytest.mark.parametrize("model", ["sa_quadratic", "sa_quadratic_generalized", "sa_learned", "sa_learned_content"])
def test_outputs_and_gradients_match_the_published_network(model, overrides, mode):
    networks = pair(model, *overrides)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    outputs, gradients = [], []
    for network in networks:
        network.train(mode == "train")
        torch.manual_seed(1)  # equal dropout masks: they are drawn in the same order, for tensors of the same size
        out = network(x)
        outputs.append(out.detach())
        out.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("model", ["sa_content", "sa_sinusoidal", "conv3x3", "bigbird"])
def test_models_not_in_the_paper_are_refused(model):
    with pytest.raises(ValueError, match="the paper has no"):
        pair(model)


def test_images_are_loaded_one_by_one_and_normalized():
    images = torch.arange(4 * 32 * 32 * 3, dtype=torch.uint8).view(4, 32, 32, 3).numpy()
    labels = torch.arange(4).numpy()
    one, label = PerImage(images, labels, [0.5] * 3, [0.25] * 3)[2]
    assert (one.shape, label) == ((3, 32, 32), 2)
    # The black borders of a crop are -2; all other values are those of the image.
    values = {round((value / 255 - 0.5) / 0.25, 4) for value in range(256)}
    assert {round(value, 4) for value in one.flatten().tolist()} <= values
    assert one.min() < -1.9
    assert one.max() > 1.9
    batch, seen = next(iter(published_loader(images, labels, [0.5] * 3, [0.25] * 3, 3)))
    assert batch.shape == (3, 3, 32, 32)
    assert set(seen.tolist()) < {0, 1, 2, 3}


@pytest.mark.parametrize("as_published", [True, False])
def test_a_timed_step_trains(as_published):
    bench, case = Bench(CPU, 1, 8, compiled=False, tiny=True), Case("step", "sa_quadratic", "mini", 2, compare.TINY)
    network = build_model(case.config().model, (3, 32, 32), 10)
    before = [parameter.clone() for parameter in network.parameters()]
    contender = compare.Contender(network, network, "fp32")
    bench.workload("step", case.config(), contender, torch.randn(2, 3, 32, 32), as_published)()
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_timed_functions_alternate_and_the_first_round_is_discarded():
    calls = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = take_turns(works, 3, CPU)
    assert "".join(calls) == "baabbaab"
    assert [len(taken) for taken in seconds.values()] == [3, 3]


def test_a_sleep_is_timed_in_full():
    seconds = take_turns({"long": lambda: time.sleep(0.06), "none": lambda: None}, 2, CPU)
    assert min(seconds["long"]) >= 0.06


def test_ratios_are_computed_per_round():
    assert ratios([2, 9, 4], [1, 3, 4]) == Spread(2, 1, 3)


def test_flops_count_forward_and_backward():
    layer, x = nn.Linear(5, 7), torch.randn(3, 5, requires_grad=True)
    assert flops_of(lambda: layer(x)) == 2 * 3 * 5 * 7
    assert flops_of(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_peak_bytes_count_memory_held_simultaneously():
    def work():
        first = torch.ones(1000, 1000)  # 4 MB
        second = first + 1  # 8 MB
        del first
        third = second * 2  # 8 MB
        del second, third
        return torch.ones(500, 1000)  # 2 MB

    assert peak_bytes(work, CPU) == pytest.approx(8e6, rel=0.01)


def test_networks_with_different_outputs_are_refused():
    x = torch.randn(4, 5)
    layer = nn.Linear(5, 3)
    assert check_same(layer, layer, x, 1e-6, "here") == 0
    with pytest.raises(Disagree, match=r"here: outputs differ by 1\.0e-01 of the largest, more than 0.01; not timed"):
        check_same(lambda x: 1.1 * layer(x), layer, x, 0.01, "here")
    with pytest.raises(Disagree, match="nan"):
        check_same(lambda x: math.nan * layer(x), layer, x, 0.01, "here")


def test_growth_exponent_of_a_power_law():
    assert growth_exponent([16, 64, 256], [3 * size**1.5 for size in (16, 64, 256)]) == pytest.approx(1.5)


def test_command_writes_the_printed_results_to_json(command, tmp_path):
    file = tmp_path / "bench.jsonl"
    done = command("scripts/bench.py", "--models", "sa_quadratic", "--tiny", "--json", file)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["part"] for line in lines} == {"layer", "step", "epoch", "inference"}
    for line in lines:
        assert f"{line['ratio']['median']:.2f} (" in done.stdout
        assert line["published"]["seconds"]["median"] > 0
        assert line["difference_fp32"] < 1e-4
        assert {"device", "commit", "dirty", "versions", "matmul_fp32"} <= line.keys()


def test_the_ratio_is_how_many_times_as_fast_ours_is(monkeypatch):
    def turns(works, rounds, device):
        return {name: [2.0 if name == "published" else 1.0] * rounds for name in works}

    monkeypatch.setattr(compare, "take_turns", turns)
    line = Bench(CPU, 3, 8, compiled=False, tiny=True).compare(Case("inference", "sa_quadratic", "mini", 2))
    assert line["ratio"] == line["ratio_fp32"] == {"median": 2, "low": 2, "high": 2}
