"""The accuracy of a network on labeled images, by class, and its confusion matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """The scores of a network on labeled images.

    Attributes:
        loss: mean cross-entropy.
        confusion: number of images by (true class, predicted class).
        class_names: one per class.
    """

    loss: float
    confusion: np.ndarray
    class_names: tuple[str, ...]

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Return the share of images that are classified correctly, 0..1."""
        return float(self.confusion.trace() / self.images)

    @property
    def class_accuracies(self) -> dict[str, float]:
        """Return the accuracy by class name, 0..1, for the classes that occur."""
        return class_accuracies(self.confusion, self.class_names)

    def __str__(self) -> str:
        lines = [f"accuracy {self.accuracy:.2%} on {self.images:,} images, loss {self.loss:.4f}"]
        for name, accuracy in self.class_accuracies.items():
            own = self.class_names.index(name)
            others = self.confusion[own].copy()
            others[own] = 0
            mistaken = f"  most often confused with {self.class_names[others.argmax()]} ({others.max()})"
            lines.append(f"  {name:<12} {accuracy:7.2%}{mistaken if others.any() else ''}")
        return "\n".join(lines)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count images by (true class, predicted class): (classes, classes) int64."""
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predictions, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def class_accuracies(confusion: np.ndarray, class_names: tuple[str, ...]) -> dict[str, float]:
    """Return the accuracy by class name, 0..1, for the classes that occur."""
    totals = confusion.sum(axis=1)
    return {
        name: float(confusion[index, index] / totals[index]) for index, name in enumerate(class_names) if totals[index]
    }
