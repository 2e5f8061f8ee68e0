"""Scenes: pictures are what their captions say, and what is held out is in no training picture."""

import hashlib
import itertools
import re

import numpy as np
import pytest

from benchmarks.attributes import parse_scene
from ddpm_jax import data
from ddpm_jax.data import captions, scenes

SCENES = data.load("scenes")
SAID = {part: [text.split("\n") for text in texts or ()] for part, texts in
        (("train", SCENES.train_captions), ("test", SCENES.test_captions))}  # fmt: skip


def looks(text):
    """The colours and shapes that a text names, in its order."""
    return re.findall(r"(?:small|large) (\w+) (\w+)", text)


def pairs(part):
    return {frozenset(looks(lines[0])) for lines in SAID[part]}


def test_the_pictures_and_captions_never_change():
    pixels = np.concatenate([SCENES.train, SCENES.test]).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "2f4a6c719cb675d849f1fba698e7ec07deaaee174f7fd509c25851ec9b34560c"
    texts = "\n\n".join(text for part in SAID.values() for lines in part for text in lines)
    assert (
        hashlib.sha256(texts.encode()).hexdigest() == "2291ed702a3d255ebfc7465da17291f3273540d0c97884fecf7bd64a41ae3da6"
    )
    assert (SCENES.train.shape, SCENES.test.shape, SCENES.levels) == ((6000, 16, 16, 3), (1000, 16, 16, 3), 256)


def middle(picture, colour):
    """(down, right) of the pixels of a colour."""
    return np.argwhere(np.all(picture == scenes.COLOURS[colour], axis=-1)).mean(0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_things_lie_as_every_line_of_the_caption_says(part):
    """Found by their colours, so of the scenes in which these differ."""
    count_described = 0
    for picture, lines in zip(getattr(SCENES, part), SAID[part][:1000], strict=False):
        if len({colour for colour, _ in looks(lines[0])}) == 1:
            continue
        for i, text in enumerate(lines):
            # three phrasings begin with what is placed, and one with what it is placed by
            (one, _), (other, _) = looks(text) if i < 6 else looks(text)[::-1]
            (way,) = re.findall("left of|right of|above|below", text)
            down, right = middle(picture, other) - middle(picture, one)
            across = "left of" if right > 0 else "right of"
            assert way == (across if abs(right) > abs(down) else "above" if down > 0 else "below"), text
            count_described += 1
    assert count_described > 6000


def test_things_have_their_size_and_are_apart():
    """Their pixels, counted by hand from a drawing of each."""
    pixels = {"square": (25, 49), "circle": (21, 37), "triangle": (13, 25), "cross": (9, 13)}
    for picture, lines in zip(SCENES.train[:500], SAID["train"], strict=False):
        found = re.findall(r"(small|large) (\w+) (\w+)", lines[0])
        counts = [pixels[shape][size == "large"] for size, _, shape in found]
        assert np.any(picture, axis=-1).sum() == sum(counts), lines[0]
        if found[0][1] != found[1][1]:
            for (_, colour, _), count in zip(found, counts, strict=True):
                assert np.all(picture == scenes.COLOURS[colour], axis=-1).sum() == count


def test_shapes_of_one_size_can_be_told_apart():
    for size in scenes.WIDTHS:
        masks = [scenes.object_mask(shape, size) for shape in scenes.SHAPES]
        assert min(np.sum(a != b) for a, b in itertools.combinations(masks, 2)) >= 4


def test_no_training_picture_has_what_is_held_out():
    named = {appearance for pair in pairs("train") for appearance in pair}
    every = set(itertools.product(scenes.COLOURS, scenes.SHAPES))
    assert every - named == set(scenes.HELD_OUT_LOOKS) and len(scenes.HELD_OUT_LOOKS) == 4
    # 152 of the 190 pairs of 20 are trained on, and all 38 others are tested.
    assert len(pairs("train")) == 152
    tested = {pair for pair in pairs("test") if not pair & set(scenes.HELD_OUT_LOOKS)}
    assert len(tested) == 38 and not tested & pairs("train")
    drawn = [parse_scene(lines[0]) for part in ("train", "test") for lines in SAID[part]]
    kinds = [scenes.novelty(scene.first_object[1:], scene.second_object[1:]) for scene in drawn]
    assert kinds == ["seen"] * 6000 + ["pairing"] * 500 + ["thing"] * 500


def test_what_is_trained_on_has_every_part_of_what_is_held_out():
    """Each colour and shape of a held-out thing, and each thing of a held-out pairing, with each relation and size."""
    texts = [lines[0] for lines in SAID["train"]]
    for size, (colour, shape), way in itertools.product(scenes.WIDTHS, scenes.SEEN_LOOKS, scenes.RELATIONS):
        assert any(f"{size} {colour} {shape} {way}" in text for text in texts)
    shares = [np.mean([phrase in text for text in texts]) for phrase in ("left of", "above", "a small", "large")]
    # two of size 6000 with p = 1/2 have a standard error of 0.0065; a thing of the two is small in 3 of 4 scenes
    np.testing.assert_allclose(shares, [0.5, 0.5, 0.75, 0.75], atol=4 * 0.0065)


def test_every_description_is_understood_and_means_one_scene():
    meant: dict[str, scenes.Scene] = {}
    things = [scenes.SceneObject(*parts) for parts in itertools.product(scenes.WIDTHS, ("red", "white"), scenes.SHAPES)]
    for first_object, second_object, way in itertools.product(things, things, scenes.RELATIONS):
        scene = scenes.Scene(first_object, way, second_object)
        texts = scenes.descriptions(scene) + scenes.descriptions(scene, scenes.HELD_OUT_PHRASINGS)
        assert len(set(texts)) == 14
        for text in texts:
            assert parse_scene(text) == scene == meant.setdefault(text, scene)


def test_held_out_phrasings_are_in_no_caption():
    trained = {text for lines in SAID["train"] for text in lines}
    scene = parse_scene("a small red square left of a large blue circle")
    assert set(scenes.descriptions(scene)) <= trained
    assert "a large blue circle right of a small red square" in trained
    held = {
        text
        for lines in SAID["train"]
        for text in scenes.descriptions(parse_scene(lines[0]), scenes.HELD_OUT_PHRASINGS)
    }
    assert len(held) > 10000 and not held & trained
    assert max(map(len, trained | held)) <= 64  # what a text encoder of 64 bytes reads


def test_the_captions_of_scenes_make_a_table_of_all_their_descriptions():
    table = captions.caption_table(SCENES)
    assert {len(row) for row in table.texts} == {8}
    assert table.texts[table.row_indices[17]] == tuple(SAID["train"][17])
    assert len(table.texts) == len({text for text in SCENES.train_captions or ()})


def test_fresh_pictures_of_a_scene_use_every_place():
    scene = parse_scene("a large red square left of a large blue circle")
    made = scenes.render_scenes(np.random.RandomState(5), [scene] * 3000)
    # 3 ways across; 10 + 9 + 9 + 8 + 8 ways down, 0, 1 or 2 askew
    assert len(np.unique(made, axis=0)) == 3 * 44 == len(scenes.object_positions("large", "left of", "large"))


def test_texts_and_options_that_mean_nothing_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^expected a description of a scene, as 'a small red .* blue circle', got 'a red",
    ):
        parse_scene("a red square above a blue circle")
    with pytest.raises(ValueError, match="the scenes have 256 levels, got levels=17"):
        data.load("scenes", levels=17)
    with pytest.raises(ValueError, match=r"the scenes have 256 levels, got levels=None, range=\(0, 1\)"):
        data.load("scenes", value_range=(0, 1))
    with pytest.raises(ValueError, match="'scenes' has neither"):
        data.load("scenes", resolution=(8,))
