"""Keep what belongs to the process or to a network while other code uses it: settings, generators, training mode."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import nn

EVALUATION_STREAM = 8

# PyTorch's settings and the generators belong to the process: one thread changes, uses and restores them at a time.
OF_PROCESS = threading.RLock()


def settings() -> dict[str, Any]:
    """Return what the process relies on, by the function that changes it: settings of PyTorch, and the working folder.

    A device of `with torch.device(...)` is not included.
    """
    return {
        "torch.set_default_dtype": torch.get_default_dtype(),
        "torch.set_grad_enabled": torch.is_grad_enabled(),
        "torch.set_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.use_deterministic_algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch.set_num_threads": torch.get_num_threads(),
        "torch.set_default_device": torch.get_default_device(),
        "os.chdir": _working_folder(),
    }


@contextmanager
def kept_settings() -> Iterator[None]:
    """Restore `settings` after code of a user; other threads wait."""
    with OF_PROCESS:
        before = settings()
        try:
            yield
        finally:
            for name, value in settings().items():
                if value != before[name] and before[name] is not None:
                    _restore(name, before[name])


def _working_folder() -> str | None:
    """Return the working folder, or None if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _restore(name: str, value: Any) -> None:
    if name == "torch.use_deterministic_algorithms":
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    elif name == "torch.set_default_device":
        torch.set_default_device(None if value.type in ("cpu", "meta") else value)
    else:
        resolve_name(name)(value)


@contextmanager
def default_settings() -> Iterator[None]:
    """Compute with gradients, in full float32 and on the CPU by default, whatever the caller of the API has set.

    Afterwards, all `settings` are those of the caller again. Other threads that enter this wait.
    """
    with ExitStack() as stack:
        stack.enter_context(kept_settings())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # else it would slow down each call
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        yield


def seed_generators(seed: int) -> None:
    """Seed all global generators that a network of a user may draw from."""
    torch.manual_seed(seed)
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002  # seeds above 32 bits need several words
    random.seed(seed)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed all global generators while entered; then Python's and NumPy's go on from where they were.

    Libraries draw names of files from these, which must not repeat.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed_generators(seed)
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def kept_generators() -> Iterator[None]:
    """Let all global generators go on afterwards from where they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with OF_PROCESS, torch.random.fork_rng(devices), seeded_generators(0):
        yield


@contextmanager
def evaluation_draws(device: torch.device, seed: int, start: int, rank: int = 0) -> Iterator[None]:
    """Seed all global generators for a batch of an evaluation while entered; then they go on from where they were.

    Args:
        start: number of the batch's first image.
        rank: of this process.
    """
    devices = [device] if device.type == "cuda" else []
    stream = seed_of(EVALUATION_STREAM, seed, start, rank)
    with OF_PROCESS, torch.random.fork_rng(devices), seeded_generators(stream):
        yield


def seed_of(stream: int, seed: int, place: int, rank: int) -> int:
    """Return a seed for one place of a stream of random numbers.

    Process 0 draws what a single process would draw; the others, which have other images, draw their own numbers.
    """
    counter = [stream, seed, place] + ([rank] if rank else [])
    return int(np.random.SeedSequence(counter).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def evaluating(layer: nn.Module) -> Iterator[None]:
    """Switch a layer and its parts to evaluation mode and back: spectral norm iterates in training mode."""
    modes = {module: module.training for module in layer.modules()}
    layer.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
