"""Inception's features, FID, KID and Inception score beside torch-fidelity's, with the speed of both networks.

    pip install torch-fidelity
    python -m benchmarks.inception

Both networks have the same random weights, in a file that torch wrote, and get two sets of random images of 32x32, in
turns.  Prints the differences and the medians of the images per second.
"""

import pathlib
import tempfile
import time

import numpy as np


def main(num: int = 1000, part: int = 250) -> None:
    """Compares the networks on two sets of `num` images, `part` at a time."""
    from ddpm_jax import process

    process.initialize()
    import torch
    import torch_fidelity
    from torch_fidelity import metric_fid, metric_isc, metric_kid

    from ddpm_jax.evaluate import extractors
    from ddpm_jax.metrics import frechet, inception

    torch.set_num_threads(process.num_cores())
    with tempfile.TemporaryDirectory() as folder:
        weights = write_random_weights(pathlib.Path(folder) / "random.pth")
        ours = extractors.load_inception(256, weights).extract
        network = torch_fidelity.FeatureExtractorInceptionV3("", ["2048", "logits_unbiased"], str(weights))

    def theirs(images):
        planes = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        with torch.no_grad():
            return [torch.cat(side).numpy() for side in zip(*map(network, planes.split(64)), strict=True)]

    sets = [make_images(seed, num, contrast) for seed, contrast in ((1, 0.9), (2, 1.0))]
    for extract in (ours, theirs):  # compilation
        extract(sets[0][:part])
    outputs, speeds = {ours: [], theirs: []}, {ours: [], theirs: []}
    for images in np.concatenate(sets).reshape(-1, part, *sets[0].shape[1:]):
        for extract in (ours, theirs) if len(outputs[ours]) % 2 else (theirs, ours):
            begun = time.perf_counter()
            outputs[extract].append(extract(images))
            speeds[extract].append(part / (time.perf_counter() - begun))
    (features, logits), (expected, expected_logits) = (
        [np.concatenate(side) for side in zip(*outputs[extract], strict=True)] for extract in (ours, theirs)
    )
    for name, a, b in (("features", features, expected), ("logits", logits, expected_logits)):
        print(f"{name}: largest difference {np.abs(a - b).max() / np.abs(b).max():.1e} of the largest value")

    moments = [frechet.moments(each) for each in (features[:num], features[num:])]
    laws = [frechet.moments_of_law(each.mean, each.covariance) for each in moments]  # of fewer images than features
    samples, reference = (torch.from_numpy(each) for each in (expected[:num], expected[num:]))
    statistics = [metric_fid.fid_features_to_statistics(each) for each in (samples, reference)]
    size = {"kid_subset_size": num // 2, "verbose": False}
    for name, a, b in (
        ("FID", frechet.frechet_distance(*laws), metric_fid.fid_statistics_to_metric(*statistics, False)),
        ("KID", inception.kernel_distance(features[:num], features[num:], subset_size=num // 2).mean,
         metric_kid.kid_features_to_metric(samples, reference, **size)),
        ("Inception score", inception.inception_score(logits[:num]).mean,
         metric_isc.isc_features_to_metric(torch.from_numpy(expected_logits[:num]))),
    ):  # fmt: skip
        value = next(iter(b.values()))
        print(f"{name}: {a:.9g} and {value:.9g}, relative difference {abs(a / value - 1):.1e}")
    a, b = (float(np.median(speeds[extract])) for extract in (ours, theirs))
    ratio = np.median(np.array(speeds[ours]) / np.array(speeds[theirs]))
    print(f"images per second: {a:.1f} and {b:.1f}, median ratio {ratio:.2f}")


def write_random_weights(path: pathlib.Path) -> pathlib.Path:
    """A state dict of torch-fidelity's network with weights whose activations neither vanish nor explode."""
    import torch
    import torch_fidelity

    class Random(torch_fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):  # the constructor insists on loading a file
            generator = torch.Generator().manual_seed(0)
            for module in self.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                elif isinstance(module, torch.nn.BatchNorm2d):
                    module.weight.data.uniform_(0.8, 1.2, generator=generator)
                    module.bias.data.normal_(0, 0.1, generator=generator)
                    module.running_mean.normal_(0, 0.1, generator=generator)
                    module.running_var.uniform_(0.8, 1.3, generator=generator)

    torch.save({}, path)
    torch.save(Random("", ["2048"], str(path)).state_dict(), path)
    return path


def make_images(seed: int, num: int, contrast: float) -> np.ndarray:
    """[num, 32, 32, 3] uint8, coarse patches of colour with some noise."""
    draw = np.random.RandomState(seed)
    patches = np.kron(draw.randint(0, 256, (num, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    return np.clip(contrast * patches + 20 * draw.randn(num, 32, 32, 3), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
