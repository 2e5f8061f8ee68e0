"""Pairs of digits: their halves are digits of the right part, and what is held out is in no training picture."""

import hashlib

import numpy as np
import pytest

from benchmarks.attributes import parse_pair
from ddpm_jax import data
from ddpm_jax.data import captions, pairs

DIGITS, PAIRS = data.load("digits"), data.load("pairs")
SAID = {"train": PAIRS.train_captions or (), "test": PAIRS.test_captions or ()}


def shown(part):
    """The pairs that a part's pictures show, found by looking each half up among all digits of that part."""
    known = {
        image.tobytes(): int(label)
        for image, label in zip(getattr(DIGITS, part), getattr(DIGITS, f"{part}_labels"), strict=True)
    }
    pictures = getattr(PAIRS, part)
    return [(known[np.ascontiguousarray(p[:, :8]).tobytes()], known[p[:, 8:].tobytes()]) for p in pictures]


def test_the_pictures_and_captions_never_change():
    pixels = np.concatenate([PAIRS.train, PAIRS.test]).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "8074897e255035e16fbef6268f69c74359e7d5c81b16356950bbb3708ccc41ad"
    texts = "\n\n".join(SAID["train"] + SAID["test"])
    assert (
        hashlib.sha256(texts.encode()).hexdigest() == "0cf24b6baf0f84d905151e89c9d9e4096636488c33903e97df9b2fe25dba5628"
    )
    assert (PAIRS.train.shape, PAIRS.test.shape, PAIRS.levels) == ((4000, 8, 16, 1), (1000, 8, 16, 1), 17)


@pytest.mark.parametrize(("part", "kinds", "each"), [("train", 80, 50), ("test", 20, 50)])
def test_both_halves_are_digits_of_this_part_and_as_the_caption_says(part, kinds, each):
    found = shown(part)
    for (left, right), text in zip(found, SAID[part], strict=True):
        one, other = (f"{'an' if digit == 8 else 'a'} {DIGITS.label_names[digit]}" for digit in (left, right))
        assert text == f"{one} left of {other}\n{other} right of {one}"
    assert len(set(found)) == kinds and {found.count(pair) for pair in set(found)} == {each}


def test_no_training_picture_has_a_pair_held_out_but_each_the_other_way_round():
    trained, tested = set(shown("train")), set(shown("test"))
    assert not trained & tested and len(trained | tested) == 100 and tested == set(pairs.HELD_OUT_PAIRS)
    assert {(right, left) for left, right in tested} <= trained
    for side in range(2):
        assert sorted(pair[side] for pair in tested) == sorted(2 * [*range(10)])


def test_many_different_digits_are_in_the_pictures():
    """Of 1,500 digits, 8,000 draws miss a share of exp(-8000 / 1500) = 0.5 % on average."""
    halves = np.concatenate(np.split(np.asarray(PAIRS.train), 2, axis=2))
    assert len(np.unique(halves, axis=0)) > 0.985 * 1500


def test_both_descriptions_are_in_the_table_and_understood():
    table = captions.caption_table(PAIRS)
    assert len(table.texts) == 80
    row = table.texts[table.row_indices[0]]
    for text in row:
        assert parse_pair(text, DIGITS.label_names) == shown("train")[0]
    with pytest.raises(ValueError, match=r"expected a description of a pair, .*, got 'a three'"):
        parse_pair("a three", DIGITS.label_names)
    with pytest.raises(ValueError, match="the pairs have 17 levels, got levels=256"):
        data.load("pairs", levels=256)
