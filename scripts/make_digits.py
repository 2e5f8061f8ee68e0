"""Maker of `digits.npz`, the data set inside the package, from the copy that scikit-learn distributes.

    python -m scripts.make_digits [PATH]

The 1,797 images are the *test* part of the UCI Optical Recognition of Handwritten Digits (13 writers); see
LICENSE-digits.txt.  The division below is by class and not by writer, so every writer is in both parts.
Needs scikit-learn.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import data

NUM_HELD_OUT = 297


def main(argv: list[str]) -> int:
    """Writes the file and prints its content; returns the exit status."""
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        print("usage: python -m scripts.make_digits [PATH]", file=sys.stderr)
        return 2
    path = Path(argv[0]) if argv else Path(data.__file__).with_name("digits.npz")
    arrays: dict[str, Any] = make_arrays()
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    print(f"{path}: {path.stat().st_size:,} bytes; " + ", ".join(f"{k} {v.shape}" for k, v in arrays.items()))
    return 0


def make_arrays() -> dict[str, np.ndarray]:
    """The arrays of `digits.npz`.

    Returns:
        train uint8 [1500, 8, 8, 1] and test uint8 [297, 8, 8, 1], of levels 0..16; train_labels and test_labels int32,
        0..9.  Both parts keep the order of the original.
    """
    from sklearn.datasets import load_digits

    values, classes = load_digits(return_X_y=True)
    images = np.asarray(values, np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(classes, np.int32)
    held = stratified_mask(labels, NUM_HELD_OUT)
    return {
        "train": images[~held],
        "test": images[held],
        "train_labels": labels[~held],
        "test_labels": labels[held],
    }


def stratified_mask(labels: np.ndarray, count: int) -> np.ndarray:
    """A mask, bool [N], of `count` examples whose classes have the shares of `labels`, by largest remainder."""
    sizes = np.bincount(labels)
    exact = sizes * count / len(labels)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    # RandomState and not default_rng: numpy promises that its stream never changes.
    draw = np.random.RandomState(0)
    mask = np.zeros(len(labels), bool)
    for label, class_count in enumerate(shares):
        mask[draw.permutation(np.flatnonzero(labels == label))[:class_count]] = True
    return mask


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
