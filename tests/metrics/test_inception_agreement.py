"""Inception and its scores beside torch-fidelity's own, on one file of random weights that torch wrote."""

import numpy as np
import pytest

from benchmarks.inception import make_images, write_random_weights
from ddpm_jax.evaluate import extractors
from ddpm_jax.metrics import frechet, inception, manifold

pytestmark = pytest.mark.slow

N = 16


def test_features_and_scores_are_those_of_torch_fidelity_from_image_to_number(tmp_path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity", reason="takes torch-fidelity: pip install torch-fidelity")
    import torch

    torch.set_num_threads(1)  # where cores are shared with other tests, its threads wait for each other
    weights = write_random_weights(tmp_path / "random.pth")

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.planes = torch.from_numpy(np.moveaxis(images, -1, 1).copy())

        def __len__(self):
            return len(self.planes)

        def __getitem__(self, i):
            return self.planes[i]

    monkeypatch.setattr(extractors, "TILE", 2)
    extract = extractors.load_inception(256, weights).extract
    samples, reference = make_images(1, N, 0.9), make_images(2, N, 1.0)
    ours = [extract(images) for images in (samples, reference)]

    network = fidelity.FeatureExtractorInceptionV3("ours", ["2048", "logits_unbiased"], str(weights))
    with torch.no_grad():
        theirs = network(Images(samples).planes[:4])
    for found, expected in zip(ours[0], theirs, strict=True):
        scale = expected.abs().max().item()
        np.testing.assert_allclose(found[:4], expected.numpy(), atol=1e-5 * scale)

    expected = fidelity.calculate_metrics(
        input1=Images(samples), input2=Images(reference), isc=True, kid=True, prc=True, fid=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights), kid_subset_size=N - 4,
        batch_size=8, cuda=False, cache=False,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    (features, logits), (others, _) = ours
    score = inception.inception_score(logits)
    np.testing.assert_allclose(score, [expected[f"inception_score_{part}"] for part in ("mean", "std")], rtol=1e-5)
    distance = inception.kernel_distance(features, others, subset_size=N - 4)
    np.testing.assert_allclose(
        distance, [expected[f"kernel_inception_distance_{part}"] for part in ("mean", "std")], rtol=1e-4
    )
    laws = [frechet.moments(each) for each in (features, others)]  # of fewer images than features
    fid = frechet.frechet_distance(*(frechet.moments_of_law(each.mean, each.covariance) for each in laws))
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    shares = manifold.precision_recall(features, others, k=3)
    np.testing.assert_allclose(shares, (expected["precision"], expected["recall"]), rtol=1e-6)
    assert 0 < min(shares) and distance.std > 0  # numbers that could have been wrong
