"""The source "scenes": generated pictures of two objects side by side or one above the other, with captions.

An object is small or large, has one of six colours and one of four shapes.  Either can be named first, as in
"a small red square left of a large blue circle" and "a large blue circle right of a small red square", so the order of
the words matters.

Held out from training, and all of the test pictures, are

    things      objects of the four HELD_OUT_LOOKS of 24 (a colour and a shape), small and large: training has the
                colour and the shape, but never together;
    pairings    38 of the 190 pairs of the other 20 looks: training has both, but never together.

The HELD_OUT_PHRASINGS are in no caption.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.dataset import Dataset

SIDE = 16
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (160, 50, 190),
    "white": (240, 240, 240),
}
WIDTHS = {"small": 5, "large": 7}
ROW_WIDTHS = {
    ("square", "small"): (5, 5, 5, 5, 5),
    ("circle", "small"): (3, 5, 5, 5, 3),
    ("triangle", "small"): (1, 1, 3, 3, 5),
    ("cross", "small"): (1, 1, 5, 1, 1),
    ("square", "large"): (7, 7, 7, 7, 7, 7, 7),
    ("circle", "large"): (3, 5, 7, 7, 7, 5, 3),
    ("triangle", "large"): (1, 1, 3, 3, 5, 5, 7),
    ("cross", "large"): (1, 1, 1, 7, 1, 1, 1),
}
"""Pixels of an object in each of its rows, centred."""
SHAPES = ("square", "circle", "triangle", "cross")
RELATIONS = ("left of", "above")
OPPOSITE = {"left of": "right of", "above": "below"}
MAX_OFFSET = 2
"""Largest offset in pixels of two objects' centres, across their direction."""

PHRASINGS = (
    "{first} {relation} {second}",
    "{first} is {relation} {second}",
    "{first} stands {relation} {second}",
    "{relation} {second} is {first}",
)
HELD_OUT_PHRASINGS = (
    "see {first} {relation} {second}",
    "{relation} {second} lies {first}",
    "{second} with {first} {relation} it",
)
HELD_OUT_LOOKS = (("red", "triangle"), ("green", "circle"), ("blue", "cross"), ("yellow", "square"))
SEEN_LOOKS = tuple(pair for pair in itertools.product(COLOURS, SHAPES) if pair not in HELD_OUT_LOOKS)
NUM_TRAIN, NUM_TEST = 6000, 500  # pictures; NUM_TEST of each kind


class SceneObject(NamedTuple):
    """One of the two objects of a picture."""

    size: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """The content of a picture; the relation is "left of" or "above", never the other way round."""

    first_object: SceneObject
    relation: str
    second_object: SceneObject


def make_dataset() -> Dataset:
    """The data set: 6,000 training and 1,000 test pictures uint8 [16, 16, 3], 500 of each kind; always the same.

    A caption has a line for each of the `descriptions` of a scene.  Pictures of one scene may have other positions.
    """
    kinds: dict[str, list[tuple]] = {"seen": [], "pairing": [], "thing": []}
    for pair in itertools.permutations(itertools.product(COLOURS, SHAPES), 2):
        kinds[novelty(*pair)].append(pair)
    train = _random_scenes(np.random.RandomState(0), kinds["seen"], NUM_TRAIN)
    test = _random_scenes(np.random.RandomState(1), kinds["pairing"], NUM_TEST)
    test += _random_scenes(np.random.RandomState(1), kinds["thing"], NUM_TEST)
    captions, test_captions = (tuple("\n".join(descriptions(scene)) for scene in part) for part in (train, test))
    return Dataset(
        render_scenes(np.random.RandomState(2), train), render_scenes(np.random.RandomState(3), test),
        None, None, 256, "scenes",
        train_captions=captions, test_captions=test_captions,
    )  # fmt: skip


def novelty(one: tuple[str, str], other: tuple[str, str]) -> str:
    """Novelty of two looks (colour, shape): "thing" if either is held out, "pairing" if the pair is, else "seen"."""
    if one in HELD_OUT_LOOKS or other in HELD_OUT_LOOKS:
        return "thing"
    # No picture has one look twice; each look is in three or four of the held-out pairings.
    return "seen" if one != other and (SEEN_LOOKS.index(one) + SEEN_LOOKS.index(other)) % 5 else "pairing"


def descriptions(scene: Scene, phrasings: Sequence[str] = PHRASINGS) -> tuple[str, ...]:
    """The texts of a scene: each phrasing, from the first and from the second object."""
    first_object, second_object = f"a {' '.join(scene.first_object)}", f"a {' '.join(scene.second_object)}"
    orders = (first_object, scene.relation, second_object), (second_object, OPPOSITE[scene.relation], first_object)
    return tuple(
        phrasing.format(first=one, relation=relation, second=other)
        for phrasing in phrasings
        for one, relation, other in orders
    )


def render_scenes(rng: np.random.RandomState, scenes: Sequence[Scene]) -> np.ndarray:
    """Pictures of scenes on black, uint8 [N, 16, 16, 3], at random `object_positions`."""
    images = np.zeros((len(scenes), SIDE, SIDE, 3), np.uint8)
    for picture, scene, where in zip(images, scenes, rng.random_sample(len(scenes)), strict=True):
        possible = object_positions(scene.first_object.size, scene.relation, scene.second_object.size)
        things, corners = (scene.first_object, scene.second_object), possible[int(where * len(possible))]
        for thing, (top, left) in zip(things, corners, strict=True):
            width, mask = WIDTHS[thing.size], object_mask(thing.shape, thing.size)
            picture[top : top + width, left : left + width][mask] = COLOURS[thing.colour]
    return images


@functools.cache
def object_mask(shape: str, size: str) -> np.ndarray:
    """The pixels of an object, bool [width, width]."""
    rows = np.array(ROW_WIDTHS[shape, size])[:, None]
    return np.abs(np.arange(WIDTHS[size]) - WIDTHS[size] // 2) <= rows // 2


@functools.cache
def object_positions(first_size: str, relation: str, second_size: str) -> np.ndarray:
    """All positions of two objects of these sizes: two corners (top, left) each, int [N, 2, 2].

    At least a row or a column of black is between them, and their offset is at most `MAX_OFFSET`.
    """
    widths = WIDTHS[first_size], WIDTHS[second_size]
    ends = [range(SIDE - width + 1) for width in widths]
    apart = [(a, b) for a, b in itertools.product(*ends) if a + widths[0] < b]
    off = (widths[1] - widths[0]) // 2
    aligned = [(a, b) for a, b in itertools.product(*ends) if abs(b + off - a) <= MAX_OFFSET]
    corners = [((a, c), (b, d)) for (a, b), (c, d) in itertools.product(apart, aligned)]
    return np.array(corners)[..., :: 1 if relation == "above" else -1]


def _random_scenes(rng: np.random.RandomState, looks: Sequence[tuple], count: int) -> list[Scene]:
    indices = rng.randint(len(looks), size=count)
    sizes, relations = rng.randint(2, size=(count, 2)), rng.randint(2, size=count)
    names = tuple(WIDTHS)
    return [
        Scene(SceneObject(names[one], *looks[i][0]), RELATIONS[relation], SceneObject(names[other], *looks[i][1]))
        for i, (one, other), relation in zip(indices, sizes, relations, strict=True)
    ]
