"""The manifest of samples: what is needed to make them again, or an error that names the file."""

import json
import shutil

import pytest
from run_programs import run

from ddpm_jax import pipeline
from ddpm_jax.pipeline import manifest

MANIFEST = {
    "fingerprint": "sha256:0123", "step": 30, "weights": "ema", "sampling": {"steps": 20}, "machine": {}, "seed": 5,
    "start": 0, "num": 2, "sha256": ["12ab", "34cd"],
}  # fmt: skip


def test_a_manifest_comes_back(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    requested = {"labels": [], "texts": []}  # as of a version that knew none
    assert pipeline.read_manifest(path) == MANIFEST | {"asked": requested}
    requested = {"labels": [3], "texts": ["a three"]}
    path.write_text(json.dumps(MANIFEST | {"asked": requested}))
    assert pipeline.read_manifest(path) == MANIFEST | {"asked": requested}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pipeline.read_manifest(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(MANIFEST)[:-9], "is not a manifest, or damaged: "),
        ("[" * 100_000, "is not a manifest, or damaged: "),
        ("", "is not a manifest, or damaged: "),
        ("[1]", r"is not a manifest: expected an object with fields, got \[1\]"),
        (json.dumps(MANIFEST | {"seed": "5"}), "or damaged: seed must be int, got 5"),
        (json.dumps({"seed": 5}), "or damaged: fingerprint must be str, got None"),
        (
            json.dumps(MANIFEST | {"weights": "emu"}),
            "damaged: weights must be 'ema', 'raw', or 'ema:' and .* got 'emu'",
        ),
        (json.dumps(MANIFEST | {"num": 3}), "damaged: 2 hashes of 3 images from 0 on"),
        (json.dumps(MANIFEST | {"asked": {"labels": ["3"], "texts": []}}), "asked must hold lists of labels and texts"),
        *(
            (json.dumps(MANIFEST | {"asked": {"labels": [], "texts": [], "images": images}}), "asked must name images")
            for images in (5, None, ["a.png"], [["a.png", 3]])
        ),
        (json.dumps(MANIFEST | {"start": -1}), "damaged: 2 hashes of 2 images from -1 on"),
    ],
)
def test_what_is_no_manifest_is_named(tmp_path, text, message):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"manifest.json.*{message}"):
        pipeline.read_manifest(path)


def test_no_two_calls_share_a_folder_that_nobody_named(run_folder, tmp_path):
    """Neither their manifests nor what lies beside: the second call would leave one beside the other's trajectory."""
    folder = shutil.copytree(run_folder, tmp_path / "run")
    call = "sample.py", folder, "--num", 1, "--sampler", "ddim", "--steps", 4
    run(*call, "--trajectory")
    (first_folder,) = (folder / "samples").iterdir()
    assert first_folder.name.startswith("3-seed0-ddim-4-") and (first_folder / "trajectory.gif").exists()
    run(*call, "--eta", 0.5)
    (second_folder,) = {*(folder / "samples").iterdir()} - {first_folder}
    assert pipeline.read_manifest(first_folder / "manifest.json")["sampling"]["eta"] == 0
    assert pipeline.read_manifest(second_folder / "manifest.json")["sampling"]["eta"] == 0.5
    assert not (second_folder / "trajectory.gif").exists()
    again = run(*call).stdout  # the first call, in its own folder
    assert len([*(folder / "samples").iterdir()]) == 2
    assert f"note: the trajectory in {first_folder} is of an earlier call" in again


def test_a_folder_is_named_by_all_that_decides_images_and_nothing_else():
    made = MANIFEST | {"sampling": {"sampler": "unipc", "steps": 5}, "asked": {"labels": []}, "versions": {"jax": "1"}}
    name = manifest.output_name(made)
    assert name.startswith("30-seed5-unipc-5-")
    others = [
        {"seed": 6}, {"start": 1}, {"num": 3}, {"weights": "raw"}, {"fingerprint": "sha256:9"}, {"step": 31},
        {"sampling": made["sampling"] | {"order": 3}}, {"asked": {"labels": [1]}}, {"edit": {"flags": {}}},
        {"x0_errors": "sha256:1"},
    ]  # fmt: skip
    assert len({name, *(manifest.output_name(made | other) for other in others)}) == len(others) + 1
    assert manifest.output_name(made | {"machine": {"kind": "another"}, "versions": {}}) == name
