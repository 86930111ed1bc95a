"""A trained network, ready for any images: predict, evaluate, inspect its attention."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnconv.analysis.attention import LayerAttention, attention_layers
from attnconv.analysis.conv_similarity import head_rows
from attnconv.analysis.evaluation import Evaluation, confusion_matrix
from attnconv.config import Config
from attnconv.data.dataset import DataSet, Preprocessing, load_dataset
from attnconv.data.images import Images, as_arrays
from attnconv.data.sources import load_test
from attnconv.errors import ConfigError, DataError, RunFolderError, counted
from attnconv.models.build import errors_of_network
from attnconv.models.process_state import default_settings, evaluating, evaluation_draws
from attnconv.runs.identity import differences, listed

Labeled = str | Path | tuple[np.ndarray, np.ndarray]  # a folder, or images (N, H, W, C) and labels (N,)

BATCH = 250  # images per batch
AVERAGED = 100  # number of images over which `heads` averages attention that depends on content
MOST_AVERAGED = 1_000  # their probabilities are in memory at once


@dataclass
class Trained:
    """A network with trained weights, in evaluation mode, with its preprocessing.

    Attributes:
        folder: the run folder.
        config: of the run.
        preprocessing: image size, normalization and class names.
        model: images, normalized (B, C, H, W) -> logits (B, classes), in float32.
    """

    folder: Path
    config: Config
    preprocessing: Preprocessing
    model: nn.Module

    @cached_property
    def data(self) -> DataSet:
        """Return the data set that the network was trained and tested on, reading it at first use.

        Raises:
            DataError: the data set is missing.
            RunFolderError: it is not the run's data set.
        """
        data = load_dataset(self.config.data, self.device)
        different = differences(self.folder, self.config, data_hash=data.source_sha256)
        if different:
            raise RunFolderError(
                f"{self.folder} was trained on other data ({listed(different)}); name the folder of its own, or, to "
                "evaluate other test images, evaluate.py RUN --data FOLDER or evaluate(FOLDER)"
            )
        return data

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.preprocessing.class_names

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def predict(self, images: Images, resize: bool = False) -> np.ndarray:
        """Return the name of the most probable class of each image, (N,) strings.

        Args:
            images: a path, a PIL image, a list of these, or uint8 (N, H, W, C) or (H, W, C).
            resize: convert images of other sizes and modes (attnconv.data.images.as_arrays).

        Raises:
            DataError, FileError: see `as_arrays`.
        """
        return np.asarray(self.class_names)[self.predict_proba(images, resize).argmax(axis=1)]

    def predict_proba(self, images: Images, resize: bool = False) -> np.ndarray:
        """Return the probability of each class, (N, classes) float32; arguments as for `predict`."""
        arrays = as_arrays(images, self.preprocessing.image_shape, resize)
        return self._logits(arrays).softmax(dim=1).numpy()

    def evaluate(self, data: Labeled | None = None, resize: bool = False) -> Evaluation:
        """Evaluate the network on labeled images.

        Args:
            data: images uint8 (N, H, W, C) and labels (N,); or a folder with test_images.npy and test_labels.npy, or
                with the data set of the run; None for the test images of the run.
            resize: as for `predict`.

        Raises:
            DataError: the images are missing or of another size, or a label is not a class of the network.
        """
        images, labels = self._labeled(data)
        images = as_arrays(images, self.preprocessing.image_shape, resize)
        labels = _as_labels(labels, len(images))
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise DataError(
                f"labels span {labels.min()}..{labels.max()}, but the network has {len(self.class_names)} classes"
            )
        labels = labels.astype(np.int64)
        logits = self._logits(images)
        predictions = logits.argmax(dim=1).numpy()
        loss = F.cross_entropy(logits.double(), torch.from_numpy(labels)).item()
        return Evaluation(loss, confusion_matrix(labels, predictions, len(self.class_names)), self.class_names)

    def attention(
        self, image: Images, layer: int, query: tuple[int, int] | str | None = None, resize: bool = False
    ) -> np.ndarray:
        """Return where the heads of a layer look for one image.

        Args:
            image: one image, as for `predict`.
            layer: counted from 1, as in figures and tables.
            query: (row, column) of a position of the map; "class" for the class token of a ViT; None for all positions.

        Returns:
            Probabilities: (heads, H, W) for one query, else (heads, H, W, H, W), query before key.

        Raises:
            ConfigError: the network has no attention, or no such layer or position.
        """
        arrays = as_arrays(image, self.preprocessing.image_shape, resize)
        if len(arrays) != 1:
            raise DataError(f"attention needs exactly one image, not {len(arrays)}")
        layers = self._attention(arrays)
        if not isinstance(layer, int | np.integer) or not 1 <= layer <= len(layers):
            raise ConfigError(f"layer must be in 1..{len(layers)}, not {layer}")
        found = layers[layer - 1]
        height, width = found.grid
        if query is None:
            return found.of_positions[0].unflatten(-1, found.grid).unflatten(1, found.grid).numpy()
        token = _token(query, found)
        return found.probs[0, :, token, found.prefix :].unflatten(-1, (height, width)).numpy()

    def heads(self, images: Images | None = None) -> list[dict[str, Any]]:
        """Describe each attention head: one row per layer and head, both counted from 1.

        `pandas.DataFrame(rows)` makes a table of them.

        Args:
            images: as for `predict`; attention that depends on content is averaged over them. None for 100 test
                images of the run; not needed if attention depends on position alone.

        Returns:
            Rows with `layer`, `head` and the numbers that attnconv.analysis.conv_similarity.head_numbers defines:
            center, spread and radii in positions, distance, entropy, and what the maps depend on.

        Raises:
            ConfigError: the network has no attention.
            DataError: attention depends on content, and the data set is missing; or there are over 1,000 images.
        """
        if images is None:
            images = self._typical_images()
        arrays = as_arrays(images, self.preprocessing.image_shape)
        if len(arrays) > MOST_AVERAGED:
            raise DataError(
                f"heads() averages at most {MOST_AVERAGED:,} images, not {len(arrays):,}: pass some of them"
            )
        layers = self._attention(arrays)
        rows: list[dict[str, Any]] = []
        for number, layer in enumerate(layers, 1):
            rows += head_rows(number, layer.of_positions, *layer.grid)
        return rows

    def _typical_images(self) -> np.ndarray:
        channels, height, width = self.preprocessing.image_shape
        blank = np.zeros((1, height, width, channels), np.uint8)
        depends = any(len(layer.probs) > 1 for layer in self._attention(np.concatenate([blank, blank])))
        if not depends:
            return blank
        test = self.data.test
        return test.images[test.representative(AVERAGED)].cpu().numpy()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluate the network, whatever mode and settings the caller has left it in."""
        with default_settings(), torch.no_grad(), evaluating(self.model):
            yield

    def _logits(self, images: np.ndarray) -> Tensor:
        """Return the logits of images (N, H, W, C) uint8, float32 on the CPU.

        Raises:
            DataError: an image has no probabilities, because a logit is NaN or inf.
        """
        found = []
        with self._evaluating():
            for start in range(0, len(images), BATCH):
                chunk = self.preprocessing.normalize(torch.tensor(images[start : start + BATCH], device=self.device))
                what = f"model={self.config.model['name']} cannot take {counted(len(chunk), 'image')} at once:"
                with evaluation_draws(self.device, self.config.seed, start), errors_of_network(what):
                    found.append(self.model(chunk).detach().float().cpu())
        logits = torch.cat(found)
        bad = (~logits.logsumexp(dim=1).isfinite()).nonzero().flatten().tolist()
        if bad:
            name = self.config.model["name"]
            raise DataError(f"model={name} gives nan or inf for image {bad[0]} (from 0); leave it out")
        return logits

    def _attention(self, images: np.ndarray) -> list[LayerAttention]:
        with self._evaluating():
            batch = self.preprocessing.normalize(torch.tensor(images, device=self.device))
            layers = attention_layers(self.model, batch)
        if not layers:
            raise ConfigError(f"model={self.config.model['name']} has no attention layer")
        return layers

    def _labeled(self, data: Labeled | None) -> tuple[np.ndarray, np.ndarray]:
        if data is None:
            test = self.data.test
            return test.images.cpu().numpy(), test.labels.cpu().numpy()
        if isinstance(data, str | Path):
            if not str(data):  # the path of nothing is the working folder
                raise DataError("the path of the data is empty (an unset variable?)")
            return load_test(self.config.data, Path(data))
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise DataError("data to evaluate must be a folder, or a pair: (images, labels)")
        images, labels = data
        return images, labels


def _as_labels(labels: np.ndarray, count: int) -> np.ndarray:
    try:
        labels = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"labels must be {counted(count, 'integer')}, one per image") from error
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,):
        raise DataError(f"labels must be {counted(count, 'integer')}, one per image, not {labels.dtype} {labels.shape}")
    return labels


def _token(query: tuple[int, int] | str, layer: LayerAttention) -> int:
    """Return the index of a query among the tokens of a layer."""
    height, width = layer.grid
    if isinstance(query, str):
        if query == "class" and layer.has_class:
            return 0
        raise ConfigError(f"query={query!r}: the network has no class token; use (row, column)")
    try:
        row, column = map(operator.index, query)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"query={query!r} is not a position: use (row, column)") from error
    if not (0 <= row < height and 0 <= column < width):
        raise ConfigError(f"query={(row, column)} is outside the map, which has {height}x{width} positions (from 0)")
    return layer.prefix + row * width + column
