"""Compare self-attention with convolution: train, load and measure networks of both kinds.

    config = attnconv.compose(["experiment=quickstart"])    # as on the command line of train.py
    result = attnconv.run(config)                           # trains into a run folder; returns result.json
    network = attnconv.load("outputs/quickstart/sa_quadratic/mini-modern/frac1/seed0")
    network.predict("five.png")

docs/api.md shows these calls with their outputs.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnconv.config import compose
    from attnconv.run import run
    from attnconv.runs.load import load

__all__ = ["__version__", "compose", "load", "run"]
__version__ = version("attnconv")

_HOMES = {"compose": "attnconv.config", "load": "attnconv.runs.load"}


def __getattr__(name: str) -> Any:
    # Imported on first use: PyTorch takes seconds to import, and most commands do not need it.
    if name not in _HOMES:
        raise AttributeError(f"module 'attnconv' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package, whose `run` stays the function even after the module attnconv.run is imported."""

    def _run(self) -> Any:
        return import_module("attnconv.run").run

    def _keep_run(self, module: ModuleType) -> None:
        """Ignore the assignment: importing attnconv.run would replace the function by the module."""

    if not TYPE_CHECKING:
        run = property(_run, _keep_run)


sys.modules[__name__].__class__ = _Package
