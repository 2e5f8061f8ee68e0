"""Inception and its scores beside torch-fidelity's own, on one file of random weights that torch wrote."""

import pathlib

import numpy as np
import pytest

from ddpm_jax.evaluate import extractors
from ddpm_jax.metrics import frechet, inception, manifold

pytestmark = pytest.mark.slow

N = 16


@pytest.fixture(scope="module")
def fidelity():
    pytest.importorskip("torch_fidelity", reason="takes torch-fidelity: pip install torch-fidelity")
    import torch_fidelity

    return torch_fidelity


@pytest.fixture(scope="module")
def weights(fidelity, tmp_path_factory):
    """A state dict of weights whose activations neither vanish nor explode."""
    import torch

    torch.set_num_threads(1)  # where cores are shared with other tests, its threads wait for each other

    class Random(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):  # the constructor insists on loading a file
            generator = torch.Generator().manual_seed(0)
            for module in self.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                elif isinstance(module, torch.nn.BatchNorm2d):
                    for tensor, mean, std in (
                        (module.weight, 1, 0.1), (module.bias, 0, 0.1), (module.running_mean, 0, 0.1),
                    ):  # fmt: skip
                        tensor.data.normal_(mean, std, generator=generator)
                    module.running_var.uniform_(0.8, 1.3, generator=generator)

    path = str(tmp_path_factory.mktemp("weights") / "random.pth")
    torch.save({}, path)
    torch.save(Random("random", ["2048"], path).state_dict(), path)
    return path


def pictures(seed, contrast=1.0):
    """[N, 16, 16, 3] uint8, coarse patches of colour with some noise."""
    draw = np.random.RandomState(seed)
    patches = np.kron(draw.randint(0, 256, (N, 4, 4, 3)), np.ones((1, 4, 4, 1)))
    return np.clip(contrast * patches + 20 * draw.randn(N, 16, 16, 3), 0, 255).astype(np.uint8)


def test_features_and_scores_are_those_of_torch_fidelity_from_image_to_number(fidelity, weights, monkeypatch):
    import torch

    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.planes = torch.from_numpy(np.moveaxis(images, -1, 1).copy())

        def __len__(self):
            return len(self.planes)

        def __getitem__(self, i):
            return self.planes[i]

    monkeypatch.setattr(extractors, "TILE", 2)
    extract = extractors.load_inception(256, pathlib.Path(weights)).extract
    samples, reference = pictures(1, contrast=0.9), pictures(2)
    ours = [extract(images) for images in (samples, reference)]

    network = fidelity.FeatureExtractorInceptionV3("ours", ["2048", "logits_unbiased"], weights)
    with torch.no_grad():
        theirs = network(Images(samples).planes[:4])
    for found, expected in zip(ours[0], theirs, strict=True):
        scale = expected.abs().max().item()
        np.testing.assert_allclose(found[:4], expected.numpy(), atol=1e-5 * scale)

    expected = fidelity.calculate_metrics(
        input1=Images(samples), input2=Images(reference), isc=True, kid=True, prc=True, fid=True,
        feature_extractor_weights_path=weights, kid_subset_size=N - 4, batch_size=8, cuda=False, cache=False,
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
