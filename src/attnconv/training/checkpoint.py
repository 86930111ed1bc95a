"""Checkpoints: written whole or not at all, read without executing anything."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epochs_done: int) -> None:
    """Write the state after `epochs_done` epochs. Data order, augmentation and dropout need none: they are counters."""
    state = {"epochs_done": epochs_done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    unfinished = path.with_suffix(".partial")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Restore model and optimiser in place; returns the number of epochs done."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epochs_done"]
