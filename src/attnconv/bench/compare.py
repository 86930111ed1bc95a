"""The cases of scripts/bench.py: our network and the published formulation, timed against each other."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.bench.published import published_epoch, published_loader, published_network, published_optimizer
from attnconv.bench.timing import (
    Spread,
    check_same,
    flops_of,
    matmul,
    peak_bytes,
    ratios,
    take_turns,
)
from attnconv.config import Config, compose
from attnconv.data.augmentation import pad, plan_epoch
from attnconv.data.dataset import TrainSplit
from attnconv.models.build import build_model
from attnconv.models.match import match_model
from attnconv.runs.checkpoint import Progress
from attnconv.training.device import autocast, choose_precision, computes_in_bf16, keep_freed_memory
from attnconv.training.distributed import Processes
from attnconv.training.loop import EpochSettings, train_epoch
from attnconv.training.metrics import FiniteGuard, Tally
from attnconv.training.optimizers import build_optimizer

SIDE, CLASSES = 32, 10  # as in CIFAR-10; the content does not matter here, so images are random
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}  # of the largest logit
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TINY = ("scale.layers=2", "scale.heads=3", "scale.width=8", "scale.hidden=8")
ROUNDS, IMAGES = 5, 2560  # of a measurement for results/; images of an epoch
PARTS = ("layer", "step", "epoch", "inference")


@dataclass(frozen=True)
class Case:
    """A model at a scale, and the images of a batch."""

    part: str
    model: str
    scale: str
    batch: int
    overrides: tuple[str, ...] = ()
    dropout: float = 0.0  # after sublayers and on probabilities
    side: int = SIDE  # of the images, in pixels

    def config(self) -> Config:
        """Return the configuration, with the width that `match` gives."""
        fixed = ["recipe=paper", f"recipe.dropout={self.dropout}", f"recipe.attention_dropout={self.dropout}"]
        config = compose([f"model={self.model}", f"scale={self.scale}", *fixed, "logger=none", *self.overrides])
        if config.match is None:
            return config
        return replace(config, model=match_model(config, (3, self.side, self.side), CLASSES).node)


ON_CPU = (
    Case("layer", "sa_quadratic", "paper", 8),
    Case("layer", "sa_learned_content", "paper", 8),
    Case("layer", "sa_quadratic", "mini", 128),
    Case("layer", "sa_quadratic", "mini", 8, ("scale.patch=1",)),
    Case("layer", "sa_quadratic", "mini", 1, ("scale.patch=1",), side=64),
    Case("step", "sa_quadratic", "paper", 8),
    Case("step", "sa_quadratic", "paper", 8, dropout=0.1),
    Case("step", "sa_quadratic", "mini", 8, ("scale.patch=1",)),
    Case("step", "sa_learned_content", "paper", 16),
    Case("step", "sa_quadratic", "mini", 128),
    Case("step", "sa_quadratic", "small", 32),
    Case("step", "sa_learned_content", "mini", 64),
    Case("step", "sa_learned_content", "mini", 64, ("match=parameters",)),
    Case("inference", "sa_quadratic", "paper", 16),
    Case("inference", "sa_quadratic", "mini", 256),
    Case("epoch", "sa_quadratic", "mini", 128),
    Case("epoch", "sa_learned", "mini", 128),
)
# The paper's batch size; our network would fit a larger one.
ON_GPU = tuple(
    Case(part, model, "paper", 100)
    for part in ("layer", "step", "inference", "epoch")
    for model in ("sa_quadratic", "sa_learned", "sa_learned_content")
) + tuple(Case("step", model, "paper", 100, dropout=0.1) for model in ("sa_quadratic", "sa_learned_content"))


@dataclass(frozen=True)
class Contender:
    """A network in training: with its precision, compiled or not."""

    network: nn.Module
    forward: Callable[[Tensor], Tensor]  # the same network, compiled or not
    precision: str

    def __call__(self, images: Tensor) -> Tensor:
        if images.device.type == "meta":  # for counting only; autocast does not support it
            return self.forward(images)
        with autocast(self.precision, images.device):
            return self.forward(images)

    def layer(self, x: Tensor) -> None:
        """Run one forward and backward pass."""
        self(x).float().square().sum().backward()

    def infer(self, images: Tensor) -> None:
        """Run one forward pass."""
        self.network.eval()
        with torch.no_grad():  # the FLOP counter does not work in inference_mode
            self(images)

    def step(self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
        """Run one training step."""
        self.network.train()
        loss = F.cross_entropy(self(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


class Bench:
    """Compare cases on one device with the published formulation."""

    def __init__(self, device: torch.device, rounds: int, images: int, compiled: bool, tiny: bool = False):
        keep_freed_memory()  # as in training; the published formulation benefits, too
        self.device, self.rounds, self.compiled = device, rounds, compiled
        self.precision = choose_precision("auto", device)
        # Other measurements are tries, which the published table leaves out.
        self.standard = not tiny and rounds >= ROUNDS and images >= IMAGES
        # A CPU that only emulates bf16 would spend most of a round on a meaningless product.
        kinds = KINDS if computes_in_bf16(device) else {"fp32": torch.float32}
        self.matmuls = {kind: matmul(dtype, device, tiny) for kind, dtype in kinds.items()}
        draw = np.random.default_rng(0)
        self.images = draw.integers(0, 256, (images, SIDE, SIDE, 3)).astype(np.uint8)
        self.labels = draw.integers(0, CLASSES, images)

    def compare(self, case: Case) -> dict[str, Any]:
        """Return one line of results/bench.jsonl."""
        config = case.config()
        torch.manual_seed(0)
        ours: Any = build_model(config.model, (3, case.side, case.side), CLASSES).to(self.device)
        theirs: Any = published_network(config, (3, case.side, case.side), CLASSES, ours)
        grid = ours.grid
        x = torch.randn(case.batch, 3, case.side, case.side, device=self.device)
        if case.part == "layer":
            ours, theirs = ours.layers[0].mixer, theirs.layers[0].mixer
            x = torch.randn(case.batch, *grid, config.model["width"], device=self.device, requires_grad=True)
        forward = torch.compile(ours) if self.compiled else ours
        published, exact = Contender(theirs, theirs, "fp32"), Contender(ours, ours, "fp32")
        ours.eval(), theirs.eval()  # without dropout, both are the same function
        difference = check_same(exact, published, x, TOLERANCE["fp32"], "in float32")
        timed = Contender(ours, forward, self.precision)
        check_same(timed, published, x, TOLERANCE[self.precision], f"in {self.precision}")

        ours.train(), theirs.train()
        contenders = {"published": published, "ours": timed}
        if self.precision != "fp32":
            contenders["ours_fp32"] = Contender(ours, forward, "fp32")  # at equal precision
        workloads = {
            name: self.workload(case.part, config, contender, x, as_published=name == "published")
            for name, contender in contenders.items()
        }
        seconds = take_turns(
            workloads | {kind: workload for kind, (workload, _) in self.matmuls.items()}, self.rounds, self.device
        )
        shown = len(self.images) if case.part == "epoch" else case.batch
        line: dict[str, Any] = {
            **asdict(case), "positions": list(grid), "rounds": self.rounds, "precision": self.precision,
            "compiled": self.compiled, "standard": self.standard, "difference_fp32": difference,
            "ratio": asdict(ratios(seconds["published"], seconds["ours"])),
            "ratio_fp32": asdict(ratios(seconds["published"], seconds.get("ours_fp32", seconds["ours"]))),
        }  # fmt: skip
        # Of an epoch, FLOPs and memory of one step are measured.
        one = "step" if case.part == "epoch" else case.part
        for name, contender in contenders.items():
            as_published = name == "published"
            flops = self.flops(one, config, contender, x, as_published)
            taken = Spread.of(seconds[name])
            line[name] = {
                "seconds": asdict(taken), "images_per_second": shown / taken.median,
                "peak_bytes": peak_bytes(self.workload(one, config, contender, x, as_published), self.device),
                "flops_per_image": flops // case.batch, "flops_per_second": flops / case.batch * shown / taken.median,
            }  # fmt: skip
        rates = {
            kind: Spread.of([flops / taken for taken in seconds[kind]]) for kind, (_, flops) in self.matmuls.items()
        }
        return line | {f"matmul_{kind}": asdict(found) for kind, found in rates.items()}

    def flops(self, part: str, config: Config, contender: Contender, x: Tensor, as_published: bool) -> int:
        """Return the FLOPs of one round, counted on the meta device, where all networks use their plain formulas."""
        network = copy.deepcopy(contender.network).to("meta")
        plain = Contender(network, network, "fp32")  # uncompiled: a compiled graph hides its products from the counter
        return flops_of(self.workload(part, config, plain, x.detach().to("meta"), as_published))

    def workload(
        self, part: str, config: Config, contender: Contender, x: Tensor, as_published: bool = False
    ) -> Callable[[], object]:
        """Return the function that is timed in a round."""
        if part == "layer":
            return lambda: contender.layer(x)
        if part == "inference":
            return lambda: contender.infer(x)
        network = contender.network
        if as_published:
            optimizer = published_optimizer(network)
        else:
            optimizer = build_optimizer(network, config.recipe, contender.precision)
        if part == "step":
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            return lambda: contender.step(optimizer, x, labels)
        if as_published:
            loader = published_loader(self.images, self.labels, MEAN, STD, len(x))
            return lambda: published_epoch(contender.network, optimizer, loader)
        return lambda: self.our_epoch(config, contender, optimizer, len(x))

    def our_epoch(self, config: Config, contender: Contender, optimizer: torch.optim.Optimizer, batch: int) -> None:
        """Train for one epoch with the training loop of a run, on the images of this bench."""
        images, labels = (torch.from_numpy(array).to(self.device) for array in (self.images, self.labels))
        mean, std = (torch.tensor(values, device=self.device) for values in (MEAN, STD))
        train_epoch(
            cast(nn.Module, contender.forward),
            optimizer,
            TrainSplit(images, labels, mean, std, pad(images, 4)),
            plan_epoch(len(images), 0, 0, 4, True, self.device),
            EpochSettings(
                seed=0,
                batch_size=batch,
                label_smoothing=config.recipe.label_smoothing,
                lr_factor=lambda step: 1e-3,
                image_size=lambda step: None,
                cutmix=None,
                precision=contender.precision,
                processes=Processes(),
                finite_guard=FiniteGuard(self.device),
                on_step=lambda step: None,
            ),
            Progress(),
            Tally.on(self.device),
        )
