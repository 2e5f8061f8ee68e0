"""Inception over devices and processes: every image once and in order."""

import socket
import subprocess
import sys

import numpy as np
import pytest
import run_programs

from ddpm_jax.evaluate import extractors
from ddpm_jax.metrics import inception


class Corner:
    """In place of Inception: features are three pixels of each image, logits four."""

    def apply(self, variables, images):
        x = images.reshape(len(images), -1).astype(np.float32) * variables["fc"]["kernel"]
        return x[:, :3], x[:, 4:8]


@pytest.fixture
def corner(monkeypatch):
    monkeypatch.setattr(extractors, "TILE", 2)
    monkeypatch.setattr(extractors.inception, "Inception", Corner)
    monkeypatch.setattr(extractors.inception_weights, "read_weights", lambda path: {"fc": {"kernel": np.float32(2)}})
    return extractors.load_extractor


def images_of(n, dtype=np.uint8):
    return np.random.default_rng(n).integers(0, 256, (n, 2, 2, 3)).astype(dtype)


@pytest.mark.parametrize("n", [1, 16, 37])
def test_every_image_has_its_features_in_order(corner, n):
    """On eight devices two each: a part of a round, a round, and two rounds and a part."""
    extractor = extractors.load_inception(256, "weights")
    for dtype in (np.uint8, np.float32):
        images = images_of(n, dtype)
        with extractors.extraction(extractor):
            features, logits = extractor.extract(images)
        flat = 2 * images.reshape(n, -1).astype(np.float32)
        np.testing.assert_array_equal(features, flat[:, :3])
        np.testing.assert_array_equal(logits, flat[:, 4:8])
    assert extractor.name.startswith("inception-v3-compat ") and extractor.dimension == 2048


def test_the_scores_of_a_reference_without_images_leave_out_the_kernel_distance(corner):
    extractor = extractors.load_inception(256, "weights")
    features, logits = extractor.extract(images_of(40))
    whole = extractors.FeatureStatistics(None, features, logits / 100)  # pyright: ignore[reportArgumentType]
    score = inception.inception_score(logits / 100)
    expected = [("inception score", score.mean), ("inception score, deviation over 10 splits", score.std)]
    assert extractor.extra_metrics(whole, whole._replace(features=features[:0])) == expected
    found = extractor.extra_metrics(whole, whole)
    assert found[:2] == expected and [name for name, _ in found[2:]] == ["KID", "KID, deviation over 100 subsets"]


PROGRAM = """
import sys
import numpy as np
from ddpm_jax import process
from ddpm_jax.evaluate import extractors

class Corner:
    def apply(self, variables, images):
        x = images.reshape(len(images), -1).astype(np.float32) * variables["kernel"]
        return x[:, :3], x[:, 4:8]

address, number = sys.argv[1:]
process.initialize(devices=2, distributed=process.DistributedOptions(address, 2, int(number)))
extractors.TILE = 2
extractors.inception.Inception = Corner
extractors.inception_weights.read_weights = lambda path: {"kernel": np.float32(2)}
extractor = extractors.load_inception(256, "weights")
with extractors.extraction(extractor):
    random = np.random.default_rng(0)
    for n, dtype in ((3, np.uint8), (21, np.float32)):
        images = random.integers(0, 256, (n, 2, 2, 3)).astype(dtype)
        features, logits = extractor.extract(images)
        flat = 2 * images.reshape(n, -1).astype(np.float32)
        np.testing.assert_array_equal(features, flat[:, :3])
        np.testing.assert_array_equal(logits, flat[:, 4:8])
    print("all images in order")
print("and on")
"""


@pytest.mark.slow
def test_two_processes_extract_for_the_first(tmp_path):
    """Two of two devices each; the second, which has no images, ends when the first is done."""
    (tmp_path / "extract.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "extract.py", address, str(i)],
            env=run_programs.environment() | {"PYTHONPATH": str(run_programs.ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    main, other = (process.communicate(timeout=300)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], main + other
    assert "all images in order\nand on" in main and "in order" not in other and "and on" not in other
