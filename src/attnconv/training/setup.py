"""The setup of a run: build and check everything before a byte is written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from attnconv.analysis.heads import heads_in
from attnconv.config import Config, flatten
from attnconv.data.dataset import DataSet, Preprocessing, load_dataset
from attnconv.errors import ConfigError, OutOfMemory, is_out_of_memory
from attnconv.models.build import build_seeded_model, check_node, errors_of_network, refuse_shared_parts
from attnconv.models.cost import parameters
from attnconv.models.layout import place
from attnconv.models.match import Match, match_model
from attnconv.models.pruned import PRUNED
from attnconv.runs.folder import RunFolder
from attnconv.runs.identity import start_weights
from attnconv.settings.limits import from_elsewhere
from attnconv.training.checks import check_drawing, check_network, notes_on
from attnconv.training.device import choose_device, choose_precision, full_float32, keep_freed_memory, take_threads
from attnconv.training.distributed import Processes, check_batches, distribute, join_processes
from attnconv.training.optimizers import build_optimizer
from attnconv.training.whitening import whiten_stem


@dataclass
class Setup:
    """The parts of a run, built and checked; nothing has been written yet."""

    config: Config
    folder: RunFolder
    device: torch.device
    processes: Processes
    precision: str
    data: DataSet
    model: nn.Module
    forward: nn.Module  # the same network, compiled or distributed if requested
    optimizer: torch.optim.Optimizer
    match: Match | None  # how the model's width was scaled, if it was
    costs: dict[str, int | None]  # parameters, and FLOPs per image counted in both ways (attnconv.models.cost)
    notes: tuple[str, ...] = ()  # what the user may not expect; printed once everything is checked

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the run folder while the block runs. With several processes, process 0 locks it.

        Raises:
            UserError: see RunFolder.open.
        """
        try:
            if self.processes.writes:
                self.folder.open()
                for note in self.notes:
                    print(f"note: {note}", file=sys.stderr)
            self.processes.wait()
            yield
        finally:
            self.folder.close()
        self.processes.leave()

    @property
    def mirrored(self) -> bool:
        """Return whether evaluations also use mirror images, which requires flips in training."""
        return self.config.eval_mirrored and self.config.data.flip


def prepare(config: Config) -> Setup:
    """Build and check all parts of a run before anything is written.

    Raises:
        UserError: the run folder, device, data or model does not fit the configuration or the memory.
    """
    try:
        return _prepare(config)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory("out of memory before training; lower the scale, or data.fraction") from error
        raise


def _prepare(config: Config) -> Setup:
    folder = RunFolder(config)
    take_threads()
    keep_freed_memory()
    processes, device = join_processes(choose_device(config.device))
    precision = folder.precision = choose_precision(config.precision, device)
    if processes.writes:
        folder.check()
    config = replace(config, precision=precision)
    if precision == "fp32":
        full_float32()
    check_node(config.model)
    data = load_dataset(config.data, device)
    folder.data_hash, start = data.source_sha256, start_weights(flatten(config.model, "model."))
    folder.heads = {} if start is None else heads_in(start, config.model)
    folder.preprocessing = Preprocessing.of(config.data, data).encode()
    if processes.writes:
        folder.check()  # again, now that the data and the heads are known
    if processes.count > 1:
        check_batches(processes, data.epoch_images, config.recipe.batch_size)
    match = match_model(config, data.image_shape, data.classes) if config.match else None
    node = match.node if match else config.model
    cost, of_network = check_network(config, node, data, processes, device)
    # Built on the CPU, so that equal seeds give equal weights on all devices.
    model = build_seeded_model(node, data.image_shape, data.classes, config.seed)
    if config.recipe.whitening:
        if node["_target_"] == PRUNED:
            raise ConfigError(
                f"recipe.whitening initializes the stem, and model={config.model['name']} has a trained one; set "
                "recipe.whitening=false"
            )
        with errors_of_network(f"model={config.model['name']}:"):
            whiten_stem(model, data.train)
    if from_elsewhere(config.model):  # ours annotate each part, so that `check_node` has refused one built only once
        refuse_shared_parts(config.model, model)
    check_drawing(model)
    notes = (*sorted(of_network), *notes_on(config, data.epoch_images, model))
    place(model, device)
    optimizer = build_optimizer(model, config.recipe, precision)
    forward: Any = distribute(model, device) if processes.count > 1 else model
    if config.compile:
        forward = torch.compile(forward)
    costs = {"parameters": parameters(model), "flops_paper": cost.flops_paper, "flops_full": cost.flops_full}
    return Setup(config, folder, device, processes, precision, data, model, forward, optimizer, match, costs, notes)
