"""References of others: files of moments, of images, and of both."""

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.evaluate import extractors, references, sample_cache, samples
from ddpm_jax.evaluate.context import select_split
from ddpm_jax.evaluate.figures import predictions
from ddpm_jax.evaluate.options import PredictionsOptions, SamplesOptions
from ddpm_jax.metrics import classifier

DIGITS = data.load("digits")


def measure(context, reference):
    found = samples.measure(context, SamplesOptions(num=80, seed=3, reference=str(reference)))
    assert found is not None
    return {number.name: number.value for number in found}, found[0].protocol["reference"]


@pytest.fixture(scope="module")
def features():
    return classifier.load("digits")(DIGITS.train).features.astype(np.float64)


def test_moments_of_others_give_the_distance_alone(drawn, tmp_path, features):
    """Mean and covariance of the training images as numpy has them, and as this program writes them itself."""
    expected, _ = measure(drawn, "train")
    np.savez(tmp_path / "edm.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    (written,) = (path for path in (drawn.out / "references").iterdir() if "digits-train" in path.name)
    stored = np.load(written)
    np.testing.assert_allclose(stored["mu"], features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stored["sigma"], np.cov(features, rowvar=False), rtol=1e-9, atol=1e-12)
    np.savez(tmp_path / "ours.npz", mu=stored["mu"], sigma=stored["sigma"])
    for name in ("edm", "ours"):
        found, described = measure(drawn, tmp_path / f"{name}.npz")
        assert found["Fréchet distance"] == pytest.approx(expected["Fréchet distance"], rel=1e-9)
        assert list(found) == ["Fréchet distance", "bias of the Fréchet distance at this n"]
        assert str(described).startswith(f"{name}.npz mu, sigma sha ")


def test_images_of_others_are_a_reference_for_all_metrics(drawn, tmp_path, features):
    expected, _ = measure(drawn, "train")
    np.savez(tmp_path / "batch.npz", arr_0=DIGITS.train)
    found, described = measure(drawn, tmp_path / "batch.npz")
    assert repr(found) == repr(expected)
    assert str(described).startswith("batch.npz arr_0 sha ") and str(described).endswith(" n=1500")
    # with moments of their own, the distance is to these
    np.savez(tmp_path / "adm.npz", arr_0=DIGITS.train, mu=features.mean(0) + 1, sigma=np.cov(features, rowvar=False))
    both, described = measure(drawn, tmp_path / "adm.npz")
    assert {name for name in expected if repr(both[name]) != repr(expected[name])} == {"Fréchet distance"}
    assert "mu, sigma sha " in str(described) and ", arr_0 sha " in str(described)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, r"of the 64 features of digits-.*, got \(2048,\) and \(2048, "),
        ({"mu": np.zeros(64), "sigma": np.eye(63)}, r"got \(64,\) and \(63, 63\)"),
        ({"mu": np.zeros(64)}, "expected mu and sigma, or images arr_0, found mu"),
        ({"arr_0": np.zeros((99, 8, 8, 3), np.uint8)}, "images 8x8x3 of 17 levels, but .* makes images 8x8x1"),
        ({"arr_0": np.zeros((99, 8, 8, 1))}, "expected integer images"),
        ({"arr_0": DIGITS.train[:64]}, r"--reference .*r\.npz: the number of images must be above 64, the .*; got 64"),
    ],
)
def test_files_of_something_else_are_refused(drawn, tmp_path, arrays, text):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(ValueError, match=text):
        measure(drawn, tmp_path / "r.npz")


def test_a_damaged_file_is_to_be_removed_only_if_it_is_computed_again(drawn, tmp_path):
    foreign = tmp_path / "r.npz"
    foreign.write_bytes(b"PK")
    for options in ({"reference": str(foreign)}, {"samples": str(foreign)}):
        with pytest.raises(ValueError, match=r"r\.npz is not an \.npz file, or damaged \(.*\)$"):
            samples.measure(drawn, SamplesOptions(num=80, **options))
    extractor, train = extractors.load_extractor(drawn.model, "classifier", ""), select_split(DIGITS, "train")
    own = tmp_path / "references" / f"{extractor.name}-{train.name}.npz".replace(" ", "-")
    own.parent.mkdir()
    own.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"damaged \(.*\): remove it, and its content is computed again$"):
        references.cached_reference(drawn._replace(out=tmp_path), train, extractor)


def test_a_split_of_too_few_images_is_refused_before_anything_is_drawn(drawn, monkeypatch):
    """The flag that is named is the one that is wrong: --num is above the dimension of the features."""
    few = DIGITS._replace(train=DIGITS.train[:64], test=DIGITS.test[:50])
    for module in (references, samples, predictions):
        monkeypatch.setattr(module, "load_images", lambda context: few)
    monkeypatch.setattr(sample_cache, "ensure_samples", None)
    for name, count in (("train", 64), ("test", 50)):
        with pytest.raises(ValueError, match=f"^--reference {name}: the number of images must be above 64, .*{count}$"):
            measure(drawn, name)
    with pytest.raises(ValueError, match=r"^the number of held-out images must be above 64, .*; got 50$"):
        samples.held_out_baseline(drawn, SamplesOptions(num=80))
    with pytest.raises(ValueError, match=r"^the number of training images must be above 64, .*; got 64$"):
        predictions.measure(drawn, PredictionsOptions(quality=80))


def test_other_names_are_refused(drawn, tmp_path):
    with pytest.raises(ValueError, match=r"--reference must be train, test or an \.npz file, got valid"):
        measure(drawn, "valid")
    with pytest.raises(FileNotFoundError):
        measure(drawn, tmp_path / "gone.npz")
