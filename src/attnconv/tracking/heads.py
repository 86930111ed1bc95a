"""Where the heads of a run look: a line of numbers per epoch (the paper's Figure 3) and a picture (Figure 4)."""

from typing import Any

from matplotlib.figure import Figure
from torch import nn

from attnconv.study.figures import plot_heads
from attnconv.theory.heads import attention_mixers, record_heads, widest_probs


class HeadWatcher:
    """Reads the attention layers of a model; a model without any gives no record and no figure."""

    def __init__(self, model: nn.Module, name: str):
        self._name = name
        self._mixers = attention_mixers(model)
        self._grid: tuple[int, int] = getattr(model, "grid", (0, 0))

    def record(self, epoch: int) -> dict[str, Any] | None:
        """One line of heads.jsonl."""
        return {"epoch": epoch, **record_heads(self._mixers, *self._grid)} if self._mixers else None

    def figure(self, epoch: int) -> Figure | None:
        """One panel per layer."""
        if not self._mixers:
            return None
        probs = [widest_probs(mixer, *self._grid) for mixer in self._mixers]
        return plot_heads(probs, f"{self._name}, epoch {epoch}: where the heads look from the central pixel")
