"""The training images that a run uses: all but a fixed validation set, or nested, stratified fractions of these."""

import numpy as np

from attnconv.errors import DataError

# The validation set is the same for all seeds and fractions, so that all choices are made on the same images.
HOLDOUT_STREAM = 1
SUBSET_STREAM = 2


def split_holdout(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into training and validation: `share` of each class goes to validation, always the same images.

    Raises:
        DataError: a share above 0 selects no image or all images of a class.
    """
    if share == 0:
        return np.arange(len(labels)), np.arange(0)
    kept, held = [], []
    for label, members in _shuffled_classes(labels, np.arange(len(labels)), HOLDOUT_STREAM):
        count = round(share * len(members))
        if not 0 < count < len(members):
            raise DataError(
                f"data.holdout={share} of the {len(members)} images of class {label} is {count} images; "
                "keep at least one for training and one for validation"
            )
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def nested_fraction(labels: np.ndarray, candidates: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the sorted indices of `fraction` of each class among `candidates`.

    Smaller fractions are subsets of larger ones.

    Raises:
        DataError: the fraction is less than one image of some class.
    """
    chosen = []
    for label, members in _shuffled_classes(labels, candidates, SUBSET_STREAM, seed):
        count = round(fraction * len(members))
        if count < 1:
            raise DataError(
                f"data.fraction={fraction} of the {len(members):,} images of class {label} is less than one image; "
                f"set data.fraction={1 / len(members):.2g} or more"
            )
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def _shuffled_classes(labels: np.ndarray, candidates: np.ndarray, *key: int) -> list[tuple[int, np.ndarray]]:
    """Return each class with its candidates in an order that depends only on `key` and the class."""
    return [
        (int(label), np.random.default_rng([*key, int(label)]).permutation(candidates[labels[candidates] == label]))
        for label in np.unique(labels[candidates])
    ]
