"""The manifest of samples: what is needed to make them again, or an error that names the file."""

import json

import pytest

from ddpm_jax import runs

MANIFEST = {
    "fingerprint": "sha256:0123", "step": 30, "weights": "ema", "sampling": {"steps": 20}, "machine": {}, "seed": 5,
    "start": 0, "num": 2, "sha256": ["12ab", "34cd"],
}  # fmt: skip


def test_a_manifest_comes_back(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    asked = {"labels": [], "texts": []}  # as of a version that knew none
    assert runs.read_manifest(path) == MANIFEST | {"asked": asked}
    asked = {"labels": [3], "texts": ["a three"]}
    path.write_text(json.dumps(MANIFEST | {"asked": asked}))
    assert runs.read_manifest(path) == MANIFEST | {"asked": asked}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        runs.read_manifest(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(MANIFEST)[:-9], "is not a manifest, or damaged: "),
        ("[" * 100_000, "is not a manifest, or damaged: "),
        ("", "is not a manifest, or damaged: "),
        ("[1]", r"is not a manifest: expected an object with fields, got \[1\]"),
        (json.dumps(MANIFEST | {"seed": "5"}), "or damaged: seed must be int, got 5"),
        (json.dumps({"seed": 5}), "or damaged: fingerprint must be str, got None"),
        (json.dumps(MANIFEST | {"weights": "emu"}), "damaged: weights must be 'ema' or 'raw', got 'emu'"),
        (json.dumps(MANIFEST | {"num": 3}), "damaged: 2 hashes of 3 images from 0 on"),
        (json.dumps(MANIFEST | {"asked": {"labels": ["3"], "texts": []}}), "asked must hold lists of labels and texts"),
        (json.dumps(MANIFEST | {"start": -1}), "damaged: 2 hashes of 2 images from -1 on"),
    ],
)
def test_what_is_no_manifest_is_named(tmp_path, text, said):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"manifest.json.*{said}"):
        runs.read_manifest(path)
