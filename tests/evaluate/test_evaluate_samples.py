"""Sample metrics: the numbers, their baselines, the cached reference, and refused requests."""

import tracemalloc

import numpy as np
import pytest
import shared_evaluation
from shared_evaluation import ddim_context

from ddpm_jax import config as configs
from ddpm_jax import data
from ddpm_jax.evaluate import extractors, references, samples
from ddpm_jax.evaluate.context import select_split
from ddpm_jax.evaluate.samples import SamplesOptions
from ddpm_jax.metrics import classifier, frechet, manifold
from ddpm_jax.pipeline import image_parts
from ddpm_jax.programs import cli

DIGITS = data.load("digits")


def options_of(num, **options) -> SamplesOptions:
    return SamplesOptions(num=num, seed=3, **options)


def values(found):
    return {number.name: number.value for number in found}


def test_the_numbers_are_those_of_the_images_that_sample_draws(run_folder, drawn):
    """Drawn here, or by sample.py into a file: the same images, and the distance of their features by hand."""
    file = shared_evaluation.samples_of_sample_py(run_folder) / "samples.npz"
    images = np.load(file)["arr_0"]
    (cache_folder,) = (drawn.out / "draws").iterdir()
    np.testing.assert_array_equal(np.concatenate(list(image_parts.read_chunks(cache_folder, 0, 80))), images)

    found = values(samples.measure_and_write(drawn, options_of(80)))
    filed = values(samples.measure_and_write(drawn, options_of(80, samples=str(file))))
    assert repr(filed) == repr(found)
    network = classifier.load("digits")
    ours, theirs = network(images), network(DIGITS.train)
    distance = frechet.frechet_distance(frechet.moments(ours.features), frechet.moments(theirs.features))
    assert found["Fréchet distance"] == pytest.approx(distance, rel=1e-9)
    near = manifold.precision_recall(ours.features, theirs.features, k=3)
    assert (found["precision, k=3"], found["recall, k=3"]) == near
    assert found["classes present, of 10"] == len(set(ours.probabilities.argmax(1)))


def test_the_reference_against_itself_is_nothing(drawn, tmp_path):
    np.savez(tmp_path / "train.npz", arr_0=DIGITS.train)
    found = values(samples.measure_and_write(drawn, SamplesOptions(num=1500, samples=str(tmp_path / "train.npz"))))
    assert abs(found["Fréchet distance"]) < 1e-3
    assert found["precision, k=3"] == found["recall, k=3"] == found["coverage, k=5"] == 1
    assert found["distance of class shares"] == 0


def test_one_half_of_the_data_against_the_other_is_positive_and_stable():
    """First against second half, in one piece or streamed: above what rounding leaves, the same, and a small part of
    the distance of images that are out of focus."""
    network = classifier.load("digits")
    whole = [frechet.moments(network(part).features) for part in (DIGITS.train[:750], DIGITS.train[750:])]
    distance = frechet.frechet_distance(*whole)
    extractor = extractors.Extractor("extractor", "distance", network.dimension, network, lambda a, b: [])
    for batch in (60, 749):
        parts = [
            references.accumulate([half[i : i + batch] for i in range(0, 750, batch)], extractor, 750).moments()
            for half in (DIGITS.train[:750], DIGITS.train[750:])
        ]
        assert frechet.frechet_distance(*parts) == pytest.approx(distance, rel=1e-5)
    wide = np.pad(DIGITS.train[750:].astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = sum(wide[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9
    off = frechet.frechet_distance(whole[0], frechet.moments(network(blurred.astype(np.float32)).features))
    assert 0.5 < distance < 0.2 * off


def test_held_out_images_are_the_baseline(drawn):
    baseline = values(samples.held_out_baseline(drawn, options_of(80), 80))
    noise = values(samples.measure_and_write(drawn, options_of(80)))  # of a network that has learnt nothing
    assert baseline["Fréchet distance"] < 0.5 * noise["Fréchet distance"]
    assert baseline["precision, k=3"] > 0.8 > noise["precision, k=3"]
    assert baseline["share with p > 0.9"] > 0.9


def test_training_images_left_out_are_held_against_the_others(drawn):
    """The first of the sets by hand: seventy at random, and the moments of the rest."""
    found = values(samples.train_baseline(drawn, SamplesOptions(num=70)))
    order = np.random.RandomState(0).permutation(1500)
    features = classifier.load("digits")(DIGITS.train).features
    parts = [frechet.moments(features[places]) for places in (order[:70], order[70:])]
    assert found["Fréchet distance"] == pytest.approx(frechet.frechet_distance(*parts), rel=1e-9)


def test_sets_give_a_mean_and_its_error(drawn):
    """Two sets of 66 of one seed: their mean is what each alone gives, and half their difference is the error."""
    both = samples.measure_and_write(drawn, options_of(66, sets=2))
    (cache_folder,) = (drawn.out / "draws").iterdir()
    images = np.concatenate(list(image_parts.read_chunks(cache_folder, 0, 132)))
    network = classifier.load("digits")
    reference = frechet.moments(network(DIGITS.train).features)
    parts = [images[:66], images[66:]]
    alone = [frechet.frechet_distance(frechet.moments(network(part).features), reference) for part in parts]
    assert both[0].value == pytest.approx(np.mean(alone), rel=1e-9)
    assert both[0].error == pytest.approx(abs(alone[0] - alone[1]) / 2, rel=1e-6)


def test_few_images_are_warned_of_with_the_bias(drawn, capsys):
    samples.measure_and_write(drawn, options_of(80))
    assert (
        "80 images are fewer than 10,000: their Fréchet distance is too large by an unknown" in capsys.readouterr().err
    )
    samples.held_out_baseline(drawn, SamplesOptions(num=297))
    printed = capsys.readouterr().err
    bias = float(printed.split("too large by about ")[1].split(";")[0])
    held = values(samples.held_out_baseline(drawn, SamplesOptions(num=297)))
    assert bias == pytest.approx(held["bias of the Fréchet distance at this n"], rel=1e-2)
    assert bias > 0


def test_the_reference_is_seen_once_and_again_when_it_changes(run_folder, tmp_path):
    run, batch_sizes = ddim_context(run_folder, tmp_path), []

    def extract(images):
        batch_sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :3].astype(np.float32), np.ones((len(images), 1), np.float32)

    extractor = extractors.Extractor("extractor 1", "distance", 3, extract, lambda a, b: [])
    train = select_split(DIGITS, "train")
    computed, again = (references.cached_reference(run, train, extractor) for _ in range(2))
    assert sum(batch_sizes) == 1500
    for a, b in zip(computed.halves, again.halves, strict=True):
        assert a.n == b.n and a.mean.tobytes() == b.mean.tobytes() and a.scatter.tobytes() == b.scatter.tobytes()
    # complete, as it is: the moments of all training images
    whole = np.cov(DIGITS.train.reshape(1500, -1)[:, :3].astype(float), rowvar=False)
    np.testing.assert_allclose(computed.moments().covariance, whole, rtol=1e-9, atol=1e-12)
    changed = DIGITS.train.copy()
    changed[1400, 0, 0] ^= 1  # a thousand are hashed at a time
    references.cached_reference(run, select_split(DIGITS._replace(train=changed), "train"), extractor)
    references.cached_reference(run, train, extractor._replace(name="extractor 2"))
    assert sum(batch_sizes) == 4500


@pytest.mark.slow
def test_fifty_thousand_images_are_seen_in_less_than_a_gigabyte():
    """Features and logits as large as Inception's, 2048 and 1008."""
    block = np.random.default_rng(0).standard_normal((1024, 2048)).astype(np.float32)
    extractor = extractors.Extractor(
        "extractor", "FID", 2048, lambda x: (block[: len(x)], block[: len(x), :1008]), lambda a, b: []
    )
    images = (np.zeros((1024, 1, 1, 1), np.uint8)[: 50_000 - start] for start in range(0, 50_000, 1024))
    tracemalloc.start()
    result = references.accumulate(images, extractor, 50_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.moments().n == 50_000 and len(result.features) == 10_000 and len(result.scores) == 50_000
    assert peak < 1e9


def test_too_few_images_are_refused_before_anything_is_drawn(drawn):
    before = list((drawn.out / "draws").rglob("*"))
    with pytest.raises(ValueError, match="--num must be above 64, the dimension of the features of digits-classifier"):
        samples.measure(drawn, SamplesOptions(num=64))
    assert list((drawn.out / "draws").rglob("*")) == before


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((99, 8, 8, 3), np.uint8), "images 8x8x3 of 17 levels, but .* makes images 8x8x1 of 17 levels"),
        (np.zeros((99, 9, 8, 1), np.uint8), "images 9x8x1"),
        (np.full((99, 8, 8, 1), 255, np.uint8), "images 8x8x1 of 256 levels, but .* 17 levels: sets of different"),
        (np.zeros((99, 8, 8, 1), np.float32), r"expected integer images \[n, H, W, C\], got float32"),
        (np.zeros((79, 8, 8, 1), np.uint8), "holds 79 images, --num 80 --sets 1 ask for more"),
    ],
)
def test_files_of_other_images_are_refused(drawn, tmp_path, array, text):
    np.savez(tmp_path / "s.npz", arr_0=array)
    with pytest.raises(ValueError, match=text):
        samples.measure(drawn, SamplesOptions(num=80, samples=str(tmp_path / "s.npz")))


def test_a_file_without_samples_is_refused(drawn, tmp_path):
    np.savez(tmp_path / "s.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="expected images under the name arr_0, found images"):
        samples.measure(drawn, SamplesOptions(num=80, samples=str(tmp_path / "s.npz")))


def test_features_that_are_not_finite_are_refused():
    def extract(images):
        features = np.zeros((len(images), 2), np.float32)
        features[3] = np.nan
        return features, features

    extractor = extractors.Extractor("extractor", "distance", 2, extract, lambda a, b: [])
    with pytest.raises(ValueError, match="1 of 4 rows of features are not finite"):
        references.accumulate([np.zeros((9, 1, 1, 1), np.uint8)], extractor, 9)


def test_images_without_a_classifier_are_refused_with_the_known_ones(drawn):
    run = shared_evaluation.replace_config(drawn, shape=(8, 8, 3), levels=256)
    with pytest.raises(ValueError, match="no classifier for images 8x8x3 of 256 levels; there are digits"):
        samples.measure(run, SamplesOptions(num=80))


def test_missing_weights_of_inception_are_named_with_their_address(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.call(["evaluate", str(run_folder), "samples", "--features", "inception", "--out", "out"]) == 2
    message = capsys.readouterr().err
    assert "there are no Inception weights data/weights-inception-2015-12-05-6726825d.pth: download https://" in message
    assert "or name its place by --inception-weights" in message


def test_the_reference_warns_where_the_classifier_knows_nothing(drawn, tmp_path, capsys):
    """Noise in the shape of digits is not digits."""
    noise = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", train=noise, test=noise[:90])
    run = shared_evaluation.replace_config(drawn, data=configs.Data(f"npz:{tmp_path / 'noise.npz'}", levels=17))
    samples.held_out_baseline(run._replace(out=tmp_path), SamplesOptions(num=80), 80)
    assert "of the reference images: was it trained on such images?" in capsys.readouterr().err
