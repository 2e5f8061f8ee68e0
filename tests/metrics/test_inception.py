"""Inception features and scores against torch-fidelity's own end to end, on a network of random weights."""

import sys
from typing import Any

import numpy as np
import pytest
import tiny_run

from ddpm_jax import data
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate import samples as evaluated
from ddpm_jax.evaluate.context import CommonFlags, open_context
from ddpm_jax.metrics import frechet, inception, manifold

N, BATCH = 12, 5


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch")
    found.set_num_threads(1)  # where cores are shared with other tests, its threads wait for each other
    return found


@pytest.fixture(scope="module")
def fidelity(torch):
    return pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def weights(torch, fidelity, tmp_path_factory):
    """A state dict of weights whose activations neither vanish nor explode."""

    class Random(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):  # the constructor insists on loading a file
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)

    path = str(tmp_path_factory.mktemp("weights") / "random.pt")
    torch.save({}, path)
    torch.save(Random("random", ["2048"], path).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return inception.load(256, weights=weights, device="cpu", batch=BATCH)


def pictures(seed, contrast=1.0):
    """[N, 16, 16, 3] uint8, coarse patches of colour with some noise."""
    draw = np.random.RandomState(seed)
    patches = np.kron(draw.randint(0, 256, (N, 4, 4, 3)), np.ones((1, 4, 4, 1)))
    return np.clip(contrast * patches + 20 * draw.randn(N, 16, 16, 3), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def samples(network):
    return network(pictures(1, contrast=0.9))


@pytest.fixture(scope="module")
def reference(network):
    return network(pictures(2))


# Against torch-fidelity


def test_scores_are_those_of_torch_fidelity_from_image_to_number(torch, fidelity, weights, samples, reference):
    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.planes = torch.from_numpy(np.moveaxis(images, -1, 1).copy())

        def __len__(self):
            return len(self.planes)

        def __getitem__(self, i):
            return self.planes[i]

    found = fidelity.calculate_metrics(
        input1=Images(pictures(1, contrast=0.9)),
        input2=Images(pictures(2)),
        isc=True,
        kid=True,
        prc=True,
        feature_extractor=inception.Inception.name,
        feature_extractor_weights_path=weights,
        kid_subset_size=N - 4,
        batch_size=BATCH,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    score = inception.inception_score(samples.logits)
    distance = inception.kernel_distance(samples.features, reference.features, subset_size=N - 4)
    shares = manifold.precision_recall(samples.features, reference.features, k=3)
    np.testing.assert_allclose(score, (found["inception_score_mean"], found["inception_score_std"]), rtol=1e-6)
    np.testing.assert_allclose(
        distance, (found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]), rtol=1e-6
    )
    np.testing.assert_allclose(shares, (found["precision"], found["recall"]), rtol=1e-6)
    assert 0 < min(shares) and distance.std > 0  # numbers that could have been wrong


def test_the_frechet_distance_is_that_of_torch_fidelity(torch, samples, reference):
    # Of some of the features: a covariance of all would need more than 2048 images.
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    few = [judged.features[:, : N // 2] for judged in (samples, reference)]
    theirs = metric.fid_statistics_to_metric(
        *(metric.fid_features_to_statistics(torch.from_numpy(part.astype(np.float64))) for part in few), False
    )
    ours = frechet.frechet_distance(*(frechet.moments(part) for part in few))
    np.testing.assert_allclose(ours, theirs["frechet_inception_distance"], rtol=1e-6)


# What goes into the network


def test_floats_that_are_integers_have_the_features_of_integers_to_the_bit(network, samples):
    floats = network(pictures(1, contrast=0.9).astype(np.float32))
    np.testing.assert_array_equal(floats.features, samples.features)
    np.testing.assert_array_equal(floats.logits, samples.logits)
    again = network(pictures(1, contrast=0.9)[:BATCH])  # and nothing of the floats stays behind in the network
    np.testing.assert_array_equal(again.features, samples.features[:BATCH])


def test_half_a_level_is_half_way_between_two_levels(network):
    lower = np.minimum(pictures(3)[:BATCH], 254)
    low, high = network(lower).features, network(lower + np.uint8(1)).features
    half = network(lower.astype(np.float32) + np.float32(0.5)).features
    whole = np.abs(high - low).mean()
    assert whole > 0
    # A network of ReLUs is linear but for the few kinks between two levels; a rounded half would be 0.5 away.
    assert np.abs(half - (low + high) / 2).mean() < 0.15 * whole


def test_eight_bits_and_the_same_image_in_other_depths_are_one(network, weights):
    eight = pictures(4)[:2]
    expected = network(eight)
    deep = inception.load(65536, weights=weights, device="cpu")
    np.testing.assert_array_equal(deep(eight * np.uint16(257)).features, expected.features)
    floats = deep(eight.astype(np.float32) * 257)
    np.testing.assert_allclose(floats.features, expected.features, rtol=1e-3, atol=1e-5)
    black_and_white = inception.load(2, weights=weights, device="cpu")
    bits = (eight > 127).astype(np.uint8)
    np.testing.assert_array_equal(black_and_white(bits).features, network(bits * np.uint8(255)).features)


def test_grey_is_shown_in_all_three_channels(network):
    grey = pictures(5)[:2, ..., :1]
    np.testing.assert_array_equal(network(grey).features, network(np.repeat(grey, 3, axis=-1)).features)


def test_an_image_does_not_depend_on_its_batch_but_for_rounding(network, samples):
    alone = network(pictures(1, contrast=0.9)[N - 1 :])
    np.testing.assert_allclose(alone.features[0], samples.features[N - 1], rtol=1e-3, atol=1e-5)
    assert np.abs(samples.features[N - 1] - samples.features[N - 2]).max() > 0.01


def test_the_fingerprint_is_of_the_weights_and_not_of_the_file(torch, network, weights, tmp_path):
    state = torch.load(weights)
    path = str(tmp_path / "again.pt")
    torch.save(dict(state), path)
    assert inception.load(17, weights=path, device="cpu").fingerprint == network.fingerprint
    state["fc.bias"][0] = torch.nextafter(state["fc.bias"][0], torch.tensor(9.0))
    torch.save(state, path)
    changed = inception.load(17, weights=path, device="cpu").fingerprint
    assert changed != network.fingerprint and len(changed) == 12


# The scores' known answers


def test_an_inception_score_counts_classes(fidelity):
    np.testing.assert_allclose(inception.inception_score(np.ones((50, 1008), np.float32)), (1, 0), atol=1e-12)
    certain = 100 * np.eye(8, dtype=np.float32)[np.arange(64) % 8]
    certain.flags.writeable = False
    np.testing.assert_allclose(inception.inception_score(certain, splits=1), (8, 0), rtol=1e-9)


def test_the_kernel_distance_of_two_normal_laws(fidelity):
    # With k(x, y) = (x y + 1)^3 and the moments of N(0, 1) and N(m, 1):
    m = 0.5
    among = (m**3 + 3 * m) ** 2 + 3 * (m**2 + 1) ** 2 + 3 * m**2 + 1
    expected = 4 + among - 2 * (3 * (m**2 + 1) + 1)
    draw = np.random.RandomState(0)
    found = inception.kernel_distance(draw.randn(20000, 1), m + draw.randn(20000, 1), subset_size=100)
    assert abs(found.mean - expected) < 4 * found.std / 100**0.5
    assert found.std < expected


def test_subsets_of_all_rows_are_all_the_same(fidelity):
    draw = np.random.RandomState(0)
    found = inception.kernel_distance(draw.randn(50, 4), 1 + draw.randn(50, 4), subsets=5)
    assert found.mean > 0 and found.std < 1e-9


# Refusals


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("torch_fidelity", lambda: inception.load(256)),
        ("torch_fidelity.metric_isc", lambda: inception.inception_score(np.zeros((20, 8)))),
        ("torch_fidelity.metric_kid", lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros((9, 2)))),
    ],
)
def test_a_missing_extra_says_how_to_install_it(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"needs torch_fidelity.*: pip install 'ddpm-jax\[eval\]'"):
        call()


TPU: Any = "tpu"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: inception.load(1), "load: expected 2 to 65536 levels, got levels=1"),
        (lambda: inception.load(256, batch=0), "load: expected batch >= 1, got 0"),
        (lambda: inception.load(256, device=TPU), "expected device 'cpu', 'cuda' or None, got 'tpu'"),
        (lambda: inception.inception_score(np.zeros(9)), r"logits float32 or float64 \[n, d\], got float64 \(9,\)"),
        (lambda: inception.inception_score(np.zeros((9, 2))), r"splits in 1 \.\. 9, the images, got 10"),
        (lambda: inception.kernel_distance(np.zeros((9, 2), int), np.zeros((9, 2))), "features float32 or .*got int64"),
        (lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros(9)), r"reference float32 .*got float64 \(9,\)"),
        (lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros((9, 3))), r"one d, got float64 \(9, 2\) and fl"),
        (lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros((1, 2))), "at least 2 rows, got .* 9 and 1 rows"),
        (lambda: inception.kernel_distance(*np.zeros((2, 9, 2)), subsets=0), "subsets >= 1 .* got subsets=0"),
    ],
)
def test_arguments_out_of_range_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_gpu_that_is_not_there_is_refused(torch, fidelity):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="device='cuda', but torch finds no GPU"):
        inception.load(256, device="cuda")


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((2, 8, 8, 3)), "images of type uint8, uint16 or float32, got float64"),
        (np.zeros((2, 8, 8, 3), np.int32), "got int32"),
        (np.zeros((8, 8, 3), np.uint8), r"images \[n, H, W, 1 \| 3\], none of them 0, got shape \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"got shape \(2, 8, 8, 4\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got shape \(0, 8, 8, 3\)"),
        (np.full((2, 8, 8, 3), 256, np.uint16), "values from 0 to levels - 1 = 255, got 256 to 256"),
        (np.full((2, 8, 8, 3), -0.5, np.float32), r"got -0\.5 to -0\.5"),
        (np.array([0, 1, np.nan], np.float32).reshape(1, 1, 1, 3), "got nan to nan"),
        (np.array([0, 1, np.inf], np.float32).reshape(1, 1, 1, 3), r"got 0\.0 to inf"),
    ],
)
def test_images_that_are_not_as_described_are_refused(network, images, text):
    with pytest.raises(ValueError, match=text):
        network(images)


# Through the evaluation of a run


def test_a_run_is_measured_by_inception(weights, tmp_path):
    """FID, Inception score, KID and the neighbours of samples, on twenty of the features so that they span a space."""
    run = tiny_run.make_run(tmp_path / "run")
    model = open_context(str(run), CommonFlags(out=str(tmp_path))).model
    extractor = evaluated.load_extractor(model, "inception", weights)
    assert extractor.dimension == 2048 and extractor.name.startswith("inception-v3-compat ")

    def extract_few(images):
        features, logits = extractor.extract(images)
        return features[:, :20].astype(np.float64), logits

    digits = data.load("digits")
    few = extractor._replace(extract=extract_few, dimension=20)
    train, held = (evaluated.accumulate([images[:30]], few, 30) for images in (digits.train, digits.test))
    found = {
        n.name: n
        for n in evaluated.mean_over_sets([evaluated.compare_features(held, train, few)], {"n": 30, "format": "uint8"})
    }
    whole = [frechet.moments(extract_few(images[:30])[0]) for images in (digits.test, digits.train)]
    assert found["FID"].value == pytest.approx(frechet.frechet_distance(*whole), rel=1e-5)
    score = inception.inception_score(extractor.extract(digits.test[:30])[1])
    assert found["inception score"].value == pytest.approx(score.mean)
    assert {"KID", "precision, k=3", "recall, k=3", "coverage, k=5"} <= set(found)
    assert protocol.format_line(found["FID"]).startswith("FID ")


def test_integers_of_other_levels_are_rounded_to_8_bits_and_floats_are_not():
    values = np.arange(17).reshape(1, 1, 17, 1)  # 8 is 127.5, 1 is 15.9375
    whole = inception._to_channels_first(values.astype(np.uint8), 17)
    assert whole.dtype == np.uint8 and whole.shape == (1, 3, 1, 17)
    np.testing.assert_array_equal(whole[0, 0, 0, [0, 1, 2, 3, 16]], [0, 16, 32, 48, 255])
    fine = inception._to_channels_first(values.astype(np.float32), 17)
    assert fine.dtype == np.float32
    np.testing.assert_allclose(fine[0, 2, 0, [1, 16]], [15.9375, 255], rtol=1e-6)
