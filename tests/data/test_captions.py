"""Captions: what the texts of every image are, whatever its source says of it."""

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import captions


def images(labels=None, names=(), texts=None):
    """Four training images and two held out, with six labels and captions of these."""
    part = np.zeros((4, 2, 2, 1), np.uint8)
    train, test = (None, None) if labels is None else (np.array(labels[:4], np.int32), np.array(labels[4:], np.int32))
    train_captions, test_captions = (None, None) if texts is None else (tuple(texts[:4]), tuple(texts[4:]))
    return data.Dataset(part, part[:2], train, test, 256, "made", names, train_captions, test_captions)


CATS = images([1, 0, 1, 1, 0, 1], ("cat", "dog"))
CONDITIONAL = images(texts=["a cat", "a dog", "a cat", "", "a dog", "an ant"])


def described(table):
    """The texts of each image."""
    return [table.texts[row] for row in table.row_indices]


def test_templates_speak_of_every_class_by_its_name():
    found = captions.caption_table(CATS, ("a {}", "{} of {}s {{x}}"))
    assert found.texts == (("a cat", "cat of cats {x}"), ("a dog", "dog of dogs {x}"))
    assert (found.row_indices.tolist(), found.row_indices.dtype) == ([1, 0, 1, 1], np.int32)
    held = captions.caption_table(CATS, ("a {}",), held_out=True)
    assert described(held) == [("a cat",), ("a dog",)]


def test_the_classes_of_both_parts_are_in_both_tables():
    found = images([0, 0, 0, 0, 2, 1], ("cat", "dog", "owl"))
    held = captions.caption_table(found, ("a {}",), held_out=True)
    assert captions.caption_table(found, ("a {}",)).texts == held.texts
    assert held.row_indices.tolist() == [2, 1]


def test_digits_are_called_by_their_names():
    digits = data.load("digits")
    found = captions.caption_table(digits, ("a handwritten {}", "the digit {}"))
    assert found.texts[7] == ("a handwritten seven", "the digit seven")
    assert len(found.texts) == 10 and digits.train_labels is not None
    np.testing.assert_array_equal(found.row_indices, digits.train_labels)


def test_captions_are_kept_once_each():
    found = captions.caption_table(CONDITIONAL)
    assert found.texts == captions.caption_table(CONDITIONAL, ("{caption}",)).texts
    assert found.texts == (("a cat",), ("a dog",), ("",))
    assert found.row_indices.tolist() == [0, 1, 0, 2]
    assert described(captions.caption_table(CONDITIONAL, held_out=True)) == [("a dog",), ("an ant",)]


def test_the_lines_of_a_caption_are_descriptions_of_one_image():
    several = images(texts=["a cat\n a {} on a mat \n\na cat", "a dog", *"abcd"])
    assert captions.caption_table(several).texts[0] == ("a cat", "a {} on a mat")
    drawn = captions.caption_table(several, ("a drawing: {caption}", "{caption}"))
    assert drawn.texts[0] == ("a drawing: a cat", "a drawing: a {} on a mat", "a cat", "a {} on a mat")


def test_labels_and_captions_in_one_template():
    both = images([0, 1, 0, 1, 0, 1], ("ink", "oil"), ["a cat", "a cat", "a cat", "a dog", "a", "b"])
    found = captions.caption_table(both, ("{}: {caption}",))
    assert found.texts == (("ink: a cat",), ("oil: a cat",), ("oil: a dog",))
    assert described(found) == [("ink: a cat",), ("oil: a cat",), ("ink: a cat",), ("oil: a dog",)]
    assert captions.caption_table(both).texts == (("a cat",), ("a dog",))  # captions, where there are both


def test_labels_without_names_are_called_by_their_numbers():
    found = captions.caption_table(images([1, 0, 2, 1, 3, 0]))
    assert found.texts == (("0",), ("1",), ("2",), ("3",))
    assert captions.label_names(CATS) == ("cat", "dog") and captions.label_names(CONDITIONAL) == ()


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        (("a cat",), "'a cat' gives every image the same text; expected {} or {caption}"),
        (("a {}", "a {}"), "'a {}' occurs 2 times"),
        ("a {}", "expected a sequence of texts, got the text 'a {}'"),
        (("a {name}",), "'a {name}' has a field {name}; there are {} and {caption}"),
        (("a {:>9}",), "has a field {:>9}; there are"),
        (("a {caption!r}",), "has a field {caption!r}; there are"),
        (("a {0}",), "has a field {0}; there are"),
        (("a {",), "'a {' is invalid: .*; a literal brace is written twice"),
        (("a {caption}",), "made: the template 'a {caption}' needs captions: there are none"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(templates, words):
    pattern = words.replace("{", r"\{")
    with pytest.raises(ValueError, match=pattern):
        captions.caption_table(CATS, templates)


def test_images_of_which_nothing_is_known_are_refused():
    with pytest.raises(ValueError, match="made: images with neither captions nor labels"):
        captions.caption_table(images(), ("a {}",))
    with pytest.raises(ValueError, match=r"the template 'a \{\}' needs labels: there are none"):
        captions.caption_table(CONDITIONAL, ("a {}",), held_out=True)
