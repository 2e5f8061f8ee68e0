"""The classifiers inside the package: do they know digits, and do distances of their features say what one sees?"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import data
from ddpm_jax.keys import from_seed
from ddpm_jax.metrics import classifier
from ddpm_jax.metrics.frechet import frechet_distance, moments
from scripts import make_classifier

TILE = classifier.TILE


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def extractor():
    return classifier.load("digits")


@pytest.fixture(scope="module")
def reference(digits, extractor):
    """What it makes of the training images."""
    return extractor(digits.train)


def like_mnist(images):
    """Digits 8x8 as 20x20 pixels within 28x28, of 256 levels."""
    large = [Image.fromarray((image[..., 0] * 15.9375).astype(np.uint8)).resize((20, 20)) for image in images]
    return np.pad(np.stack([np.asarray(one) for one in large])[..., None], ((0, 0), (4, 4), (4, 4), (0, 0)))


def some_images(name, digits):
    """300 images for the classifier of this name: more than a tile."""
    images = digits.train[:300]
    return images if name == "digits" else like_mnist(images)


each = pytest.mark.parametrize("name", ["digits", "mnist"])


# What they know


def test_held_out_digits_are_recognised_and_noise_is_nothing_to_be_sure_of(digits, extractor):
    probabilities = extractor(digits.test).probabilities
    assert (probabilities.argmax(1) == digits.test_labels).mean() > 0.97
    assert (probabilities.max(1) > classifier.CONFIDENT).mean() > 0.9
    noise = np.random.default_rng(0).integers(0, 17, digits.test.shape).astype(np.uint8)
    assert (extractor(noise).probabilities.max(1) > classifier.CONFIDENT).mean() < 0.5


def test_mnist_recognises_the_digits_of_another_data_set(digits):
    """Other writers, another scanner, an eighth of the pixels, and never trained on."""
    found = classifier.load("mnist")(like_mnist(digits.test)).probabilities.argmax(1)
    assert (found == digits.test_labels).mean() > 0.75


@each
def test_the_file_says_what_the_docstring_says(name):
    record = classifier.load(name).record
    assert record["held_out_accuracy"] >= {"digits": 0.98, "mnist": 0.99}[name]
    assert f"{record['held_out_accuracy']:.2%}".replace("%", " %") in str(classifier.Classifier.__doc__)


def test_it_was_trained_on_the_digits_of_the_package(digits, extractor):
    own = make_classifier.data_sha256(digits.train, digits.train_labels)
    assert extractor.record["data_sha256"] == own != make_classifier.data_sha256(digits.test, digits.test_labels)


# Features


@each
def test_features_are_of_an_image_alone_however_many_are_asked_for(name, digits):
    images, extractor = some_images(name, digits), classifier.load(name)
    whole = extractor(images)
    for n in (1, 7, TILE, TILE + 1):
        for part, all_of_it in zip(extractor(images[:n]), whole, strict=True):
            np.testing.assert_array_equal(part, all_of_it[:n])
    others = np.roll(images, 1, axis=0)
    others[17] = images[17]
    np.testing.assert_array_equal(extractor(others).features[17], whole.features[17])


@each
def test_integers_and_the_same_values_as_floats_have_the_same_bits(name, digits):
    images, extractor = some_images(name, digits), classifier.load(name)
    whole = extractor(images)
    for kind in (np.uint16, np.float32):
        for found, expected in zip(extractor(images.astype(kind)), whole, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)


def test_floats_are_not_rounded(digits, extractor):
    between = np.minimum(digits.test + np.float32(0.4), 16)
    assert np.abs(extractor(between).features - extractor(digits.test).features).max(1).min() > 0


@each
def test_the_covariance_has_full_rank_and_every_feature_both_signs(name, digits):
    images = digits.train if name == "digits" else like_mnist(digits.train)
    features = classifier.load(name)(images).features
    values = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))
    assert values[0] > 1e-6 * values[-1]
    assert ((features > 0).mean(0) > 0.01).all() and ((features < 0).mean(0) > 0.01).all()


# Distances


def distance(features, reference):
    return frechet_distance(moments(features), moments(reference))


@pytest.fixture(scope="module")
def held_out_distance(digits, extractor, reference):
    """Of held-out images against the training images."""
    return distance(extractor(digits.test).features, reference.features)


def test_held_out_images_are_as_far_away_as_training_images_are_from_each_other(digits, reference, held_out_distance):
    """Were it trained too closely, the training images' features would be of another law.

    The 297 held-out images were drawn class by class, so the fifths of the training images (300 each) are too; one
    fifth's distance scatters by 0.5 about 3.5.
    """
    count = len(digits.train)
    order = np.lexsort((np.random.default_rng(0).random(count), digits.train_labels))
    fifths = [np.isin(np.arange(count), order[i::5]) for i in range(5)]
    expected = np.mean([distance(reference.features[one], reference.features[~one]) for one in fifths])
    assert held_out_distance == pytest.approx(expected, rel=0.4)


def test_the_distance_grows_with_noise(digits, extractor, reference, held_out_distance):
    eps = np.random.default_rng(0).normal(size=digits.test.shape)
    found = [held_out_distance]
    for std in (0.05, 0.1, 0.2, 0.4):
        noisy = np.clip(digits.test + 16 * std * eps, 0, 16).astype(np.float32)
        found.append(distance(extractor(noisy).features, reference.features))
    assert found == sorted(found)
    assert found[2] > 1.5 * held_out_distance and found[3] > 4 * held_out_distance and found[4] > 12 * held_out_distance


def test_the_distance_sees_blur_shifts_and_a_missing_class(digits, extractor, reference, held_out_distance):
    padded = np.pad(digits.test.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = 0.25 * padded[:, :-2] + 0.5 * padded[:, 1:-1] + 0.25 * padded[:, 2:]
    changed = {
        "blurred": 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:],
        "down": padded[:, :-2, 1:-1],
        "right": padded[:, 1:-1, :-2],
        "mirrored": digits.test[:, :, ::-1],
        "without threes": digits.test[digits.test_labels != 3],
    }
    for what, images in changed.items():
        assert distance(extractor(images).features, reference.features) > 2.5 * held_out_distance, what


# Class coverage


def test_held_out_digits_cover_the_classes_and_a_dropped_class_is_noticed(digits, extractor, reference):
    probabilities = extractor(digits.test).probabilities
    found = classifier.class_coverage(probabilities, reference.probabilities)
    assert (found.classes, found.present) == (10, 10)
    assert found.total_variation < 0.02 and found.confident > 0.9  # the division is by class

    threes = probabilities.argmax(1) == 3
    found = classifier.class_coverage(probabilities[~threes], reference.probabilities)
    assert (found.classes, found.present) == (10, 9)
    assert found.total_variation == pytest.approx(threes.mean(), abs=0.02)


def test_two_draws_of_one_law_are_as_far_apart_as_the_docstring_says():
    draw = np.random.default_rng(0)
    n, m, classes = 200, 1000, 10
    found = [
        classifier.class_coverage(*(np.eye(classes)[draw.integers(0, classes, k)] for k in (n, m))).total_variation
        for _ in range(400)
    ]
    expected = ((classes - 1) * (1 / n + 1 / m) / (2 * np.pi)) ** 0.5
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 20


def test_disjoint_classes_are_one_apart_and_classes_without_reference_are_not_asked_for():
    one, two = np.eye(4, dtype=np.float32)[[0, 0, 1]], np.eye(4, dtype=np.float32)[[2, 3]]
    found = classifier.class_coverage(one, two)
    assert (found.total_variation, found.classes, found.present) == (1, 2, 0)
    unsure = np.full((2, 4), 0.25)
    assert classifier.class_coverage(np.concatenate([one, unsure]), one).confident == 3 / 5


@pytest.mark.parametrize(
    ("probabilities", "reference", "text"),
    [
        (np.ones((3, 1)), np.full((3, 2), 0.5), "as many classes on both sides, got 1 and 2"),
        (np.ones(3), np.ones((3, 1)), r"expected probabilities floating point \[n, classes\].*got float64 \(3,\)"),
        (np.ones((3, 1)), np.ones((3, 1), int), r"expected reference floating point .*got int64 \(3, 1\)"),
        (np.ones((0, 1)), np.ones((3, 1)), r"none of them 0, got float64 \(0, 1\)"),
        (
            np.ones((3, 1)),
            np.ones((3, 2)),
            "expected reference from 0 that sum to 1, got 1 and sums off by up to 1: ar",
        ),
        (np.array([[1.5, -0.5]]), np.ones((3, 2)), "expected probabilities from 0 .* got -0.5 .*are these logits"),
        (np.array([[np.nan, 1]]), np.ones((3, 2)), "expected probabilities from 0 .* got nan"),
    ],
)
def test_class_coverage_refuses(probabilities, reference, text):
    with pytest.raises(ValueError, match=text):
        classifier.class_coverage(probabilities, reference)


# Images that are not theirs


@pytest.mark.parametrize(
    ("name", "images", "text"),
    [
        ("digits", np.zeros((3, 8, 8, 1), np.int32), "digits: .*type uint8, uint16 or float32, got int32"),
        ("digits", np.zeros((3, 8, 8, 1)), "digits: .*got float64"),
        (
            "digits",
            np.zeros((3, 28, 28, 1), np.uint8),
            r"digits: .*\[n, 8, 8, 1\], n at least 1, got .*\(3, 28, 28, 1\)",
        ),
        ("mnist", np.zeros((3, 28, 28), np.uint8), r"mnist: .*\[n, 28, 28, 1\], n at least 1, got .*\(3, 28, 28\)"),
        ("mnist", np.zeros((0, 28, 28, 1), np.uint8), r"n at least 1, got shape \(0, 28, 28, 1\)"),
        ("digits", np.full((3, 8, 8, 1), 17, np.uint8), "digits: .*values from 0 to levels - 1 = 16, got 17 to 17"),
        ("mnist", np.full((3, 28, 28, 1), -0.5, np.float32), "mnist: .*levels - 1 = 255, got -0.5 to -0.5"),
        ("mnist", np.full((3, 28, 28, 1), np.nan, np.float32), "mnist: .*levels - 1 = 255, got nan to nan"),
        ("digits", np.full((3, 8, 8, 1), np.inf, np.float32), "levels - 1 = 16, got inf to inf"),
    ],
)
def test_other_images_are_refused(name, images, text):
    with pytest.raises(ValueError, match=text):
        classifier.load(name)(images)


def test_a_data_set_finds_its_classifier_or_hears_which_there_are(digits):
    assert classifier.name_for_images(digits.train.shape[1:], digits.levels) == "digits"
    assert classifier.name_for_images((28, 28, 1), 256) == "mnist"
    there_are = r"there are digits \(8x8x1, 17 levels\) and mnist \(28x28x1, 256 levels\)"
    with pytest.raises(ValueError, match=f"no classifier for images 32x32x3 of 256 levels; {there_are}"):
        classifier.name_for_images((32, 32, 3), 256)
    with pytest.raises(ValueError, match="no classifier for images 8x8x1 of 256 levels"):
        classifier.name_for_images((8, 8, 1), 256)
    with pytest.raises(ValueError, match=f"load: no classifier 'cifar'; {there_are}"):
        classifier.load("cifar")


# How they are made


def test_the_fingerprint_is_of_the_weights_alone(extractor):
    weights = dict(extractor.weights)
    assert classifier.load("mnist").fingerprint != extractor.fingerprint
    assert dataclasses.replace(extractor, record={}).fingerprint == extractor.fingerprint
    assert dataclasses.replace(extractor, weights=dict(reversed(weights.items()))).fingerprint == extractor.fingerprint
    weights["logits/bias"] = np.nextafter(weights["logits/bias"], np.float32(9))
    assert dataclasses.replace(extractor, weights=weights).fingerprint != extractor.fingerprint
    swapped = {**extractor.weights, "logits/kernel": extractor.weights["logits/kernel"].reshape(10, 64)}
    assert dataclasses.replace(extractor, weights=swapped).fingerprint != extractor.fingerprint


def test_a_file_holds_what_was_measured_and_is_made_twice_alike(tmp_path, digits):
    recipe = make_classifier.RECIPES["digits"]._replace(epochs=1)
    for i in range(2):
        made = make_classifier.make_classifier("digits", digits, recipe)
        make_classifier.save_file(tmp_path / f"{i}.npz", made)
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    back = classifier.load_file(tmp_path / "0.npz")
    assert (back.fingerprint, back.record) == (made.fingerprint, made.record)
    np.testing.assert_array_equal(back(digits.test).features, made(digits.test).features)
    right = (back(digits.test).probabilities.argmax(1) == digits.test_labels).mean()
    assert back.record["held_out_accuracy"] == pytest.approx(right, abs=1e-5)


def test_the_ends_of_the_levels_come_to_the_first_layer_as_minus_one_and_one():
    network, layer_inputs = classifier.ClassifierNetwork(levels=17, convolutions=((1, 1),), features=2), []

    def watch(layer, args, kwargs, context):
        layer_inputs.append(args[0])
        return layer(*args, **kwargs)

    def first_layer_input(images):
        with nn.intercept_methods(watch):
            network.init(from_seed(0), images)
        return layer_inputs[1]  # after the network's own

    found = jax.jit(first_layer_input)(np.float32([0, 8, 16, 4]).reshape(1, 2, 2, 1))
    np.testing.assert_allclose(np.ravel(found), [-1, 0, 1, -0.5], atol=1e-6)


@pytest.mark.slow
def test_another_seed_makes_another_classifier(digits):
    recipe = make_classifier.RECIPES["digits"]._replace(epochs=1)
    one, other = (make_classifier.make_classifier("digits", digits, recipe._replace(seed=seed)) for seed in (0, 1))
    assert one.fingerprint != other.fingerprint


@pytest.mark.slow
def test_the_script_makes_the_classifier_that_is_in_the_package(tmp_path, digits, extractor, capsys):
    """To the bit only where versions and machine are the same; that two such classifiers agree is another matter."""
    assert make_classifier.main(["digits", "--out", str(tmp_path / "again.npz")]) == 0
    again = classifier.load_file(tmp_path / "again.npz")
    assert again.fingerprint in capsys.readouterr().out
    found, expected = again(digits.test).probabilities, extractor(digits.test).probabilities
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98
    assert again.record["recipe"] == extractor.record["recipe"]
    assert again.record["held_out_accuracy"] > 0.97


def test_images_move_by_a_pixel_as_often_as_told_and_black_comes_in():
    fraction, n = 0.2, 4000
    images = np.zeros((n, 5, 5, 1), np.float32)
    images[:, 2, 2] = 1
    moved = np.asarray(make_classifier.random_shift(from_seed(0), jnp.asarray(images), fraction))
    assert moved.sum() == n
    for found in (moved.sum((0, 1, 3)) / n, moved.sum((0, 2, 3)) / n):
        np.testing.assert_allclose(found, [0, fraction, 1 - 2 * fraction, fraction, 0], atol=4 * (0.24 / n) ** 0.5)
    edge = np.ones((n, 3, 3, 1), np.float32)
    sums = np.asarray(make_classifier.random_shift(from_seed(0), jnp.asarray(edge), fraction)).sum((1, 2, 3))
    assert set(sums.tolist()) == {9, 6, 4}


def test_it_is_not_trained_on_other_images_or_without_labels(digits, capsys):
    recipe = make_classifier.RECIPES["mnist"]
    with pytest.raises(ValueError, match=r"mnist: expected images \(28, 28, 1\) of 256 levels, got \(8, 8, 1\) of 17"):
        make_classifier.make_classifier("mnist", digits, recipe)
    with pytest.raises(ValueError, match="digits: expected images with labels, digits has none"):
        make_classifier.make_classifier("digits", digits._replace(train_labels=None, test_labels=None), recipe)
    with pytest.raises(SystemExit):
        make_classifier.main(["mnist"])
    assert "mnist needs --source npz:PATH" in capsys.readouterr().err
