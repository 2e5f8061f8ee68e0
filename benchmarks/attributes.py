"""What texts of the sources "scenes" and "pairs" ask for, what generated images show, and whether the two agree.

A scene is recognised as the nearest image that `data.scenes` can draw, of all objects and positions: the most probable
one for an image with Gaussian noise.  It is correct for all of 2,000 new images, held-out objects included, and for
these with noise of a standard deviation of 20 and 40 levels; the error is the distance of a sample from any scene.

A pair's halves are recognised by the digit classifier: both are correct in 98.0 % of the 1,000 test images.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import pairs, scenes
from ddpm_jax.metrics import classifier

CHUNK = 64  # images that are compared at once with 4,452 layouts of two objects


class RecognisedScenes(NamedTuple):
    """The scenes of n images.

    Attributes:
        scenes: the nearest scene of each image.
        distances: float64 [n], the root mean square distance to it, in levels.
    """

    scenes: tuple[scenes.Scene, ...]
    distances: np.ndarray


class Agreement(NamedTuple):
    """Agreement of n images with the requested scenes, their objects matched in the better of two orders.

    Attributes:
        size, colour, shape: float64 [n], the share of the two objects for which it is correct: 0, 1/2 or 1.
        relation: bool [n]: side by side or one above the other as requested, and a better match in this order than in
            the other.  Images that ignore the text reach 1/4 at most.
        everything: bool [n], the scene is the requested one.
    """

    size: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    relation: np.ndarray
    everything: np.ndarray


def parse_scene(text: str) -> scenes.Scene:
    """The scene that a text describes in any phrasing, held out or not.

    Raises:
        ValueError: if it is in none of the phrasings.
    """
    for pattern in _phrasing_patterns():
        match = pattern.fullmatch(text)
        if match is not None:
            first_object, second_object = (scenes.SceneObject(*match[name].split()) for name in ("first", "second"))
            if match["relation"] in scenes.RELATIONS:
                return scenes.Scene(first_object, match["relation"], second_object)
            relation = next(way for way, back in scenes.OPPOSITE.items() if back == match["relation"])
            return scenes.Scene(second_object, relation, first_object)
    example = "a small red square above a large blue circle"
    raise ValueError(f"expected a description of a scene, as {example!r}, got {text!r}")


def parse_pair(text: str, names: tuple[str, ...]) -> pairs.Pair:
    """The pair that a text describes, one of its `descriptions`.

    Raises:
        ValueError: if it describes none.
    """
    for pair in (pairs.Pair(left, right) for left in range(10) for right in range(10)):
        if text in pairs.descriptions(pair, names):
            return pair
    example = pairs.descriptions(pairs.Pair(3, 5), names)[0]
    raise ValueError(f"expected a description of a pair, as {example!r}, got {text!r}")


def recognise_scenes(images: np.ndarray) -> RecognisedScenes:
    """The nearest scenes of images uint8 or float [n, 16, 16, 3], values 0 .. 255; about 3 ms each.

    With c the colour and M the pixels of an object, on black,

        |x - image|^2 = |x|^2 + sum over both objects of  sum over M of  (|c|^2 - 2 c.x)

    so the best shape and colour is found for each position by itself, and the best two positions by a sum.

    Raises:
        ValueError: if images are not as described.
    """
    if images.ndim != 4 or images.shape[1:] != (scenes.SIDE, scenes.SIDE, 3) or not len(images):
        raise ValueError(f"recognise_scenes: expected images [n, 16, 16, 3], n at least 1, got shape {images.shape}")
    parts = [_recognise(images[i : i + CHUNK].astype(np.float64)) for i in range(0, len(images), CHUNK)]
    return RecognisedScenes(
        tuple(scene for found, _ in parts for scene in found), np.concatenate([part[1] for part in parts])
    )


def recognise_pairs(images: np.ndarray) -> tuple[pairs.Pair, ...]:
    """The most probable digits in both halves of images uint8 [n, 8, 16, 1], values 0 .. 16.

    Raises:
        ValueError: if images are not as described.
    """
    if images.shape[1:] != (8, 16, 1):
        raise ValueError(f"recognise_pairs: expected images [n, 8, 16, 1], got shape {images.shape}")
    digit_classifier = classifier.load("digits")
    left, right = (
        digit_classifier(half).probabilities.argmax(axis=1).tolist() for half in (images[:, :, :8], images[:, :, 8:])
    )
    return tuple(pairs.Pair(one, other) for one, other in zip(left, right, strict=True))


def agreement(requested: Sequence[scenes.Scene], recognised: Sequence[scenes.Scene]) -> Agreement:
    """The agreement of recognised with requested scenes, for each image.

    Raises:
        ValueError: if their numbers differ.
    """
    if len(requested) != len(recognised):
        raise ValueError(
            f"agreement: expected as many recognised as requested scenes, got {len(recognised)} and {len(requested)}"
        )
    things, others = (
        np.array([(s.first_object, s.second_object) for s in seq]).reshape(-1, 2, 3) for seq in (requested, recognised)
    )
    straight, crossed = things == others, things == others[:, ::-1]
    margin = straight.sum((1, 2)) - crossed.sum((1, 2))
    right = np.where((margin >= 0)[:, None, None], straight, crossed)
    same_way = np.array(
        [one.relation == other.relation for one, other in zip(requested, recognised, strict=True)], bool
    )
    size, colour, shape = right.mean(1).T
    return Agreement(size, colour, shape, same_way & (margin > 0), same_way & straight.all((1, 2)))


class _Layouts(NamedTuple):
    """The positions of one object, and the layouts of two."""

    sizes: list[str]  # of each position of one object
    masks: np.ndarray  # float64 [positions, shapes, 256]
    first_positions: np.ndarray  # [layouts], indices of positions
    second_positions: np.ndarray
    relation: np.ndarray  # [layouts], of scenes.RELATIONS


@functools.cache
def _layouts() -> _Layouts:
    numbers, masks = {}, []
    for size, width in scenes.WIDTHS.items():
        for top, left in itertools.product(range(scenes.SIDE - width + 1), repeat=2):
            numbers[size, top, left] = len(masks)
            masks.append(np.zeros((len(scenes.SHAPES), scenes.SIDE, scenes.SIDE)))
            for drawn, shape in zip(masks[-1], scenes.SHAPES, strict=True):
                drawn[top : top + width, left : left + width] = scenes.object_mask(shape, size)
    rows = [
        (numbers[size, *corner], numbers[other, *other_corner], scenes.RELATIONS.index(way))
        for size, way, other in itertools.product(scenes.WIDTHS, scenes.RELATIONS, scenes.WIDTHS)
        for corner, other_corner in scenes.object_positions(size, way, other).tolist()
    ]
    masks = np.reshape(masks, (len(masks), len(scenes.SHAPES), -1))
    return _Layouts([size for size, *_ in numbers], masks, *np.array(rows).T)


def _recognise(x: np.ndarray) -> tuple[list[scenes.Scene], np.ndarray]:
    """The scenes of images float64 [n, 16, 16, 3], and their distances."""
    layouts, appearances = _layouts(), [*itertools.product(scenes.SHAPES, scenes.COLOURS)]
    colours = np.array([*scenes.COLOURS.values()], np.float64)
    pixels = (colours**2).sum(1) - 2 * x.reshape(len(x), -1, 3) @ colours.T  # [n, 256, colours]
    costs = np.einsum("ksp,npc->nksc", layouts.masks, pixels, optimize=True).reshape(len(x), -1, len(appearances))
    best, appearance = costs.min(2), costs.argmin(2)
    sums = best[:, layouts.first_positions] + best[:, layouts.second_positions]
    found, which = [], sums.argmin(1)
    for row, layout in zip(appearance, which, strict=True):
        things = []
        for position in (layouts.first_positions[layout], layouts.second_positions[layout]):
            shape, colour = appearances[row[position]]
            things.append(scenes.SceneObject(layouts.sizes[position], colour, shape))
        found.append(scenes.Scene(things[0], scenes.RELATIONS[layouts.relation[layout]], things[1]))
    # rounding may make the square of an exact match negative
    return found, np.sqrt(np.maximum(sums.min(1) + (x**2).sum((1, 2, 3)), 0) / x[0].size)


@functools.cache
def _phrasing_patterns() -> tuple[re.Pattern[str], ...]:
    thing = rf"({'|'.join(scenes.WIDTHS)}) ({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})"
    fields = {"first": f"a (?P<first>{thing})", "second": f"a (?P<second>{thing})"}
    relation = f"(?P<relation>{'|'.join([*scenes.RELATIONS, *scenes.OPPOSITE.values()])})"
    phrasings = (*scenes.PHRASINGS, *scenes.HELD_OUT_PHRASINGS)
    return tuple(re.compile(text.format(**fields, relation=relation)) for text in phrasings)
