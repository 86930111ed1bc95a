"""Where the heads of a run look: a line of numbers per epoch (the paper's Figure 3) and a picture (Figure 4)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attnconv.mixers.positional import PositionalAttention
from attnconv.theory.heads import attention_mixers, mixer_inputs, record_heads, widest_probs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class HeadWatcher:
    """Reads the attention layers of a model; a model without any gives no record and no figure.

    Args:
        model: the network.
        name: what figures call it.
        images: (B, C, height, width): attention that depends on content is the mean over these.
    """

    def __init__(self, model: nn.Module, name: str, images: Tensor):
        self._model, self._name, self._images = model, name, images
        self._mixers = attention_mixers(model)
        self._grid: tuple[int, int] = getattr(model, "grid", (0, 0))

    def record(self, epoch: int) -> dict[str, Any] | None:
        """One line of heads.jsonl."""
        if not self._mixers:
            return None
        return {"epoch": epoch, **record_heads(self._mixers, self._inputs(), *self._grid)}

    def figure(self, epoch: int) -> "Figure | None":
        """One panel per layer."""
        if not self._mixers:
            return None
        from attnconv.study.figures import plot_heads  # imports matplotlib

        pairs = zip(self._mixers, self._inputs(), strict=True)
        probs = [widest_probs(mixer, *self._grid, x) for mixer, x in pairs]
        return plot_heads(probs, f"{self._name}, epoch {epoch}: where the heads look from the central pixel")

    def _inputs(self) -> Sequence[Tensor | None]:
        if all(isinstance(mixer, PositionalAttention) for mixer in self._mixers):
            return [None] * len(self._mixers)
        return mixer_inputs(self._model, self._images)
