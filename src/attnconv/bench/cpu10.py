"""CPU-10: what ten minutes of training on two CPU cores achieve on CIFAR-10.

The rules are in results/cpu10.md. Our entries are runs of train.py with a fixed number of epochs; the peers of
attnconv.bench.peers train until the clock stops them. The clock counts training steps with their data and augmentation,
not evaluations. One fiftieth of the training images is held out: it shows when an entry reaches 80%, and no entry sees
the test set before its last evaluation.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.bench.peers import PEERS, Lookahead, Peer
from attnconv.bench.timing import matmul, take_turns
from attnconv.config import Config, DataConfig, compose
from attnconv.data.augmentation import plan_epoch
from attnconv.data.dataset import DataSet, load_dataset
from attnconv.errors import UserError
from attnconv.run import run
from attnconv.runs.folder import run_folder_path
from attnconv.runs.records import read_lines
from attnconv.training.device import choose_precision, keep_freed_memory
from attnconv.training.distributed import Processes
from attnconv.training.loop import evaluate

CPU = torch.device("cpu")
MINUTES = 10.0
HOLDOUT = 0.02
EVALUATIONS = 5  # of a peer, on the held-out images
TARGET = 0.8
CURVE = list[tuple[float, float]]  # seconds of training, accuracy on the held-out images


@dataclass(frozen=True)
class Entry:
    """A network of ours.

    Args:
        mixing: what mixes positions: a class of results/cpu10.md.
        epochs: by precision, as many as ten minutes hold on the machines in LOG.md.
    """

    mixing: str
    overrides: tuple[str, ...]
    epochs: dict[str, int]

    def config(self, seed: int, epochs: int | None) -> Config:
        """Return the configuration of a run.

        Raises:
            UserError: the number of epochs is neither given nor known for this machine's precision.
        """
        precision = choose_precision("auto", CPU)
        epochs = epochs or self.epochs.get(precision)
        if epochs is None:
            raise UserError(f"how many epochs ten minutes hold in {precision} has not been measured: set --epochs")
        chosen = [f"seed={seed}", f"epochs={epochs}", f"precision={precision}"]
        fixed = ["device=cpu", "eval_every=1", "eval_mirrored=false", f"data.holdout={HOLDOUT}", "logger=none"]
        return compose(["experiment=speedrun_mini", "name=cpu10", *self.overrides, *chosen, *fixed])


OURS = {
    "sa_quadratic": Entry("attention", ("model=sa_quadratic",), {"bf16": 12, "fp32": 5}),
    "conv3x3": Entry("convolution", ("model=conv3x3",), {"fp32": 7}),
}
ENTRIES = tuple(OURS) + tuple(PEERS)


def enter(name: str, seed: int, minutes: float | None, epochs: int | None) -> dict[str, Any]:
    """Train one entry and return its line of results/cpu10.jsonl.

    Args:
        minutes: for a peer, the time to train; None for MINUTES.
        epochs: for an entry of ours; None for as many as ten minutes hold on the machines in LOG.md.

    Raises:
        UserError: `epochs` is given for a peer, or `minutes` for an entry of ours; see also attnconv.run.
    """
    if name in OURS and minutes is not None:
        raise UserError(f"--minutes={minutes:g}: {name} trains a fixed number of epochs; set --epochs")
    if name in PEERS and epochs is not None:
        raise UserError(f"--epochs={epochs}: {name} trains until the clock stops it")
    minutes = minutes or MINUTES
    rate = matmul_rate()
    if name in OURS:
        line = _our_run(OURS[name], seed, epochs)
    else:
        line = _peer_run(PEERS[name], seed, 60 * minutes)
    reached = [seconds for seconds, accuracy in line["curve"] if accuracy >= TARGET]
    return {
        "entry": name, "seed": seed, "limit_seconds": 60 * minutes, **line,
        "seconds_to_80": min(reached, default=None),
        # before and after: another program on the cores shows in one of them
        "matmul_gflops": [rate, matmul_rate()],
    }  # fmt: skip


def matmul_rate() -> float:
    """Return the machine's GFLOP/s in a float32 matrix product, the median of nine."""
    work, flops = matmul(torch.float32, CPU)
    return flops / statistics.median(take_turns({"matmul": work}, 9, CPU)["matmul"]) / 1e9


def _our_run(entry: Entry, seed: int, epochs: int | None) -> dict[str, Any]:
    config = entry.config(seed, epochs)
    result = run(config)
    folder = run_folder_path(config)
    seconds = itertools.accumulate(line["train_seconds"] for line in read_lines(folder, "timing.jsonl"))
    accuracies = [line["val/acc"] for line in read_lines(folder, "metrics.jsonl")]
    return {
        "mixing": entry.mixing,
        "precision": result["precision"],
        "parameters": result["parameters"],
        "train_seconds": result["train_seconds"],
        "images": result["train_images"] * config.epochs,
        "epochs": config.epochs,
        "test_acc": result["test_acc"],
        "curve": list(zip(seconds, accuracies, strict=True)),
        # of all starts, if the run was resumed
        **{key: result[key] for key in ("device", "commit", "dirty", "versions")},
    }


def _peer_run(peer: Peer, seed: int, seconds: float) -> dict[str, Any]:
    keep_freed_memory()  # as our runs do
    torch.manual_seed(seed)
    data = load_dataset(compose([f"data.holdout={HOLDOUT}", "logger=none", *peer.data]).data, CPU)
    network = peer.build(data.train)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)
    trained = train_for(peer, network, data, seed, seconds)
    return {
        "mixing": peer.mixing,
        "precision": "fp32",
        "parameters": sum(part.numel() for part in network.parameters()),
        **trained,
        "test_acc": evaluate(network, data.test, 500, "fp32", Processes()).accuracy,
    }


def train_for(peer: Peer, network: nn.Module, data: DataSet, seed: int, seconds: float) -> dict[str, Any]:
    """Train for at most `seconds` of steps, and evaluate the held-out images at each fifth of the time."""
    optimizer, lookahead = peer.optimizer(network), Lookahead(network) if peer.lookahead else None
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    assert data.validation is not None
    spent = longest = 0.0
    curve: CURVE = []
    shown = 0
    batches = _batches(data, compose(["logger=none", *peer.data]).data, seed, peer.batch_size)
    # a step that would end too late is not taken
    while spent + longest <= seconds:
        started = time.perf_counter()
        _step(network, optimizer, *next(batches), peer, spent / seconds)
        if lookahead:
            lookahead.step(spent / seconds)
        taken = time.perf_counter() - started
        spent, longest, shown = spent + taken, max(longest, taken), shown + peer.batch_size
        if spent >= (len(curve) + 1) * seconds / EVALUATIONS:
            curve.append((spent, evaluate(network, data.validation, 500, "fp32", Processes()).accuracy))
    if lookahead:
        lookahead.end()
    curve.append((spent, evaluate(network, data.validation, 500, "fp32", Processes()).accuracy))
    return {"train_seconds": spent, "images": shown, "epochs": shown / len(data.train), "curve": curve}


def _batches(data: DataSet, config: DataConfig, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches without end; the images that do not fill a batch wait for a later pass."""
    for epoch in itertools.count():
        plan = plan_epoch(
            len(data.train), seed, epoch, config.crop_padding, config.flip, CPU, alternating=config.alternating_flip
        )
        for start in range(0, len(plan) - size + 1, size):
            yield data.train.augmented(plan[start : start + size])


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    peer: Peer,
    progress: float,
) -> None:
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * peer.factor(progress) * (progress < group.get("until", 1.0))
    loss = F.cross_entropy(network(images), labels, label_smoothing=peer.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
