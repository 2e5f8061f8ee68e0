"""What is in a generated picture, against what it was asked to show: of the sources "scenes" and "pairs".

A scene is read as the nearest picture that `data.scenes` can draw, of all there are: each thing in each place.  Where
samples are such pictures and Gaussian noise, this is the most probable one.  It is right of every one of 2,000 fresh
pictures, of things held out too, and of these with noise of a standard deviation of 20 and of 40 levels; the error
says how far a sample is from any picture.

A pair's halves are read by the classifier of digits: in 98.0 % of the 1,000 test pictures both are right.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import pairs, scenes
from ddpm_jax.metrics import classifier

CHUNK = 64  # pictures that are compared at once with 4,452 layouts of two things


class RecognisedScenes(NamedTuple):
    """What n pictures show.

    Attributes:
        scenes: the scene of the nearest picture, of each.
        errors: float64 [n], the root mean square distance to it, in levels: what noise or what is no scene leaves.
    """

    scenes: tuple[scenes.Scene, ...]
    errors: np.ndarray


class Agreement(NamedTuple):
    """What n pictures have of the scenes that were asked for, their things matched in the better of two orders.

    Attributes:
        size, colour, shape: float64 [n], of how many of the two things it is right: 0, 1/2 or 1.
        relation: bool [n]: things lie beside each other, or above, as asked, and match better in this order than in the
            other.  Pictures drawn without regard to the text reach 1/4 at most.
        everything: bool [n], the scene is the one asked for.
    """

    size: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    relation: np.ndarray
    everything: np.ndarray


def recognise_scenes(images: np.ndarray) -> RecognisedScenes:
    """The nearest scenes of pictures uint8 or float [n, 16, 16, 3], values 0 .. 255; about 3 ms each.

    With c the colour and M the pixels of a thing, on black,

        |x - picture|^2 = |x|^2 + sum over both things of  sum over M of  (|c|^2 - 2 c.x)

    so the best shape and colour in every place is found alone, and the best two places by adding two numbers.

    Raises:
        ValueError: if images are not as described.
    """
    if images.ndim != 4 or images.shape[1:] != (scenes.SIDE, scenes.SIDE, 3) or not len(images):
        raise ValueError(f"recognise_scenes: expected pictures [n, 16, 16, 3], n at least 1, got shape {images.shape}")
    parts = [_recognise(images[i : i + CHUNK].astype(np.float64)) for i in range(0, len(images), CHUNK)]
    return RecognisedScenes(
        tuple(scene for found, _ in parts for scene in found), np.concatenate([part[1] for part in parts])
    )


def recognise_pairs(images: np.ndarray) -> tuple[pairs.Pair, ...]:
    """The most probable digits in both halves of pictures uint8 [n, 8, 16, 1], values 0 .. 16.

    Raises:
        ValueError: if images are not as described.
    """
    if images.shape[1:] != (8, 16, 1):
        raise ValueError(f"recognise_pairs: expected pictures [n, 8, 16, 1], got shape {images.shape}")
    digit_classifier = classifier.load("digits")
    left, right = (
        digit_classifier(half).probabilities.argmax(axis=1).tolist() for half in (images[:, :, :8], images[:, :, 8:])
    )
    return tuple(pairs.Pair(one, other) for one, other in zip(left, right, strict=True))


def agreement(requested: Sequence[scenes.Scene], recognised: Sequence[scenes.Scene]) -> Agreement:
    """How far what was found in pictures is what was asked for, picture by picture.

    Raises:
        ValueError: if there are not as many of both.
    """
    if len(requested) != len(recognised):
        raise ValueError(
            f"agreement: expected as many scenes found as asked for, got {len(recognised)} and {len(requested)}"
        )
    things, others = (
        np.array([(s.first, s.second) for s in part]).reshape(-1, 2, 3) for part in (requested, recognised)
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
    """Where one thing can be, and where two things of a picture can."""

    sizes: list[str]  # of each place of one thing
    masks: np.ndarray  # float64 [places, shapes, 256]
    first: np.ndarray  # [layouts], of places
    second: np.ndarray
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
    """The scenes of pictures float64 [n, 16, 16, 3], and their errors."""
    layouts, appearances = _layouts(), [*itertools.product(scenes.SHAPES, scenes.COLOURS)]
    colours = np.array([*scenes.COLOURS.values()], np.float64)
    pixels = (colours**2).sum(1) - 2 * x.reshape(len(x), -1, 3) @ colours.T  # [n, 256, colours]
    costs = np.einsum("ksp,npc->nksc", layouts.masks, pixels, optimize=True).reshape(len(x), -1, len(appearances))
    best, appearance = costs.min(2), costs.argmin(2)
    sums = best[:, layouts.first] + best[:, layouts.second]
    found, which = [], sums.argmin(1)
    for row, layout in zip(appearance, which, strict=True):
        things = []
        for place in (layouts.first[layout], layouts.second[layout]):
            shape, colour = appearances[row[place]]
            things.append(scenes.SceneObject(layouts.sizes[place], colour, shape))
        found.append(scenes.Scene(things[0], scenes.RELATIONS[layouts.relation[layout]], things[1]))
    # rounding may leave a picture that is met exactly a square below 0
    return found, np.sqrt(np.maximum(sums.min(1) + (x**2).sum((1, 2, 3)), 0) / x[0].size)
