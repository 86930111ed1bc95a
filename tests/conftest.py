"""What several tests need: tiny data, tiny configurations, and CIFAR-10 where it is."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attnconv.config import Config, compose

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TINY_SCALE = ["scale=mini", "scale.layers=2", "scale.heads=3", "scale.width=8", "scale.hidden=8", "scale.cnn_width=2"]


def write_arrays(root: Path, train: int = 40, test: int = 20, side: int = 8, classes: int = 4, seed: int = 0) -> None:
    """A data set of noise around one colour per class, as four .npy files."""
    draw = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    colours = draw.integers(60, 196, size=(classes, 3))
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = draw.integers(-40, 41, size=(count, side, side, 3))
        np.save(root / f"{split}_images.npy", (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8))
        np.save(root / f"{split}_labels.npy", labels)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A folder with 40 training and 20 test images of 8 x 8 pixels in 4 classes."""
    write_arrays(tmp_path / "arrays")
    return tmp_path / "arrays"


@pytest.fixture
def tiny(tmp_path: Path, arrays: Path) -> Callable[..., Config]:
    """A function: overrides -> the configuration of a run that takes a second, writing below tmp_path."""

    def build(*overrides: str) -> Config:
        fixed = ["data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs", "logger=none", "device=cpu"]
        return compose([*TINY_SCALE, *fixed, "epochs=2", "recipe.batch_size=16", *overrides])

    return build
