"""Which training images a run sees: a fixed validation holdout, and nested, class-stratified fractions of the rest."""

import numpy as np

from attnconv.errors import DataError

# The holdout is the same for every seed and fraction: choices made on it are made on one set of images.
HOLDOUT_STREAM = 1
SUBSET_STREAM = 2


def split_holdout(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (kept for training, held out): `share` of every class is held out, always the same images.

    Raises:
        DataError: a share above 0 that holds out no image, or all images, of a class.
    """
    if share == 0:
        return np.arange(len(labels)), np.arange(0)
    kept, held = [], []
    for label, members in _shuffled_classes(labels, np.arange(len(labels)), HOLDOUT_STREAM):
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise DataError(f"data.holdout={share} of the {len(members)} images of class {label} is {count} images")
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def nested_fraction(labels: np.ndarray, candidates: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, sorted, of `fraction` of every class among `candidates`; a smaller fraction is a subset of a larger one.

    Raises:
        DataError: the fraction is too small for one image of every class.
    """
    chosen = []
    for label, members in _shuffled_classes(labels, candidates, SUBSET_STREAM, seed):
        count = round(fraction * len(members))
        if count < 1:
            raise DataError(
                f"data.fraction={fraction} of the {len(members)} images of class {label} is less than one image"
            )
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def _shuffled_classes(labels: np.ndarray, candidates: np.ndarray, *key: int) -> list[tuple[int, np.ndarray]]:
    """Every class with its candidates in an order that depends on `key` and the class alone."""
    return [
        (int(label), np.random.default_rng([*key, int(label)]).permutation(candidates[labels[candidates] == label]))
        for label in np.unique(labels[candidates])
    ]
