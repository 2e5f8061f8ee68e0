"""The source "pairs": pictures of two handwritten digits side by side, with captions.

"a three left of a five" and "a five right of a three" describe the same picture: the order of the words matters.

Training pictures are made of training digits, test pictures of held-out ones.  Of the 100 ordered pairs, the 20
`HELD_OUT_PAIRS` are in no training picture, and all test pictures are of these.  They have each digit twice on the left
and twice on the right, and training has each of them in the other order.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.data.dataset import Dataset

HELD_OUT_PAIRS = tuple((left, (left + gap) % 10) for left in range(10) for gap in (3, 4))
NUM_TRAIN, NUM_TEST = 4000, 1000  # pictures


class Pair(NamedTuple):
    """The two digits of a picture, 0 to 9."""

    left: int
    right: int


def make_dataset(digits: Dataset) -> Dataset:
    """The data set: 4,000 training and 1,000 test pictures uint8 [8, 16, 1] of 17 levels; always the same.

    A caption has a line for each of the two `descriptions`.

    Args:
        digits: those of `load("digits")`, with labels and label names.
    """
    every = [Pair(left, right) for left in range(10) for right in range(10)]
    train_pairs, test_pairs = ([pair for pair in every if (pair in HELD_OUT_PAIRS) == out] for out in (False, True))
    names = digits.label_names
    train, captions = _make_split(0, digits.train, digits.train_labels, train_pairs, NUM_TRAIN, names)
    test, test_captions = _make_split(1, digits.test, digits.test_labels, test_pairs, NUM_TEST, names)
    return Dataset(
        train, test, None, None, digits.levels, "pairs", train_captions=captions, test_captions=test_captions
    )  # fmt: skip


def descriptions(pair: Pair, names: tuple[str, ...]) -> tuple[str, str]:
    """Two texts of a pair, from its left and from its right digit; `names` are those of the ten digits."""
    left, right = (f"{'an' if digit == 8 else 'a'} {names[digit]}" for digit in pair)
    return f"{left} left of {right}", f"{right} right of {left}"


def _make_split(
    seed: int, images, labels: np.ndarray | None, pairs: list[Pair], count: int, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pictures of pairs of random digits, all pairs equally often, and their captions."""
    assert labels is not None
    rng = np.random.RandomState(seed)
    shuffled_pairs = [pairs[i] for i in rng.permutation(np.arange(count) % len(pairs))]
    halves = []
    for digits in np.array(shuffled_pairs).T:
        uniforms = rng.random_sample(count)
        kinds = [np.flatnonzero(labels == digit) for digit in range(10)]
        halves.append(images[[kinds[d][int(u * len(kinds[d]))] for d, u in zip(digits, uniforms, strict=True)]])
    return np.concatenate(halves, axis=2), tuple("\n".join(descriptions(pair, names)) for pair in shuffled_pairs)
