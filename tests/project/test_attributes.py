"""Attributes: what is read of generated pictures is what was drawn, and an agreement is counted as by hand."""

import itertools

import numpy as np
import pytest

from benchmarks import attributes
from ddpm_jax import data
from ddpm_jax.data import scenes

SCENES = data.load("scenes")
ASKED = [attributes.parse_scene((SCENES.test_captions or ())[i].split("\n")[0]) for i in range(0, 1000, 4)]
SQUARE = "a small red square left of a large blue circle"


def scene(text):
    return attributes.parse_scene(text)


def agreement(requested, found):
    """The five numbers of one picture."""
    return tuple(float(part[0]) for part in attributes.agreement([scene(requested)], [scene(found)]))


@pytest.mark.parametrize("std", [0, 10, 20, 40])
def test_fresh_pictures_of_what_is_held_out_are_read_rightly(std):
    draw = np.random.RandomState(std)
    fresh = scenes.render_scenes(draw, ASKED)
    noisy = np.clip(np.rint(fresh + std * draw.standard_normal(fresh.shape)), 0, 255).astype(np.uint8)
    assert attributes.recognise_scenes(noisy).scenes == tuple(ASKED)


def test_the_error_is_the_noise():
    draw = np.random.RandomState(1)
    fresh = scenes.render_scenes(draw, ASKED)
    assert attributes.recognise_scenes(fresh).distances.max() == 0
    rmse = attributes.recognise_scenes(fresh + 20 * draw.standard_normal(fresh.shape)).distances
    # The mean of 250 x 768 squares has a standard error of 20 sqrt(2 / 192000) / 2 = 0.032.
    assert abs(np.sqrt(np.mean(rmse**2)) - 20) < 4 * 0.032


def test_the_nearest_picture_is_the_nearest_of_all():
    """All pictures of two things of one look and size each, against noise in which there is nothing."""
    noise = np.random.RandomState(2).uniform(0, 255, (3, 16, 16, 3))
    found = attributes.recognise_scenes(noise)
    for picture, read, error in zip(noise, found.scenes, found.distances, strict=True):
        possible = len(scenes.object_positions(read.first_object.size, read.relation, read.second_object.size))
        drawn = scenes.render_scenes(np.random.RandomState(3), [read] * 20 * possible)
        assert len(np.unique(drawn, axis=0)) == possible
        distances = np.sqrt(((drawn - picture) ** 2).mean((1, 2, 3)))
        assert distances.min() == pytest.approx(error, rel=1e-12)
        some = [scenes.Scene(one, way, other) for one, way, other in zip(*drawn_things(), strict=True)]
        others = scenes.render_scenes(np.random.RandomState(4), some)
        assert np.sqrt(((others - picture) ** 2).mean((1, 2, 3))).min() >= error


def drawn_things():
    """Firsts, relations and seconds of some 1,300 scenes of all kinds."""
    things = [scenes.SceneObject(*parts) for parts in itertools.product(scenes.WIDTHS, scenes.COLOURS, scenes.SHAPES)]
    every = [*itertools.product(things, scenes.RELATIONS, things)][::7][:1300]
    return zip(*every, strict=True)


def test_an_agreement_is_counted_as_by_hand():
    same = (1, 1, 1, 1, 1)
    assert agreement(SQUARE, SQUARE) == agreement(SQUARE, "a large blue circle right of a small red square") == same
    # the two things are there, but the other way round; or above each other
    assert agreement(SQUARE, "a large blue circle left of a small red square") == (1, 1, 1, 0, 0)
    assert agreement(SQUARE, "a small red square above a large blue circle") == (1, 1, 1, 0, 0)
    # one colour, one shape, both sizes
    assert agreement(SQUARE, "a small green square left of a large blue circle") == (1, 0.5, 1, 1, 0)
    assert agreement(SQUARE, "a small red square left of a large blue cross") == (1, 1, 0.5, 1, 0)
    assert agreement(SQUARE, "a large red square left of a small blue circle") == (0, 1, 1, 1, 0)
    # colours bound to the wrong shapes: it matches as well in either order, so it is not left of anything
    swapped = agreement("a small red square above a small blue circle", "a small blue square above a small red circle")
    assert swapped == (1, 0, 1, 0, 0)
    # nothing is right but the sizes, in the other order
    assert agreement(SQUARE, "a large white cross left of a small green triangle") == (1, 0, 0, 0, 0)


def test_pictures_drawn_without_regard_to_the_text_have_the_relation_in_less_than_a_quarter():
    other = [ASKED[i] for i in np.random.RandomState(6).permutation(len(ASKED))]
    found = attributes.agreement(ASKED, other)
    # of 250, a share of 1/4 has a standard error of 0.027
    assert found.relation.mean() < 0.25 + 4 * 0.027 and found.everything.mean() < 0.05


def test_pairs_of_held_out_digits_are_read():
    made, names = data.load("pairs"), data.load("digits").label_names
    requested = [attributes.parse_pair(text.split("\n")[0], names) for text in made.test_captions or ()]
    found = attributes.recognise_pairs(np.asarray(made.test))
    right = np.array(requested) == np.array(found)
    # The classifier is right of 99.33 % of the 297 digits; of 2,000 draws from them the standard error is 0.0018.
    assert abs(right.mean() - 0.9933) < 4 * 0.0018
    assert right.all(1).mean() == pytest.approx(0.98, abs=0.005)


def test_what_is_not_such_a_picture_is_refused():
    with pytest.raises(ValueError, match=r"expected images \[n, 16, 16, 3\], n at least 1, got shape \(2, 8, 8, 3\)"):
        attributes.recognise_scenes(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected images \[n, 8, 16, 1\], got shape \(2, 8, 8, 1\)"):
        attributes.recognise_pairs(np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="as many recognised as requested scenes, got 1 and 2"):
        attributes.agreement(ASKED[:2], ASKED[:1])
