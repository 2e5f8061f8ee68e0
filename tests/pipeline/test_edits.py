"""`sample.py` with images: known pixels to the bit, nothing compiled for another image, and what is refused."""

import contextlib
import functools
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from run_programs import run

from ddpm_jax import data, measurements, pipeline
from ddpm_jax.config import flags
from ddpm_jax.pipeline import edits, image_parts


@pytest.fixture(scope="module")
def home(tmp_path_factory, run_folder):
    """A run of random parameters, and images of its kind with a mask: the upper half is known."""
    folder = tmp_path_factory.mktemp("edits")
    (folder / "run").symlink_to(run_folder)
    a, b = data.load("digits").test[:2]
    data.write_image(folder / "a.png", a, "png")
    data.write_image(folder / "b.png", b, "png")
    upper = np.zeros((8, 8, 1), np.uint8)
    upper[:4] = 255
    data.write_image(folder / "upper.png", upper, "png")
    data.write_image(folder / "all.png", np.full((8, 8, 1), 255, np.uint8), "png")
    data.write_image(folder / "soft.png", np.arange(64, dtype=np.uint8).reshape(8, 8, 1), "png")
    data.write_image(folder / "wide.png", np.zeros((8, 9, 1), np.uint8), "png")
    data.write_image(folder / "loud.png", np.full((8, 8, 1), 17, np.uint8), "png")
    small = a[:4, :4]
    data.write_image(folder / "small.png", small, "png")
    data.write_image(folder / "blocks.png", small.repeat(2, 0).repeat(2, 1), "png")
    data.write_image(folder / "long.png", np.zeros((4, 8, 1), np.uint8), "png")
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return folder


@functools.cache
def model(home, **sampling):
    return pipeline.Pipeline(home / "run", step=None, weights="ema", sampling={"steps": 5, **sampling})


def drawn(found, start=0, num=4):
    return np.concatenate([found.to_pixels(part.x) for part in found.draw(seed=3, start=start, num=num)])


def requested(home, **options):
    files = {name: value for name, value in options.items() if isinstance(value, str) and name != "measure"}
    paths = {name: str(home / value) for name, value in files.items()}
    return flags.EditOptions(**(options | paths))


def test_known_pixels_are_the_file_s_and_the_others_are_each_image_s_own(home):
    original = data.load("digits").test[0]
    found = pipeline.make_edit(
        model(home), requested(home, inpaint="a.png", mask="upper.png", resample=2, jump=2), start=0, num=4
    )
    images = drawn(found)
    np.testing.assert_array_equal(images[:, :4], np.broadcast_to(original[:4], (4, 4, 8, 1)))
    assert len({image.tobytes() for image in images}) == 4
    assert found.manifest()["times"] == found.times.tolist() and (np.diff(found.times) > 0).any()


def test_predictions_are_brought_in_line_with_known_pixels_if_asked(home):
    original, found = data.load("digits").test[0], []
    for count in (None, 1):
        ask = requested(home, inpaint="a.png", mask="upper.png", cg_steps=count)
        found.append(drawn(pipeline.make_edit(model(home), ask, start=0, num=4)))
        np.testing.assert_array_equal(found[-1][:, :4], np.broadcast_to(original[:4], (4, 4, 8, 1)))
    assert (found[0][:, 4:] != found[1][:, 4:]).any((1, 2, 3)).all()


def test_of_a_wholly_known_image_nothing_is_made(home):
    found = pipeline.make_edit(model(home), requested(home, inpaint="a.png", mask="all.png"), start=0, num=2)
    np.testing.assert_array_equal(drawn(found, num=2), data.load("digits").test[[0, 0]])


def test_samples_have_the_measurement_that_is_given_or_taken_of_an_image_with_its_noise(home):
    """With eps_hat = 0 one step of conjugate gradients is exact."""
    silent = pipeline.Pipeline(home / "run", step=None, weights="ema", sampling={"steps": 5, "clip": False})
    silent.params = jax.tree.map(np.zeros_like, silent.params)

    def found(**options):
        options = requested(home, measure="downsample:2", cg_steps=1, **options)
        return pipeline.make_edit(silent, options, start=0, num=4)

    computed, read = found(original="blocks.png"), found(measurement="small.png")
    images = drawn(computed)
    np.testing.assert_array_equal(drawn(read), images)
    np.testing.assert_array_equal(drawn(read, start=2, num=1), images[2:3])
    assert len({image.tobytes() for image in images}) == 4
    np.testing.assert_array_equal(computed.pictures, [*read.pictures, *read.pictures])

    y = {}
    for noise in (0.0, 1e-3, 2.0):
        edit = found(original="a.png", noise=noise)
        (part,) = edit.draw(seed=3, start=0, num=4)
        y[noise] = edit.inputs[0]
        means = part.x.reshape(4, 4, 2, 4, 2, 1).mean((2, 4))
        np.testing.assert_allclose(means, np.broadcast_to(y[noise], means.shape), atol=5 * noise + 1e-5)
    a = data.load("digits").test[0].reshape(4, 2, 4, 2, 1).mean((1, 3)) / 8.0 - 1
    np.testing.assert_allclose(y[0.0][0], a, atol=1e-6)
    np.testing.assert_allclose((y[2.0] - y[0.0]) / 2, (y[1e-3] - y[0.0]) / 1e-3, atol=1e-3)
    assert 0.5 < np.std(y[2.0] - y[0.0]) / 2 < 1.5


@pytest.mark.parametrize(("name", "channels"), [("blur:1.5", 3), ("downsample:4", 1), ("grey", 3)])
def test_each_name_is_its_operator(name, channels):
    x = np.random.default_rng(0).normal(size=(1, 8, 4, channels)).astype(np.float32)
    expected = {"blur:1.5": measurements.blur(1.5), "downsample:4": measurements.downsample(4)}
    operator = edits.read_operator(name, x.shape[1:])
    np.testing.assert_array_equal(operator(x), expected.get(name, measurements.grey)(x))


def test_a_little_strength_leaves_the_image_and_all_of_it_does_not(home):
    """Of 20 times the first has a noise of 0.07, half a level of 17; the last has next to no signal."""
    original, off = data.load("digits").test[0].astype(float), {}
    for strength in (0.05, 1.0):
        found = pipeline.make_edit(
            model(home, steps=20), requested(home, init_image="a.png", strength=strength), start=0, num=4
        )
        off[strength] = np.sqrt(np.mean((drawn(found) - original) ** 2))
    assert off[0.05] < 2 < off[1.0], off


def test_a_series_of_a_network_that_says_nothing_is_the_arc_between_its_two_images(home):
    """With eps_hat = 0 every step is a scaling: the way to noise and back leaves the images and the arc as they are."""
    silent = pipeline.Pipeline(
        home / "run", step=None, weights="ema", sampling={"sampler": "ddim", "steps": 5, "clip": False}
    )
    silent.params = jax.tree.map(np.zeros_like, silent.params)
    asks = flags.EditOptions(interpolate=(str(home / "a.png"), str(home / "b.png")))
    images = drawn(pipeline.make_edit(silent, asks, start=0, num=5), num=5)
    pair = data.load("digits").test[:2]
    np.testing.assert_array_equal(images[[0, -1]], pair)
    a, b = pair.reshape(2, -1) / 8.0 - 1
    angle = np.arccos(a @ b / np.sqrt((a @ a) * (b @ b)))
    arc = (a + b) / (2 * np.cos(angle / 2))  # at the middle, the sum brought to the arc's length
    np.testing.assert_allclose(images[2].reshape(-1), np.clip(8 * arc + 8, 0, 16), atol=0.5 + 1e-4)


def test_a_manifest_makes_them_again_unless_a_file_has_changed(home, tmp_path):
    for name in ("a.png", "upper.png"):
        shutil.copy(home / name, tmp_path / name)
    found = pipeline.make_edit(model(home), requested(tmp_path, inpaint="a.png", mask="upper.png"), start=0, num=2)
    manifest = json.loads(json.dumps(found.manifest() | {"start": 0, "num": 2}))
    np.testing.assert_array_equal(drawn(pipeline.edit_from_manifest(model(home), manifest), num=2), drawn(found, num=2))
    assert pipeline.edit_from_manifest(model(home), {"start": 0, "num": 2}) is None
    shutil.copy(home / "b.png", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has other pixels than when these images were made: sha256 "):
        pipeline.edit_from_manifest(model(home), manifest)
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"--inpaint: there is no file .*a\.png"):
        pipeline.edit_from_manifest(model(home), manifest)
    with pytest.raises(ValueError, match="the manifest is damaged in its record of an edit"):
        pipeline.edit_from_manifest(model(home), manifest | {"edit": {"flags": {"paint": 1}, "sha256": {}}})


def test_a_manifest_of_an_older_version_names_flags_by_their_former_names(home):
    found = pipeline.make_edit(model(home), requested(home, init_image="a.png", strength=0.5), start=0, num=2)
    manifest = json.loads(json.dumps(found.manifest() | {"start": 0, "num": 2}))
    recorded_flags = manifest["edit"]["flags"]
    recorded_flags["init"] = recorded_flags.pop("init_image")
    again = pipeline.edit_from_manifest(model(home), manifest)
    assert again.record == found.record
    np.testing.assert_array_equal(drawn(again, num=2), drawn(found, num=2))
    assert model(home, mix=0.5).config.sampling.variance_mix == 0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"inpaint": "a.png"}, "--inpaint needs a --mask"),
        ({"mask": "all.png"}, "--mask needs --inpaint, which is not given"),
        ({"strength": 0.5}, "--strength needs --init-image, which is not given"),
        ({"inpaint": "a.png", "init_image": "a.png"}, "--inpaint and --init-image are different things"),
        ({"inpaint": "a.png", "mask": "soft.png"}, "64 different values; expected 0 where a pixel is generated"),
        (
            {"inpaint": "a.png", "mask": "wide.png"},
            "8x9x1 uint8; expected the images' size with one",
        ),
        (
            {"inpaint": "a.png", "mask": "all.png", "jump": 0},
            "jump and repeats must be integers of at least 1, got 0 and 1",
        ),
        ({"init_image": "a.png", "cg_steps": 1}, "--cg-steps needs --inpaint or --measure, which is not given"),
        ({"inpaint": "a.png", "mask": "all.png", "noise": 0.1}, "--noise needs --measure, which is not given"),
        ({"measurement": "a.png"}, "--measurement needs --measure, which is not given"),
        ({"measure": "blur:1", "inpaint": "a.png"}, "--inpaint and --measure are different things"),
        ({"measure": "blur:1"}, "--measure needs one of --original, an image of which the program takes"),
        ({"measure": "blur:1", "original": "a.png", "measurement": "a.png"}, "--measure needs one of --original"),
        ({"measure": "blur:1", "original": "a.png", "cg_steps": 0}, "--measure needs --cg-steps of at least 1, got 0"),
        ({"measure": "blur", "original": "a.png"}, "--measure blur: expected blur:SIGMA, a standard deviation above 0"),
        ({"measure": "blur:0", "original": "a.png"}, "--measure blur:0: expected blur:SIGMA"),
        ({"measure": "blur:9", "original": "a.png"}, "above 0 and up to 8 pixels, downsample:FACTOR or grey"),
        ({"measure": "sharpen:2", "original": "a.png"}, "--measure sharpen:2: expected blur:SIGMA"),
        (
            {"measure": "downsample:3", "original": "a.png"},
            "--measure downsample:3: the factor must divide the images' sides, 8x8: it is one of 1, 2, 4, 8",
        ),
        ({"measure": "grey", "original": "a.png"}, "--measure grey is for images of 3 channels, and this run's have 1"),
        ({"measure": "downsample:2", "measurement": "long.png"}, "4x8x1 uint8; this run has 4x4x1 uint8 there"),
        ({"measure": "blur:1", "original": "torn.png"}, "torn.png: cannot be decoded, damaged or cut off"),
        ({"init_image": "wide.png"}, "8x9x1 uint8; this run has 8x8x1 uint8"),
        ({"init_image": "loud.png"}, "holds the value 17; this run has levels 0 to 16"),
        ({"init_image": "none.png"}, "--init-image: there is no file"),
        ({"init_image": "run/config.json"}, "not an image, or a damaged one"),
        ({"init_image": "a.png", "strength": 2.0}, "strength must lie in (0, 1], got 2.0"),
        ({"interpolate": ("a.png", "b.png")}, "add --sampler ddim --eta 0"),
    ],
)
def test_what_cannot_be_is_refused(home, options, text):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(text)):
        pipeline.make_edit(model(home), requested(home, **options), start=0, num=4)


def test_how_an_ordinary_picture_becomes_the_runs_is_said(home, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="12x16x3 uint8; this run has 8x8x1 uint8") as raised:
        pipeline.make_edit(model(home), requested(tmp_path, init_image="photo.png"), start=0, num=4)
    advice = str(raised.value).partition("with Pillow: ")[2]
    with contextlib.chdir(tmp_path):
        eval(advice, {"Image": Image})
    made = pipeline.make_edit(model(home), requested(tmp_path, init_image="other.png"), start=0, num=4)
    (model_input,) = made.inputs
    grey = np.asarray(Image.fromarray(picture).convert("L").resize((8, 8)), float) / 127.5 - 1
    np.testing.assert_allclose(model_input[..., 0], grey, atol=1 / 16 + 1e-6)


def test_a_series_begins_at_its_first_image(home):
    asks = flags.EditOptions(interpolate=(str(home / "a.png"), str(home / "b.png")))
    with pytest.raises(ValueError, match="--start must be 0 and --num at least 2, got 3 and 4"):
        pipeline.make_edit(model(home, sampler="ddim"), asks, start=3, num=4)


def test_the_program_keeps_known_pixels_and_verifies(home, tmp_path):
    out = tmp_path / "out"
    shutil.copy(home / "a.png", tmp_path / "a.png")  # which is overwritten below
    edit = ("--inpaint", tmp_path / "a.png", "--mask", home / "upper.png", "--resample", 2, "--jump", 3)
    run("sample.py", home / "run", "--num", 4, "--steps", 8, "--format", "png", "--out", out, *edit)
    original = data.load("digits").test[0]
    np.testing.assert_array_equal(data.read_png(out / "images" / "000003.png").image[:4], original[:4])
    shown = run("sample.py", home / "run", "--verify", out / "manifest.json")
    assert "equal: all 4 images" in shown.stdout
    shutil.copy(home / "b.png", tmp_path / "a.png")
    shown = run("sample.py", home / "run", "--verify", out / "manifest.json", status=2)
    assert "a.png has other pixels than when these images were made" in shown.stderr


def test_the_program_draws_from_a_measurement_goes_on_where_it_was_and_verifies(home, tmp_path, monkeypatch):
    shutil.copy(home / "a.png", tmp_path / "a.png")
    edit = "--measure", "blur:0.8", "--original", tmp_path / "a.png", "--noise", 0.1, "--cg-steps", 2

    def sample(status):
        call = "sample.py", home / "run", "--num", 12, "--steps", 4, "--out", tmp_path / "out", "--format", "npz"
        run(*call, *edit, status=status)

    def stopping(folder, *part):
        store(folder, *part)
        signal.raise_signal(signal.SIGTERM)

    store = image_parts.write_part
    with monkeypatch.context() as patches:
        patches.setattr(image_parts, "PART_SIZE", 4)
        patches.setattr(image_parts, "write_part", stopping)
        sample(status=4)
    assert len([*(tmp_path / "out" / "samples.parts").glob("*.npy")]) == 2
    sample(status=0)
    grid = data.read_png(tmp_path / "out" / "grid.png").image
    expected, scale = np.rint(data.load("digits").test[0] / 16 * 255), data.preview_scale((8, 8, 1))
    np.testing.assert_array_equal(grid[scale : 9 * scale : scale, scale : 9 * scale : scale], expected)
    shown = run("sample.py", home / "run", "--verify", tmp_path / "out" / "manifest.json")
    assert "equal: all 12 images" in shown.stdout
    shutil.copy(home / "torn.png", tmp_path / "a.png")
    shown = run("sample.py", home / "run", "--verify", tmp_path / "out" / "manifest.json", status=2)
    assert "a.png: cannot be decoded, damaged or cut off" in shown.stderr
