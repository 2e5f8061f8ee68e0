"""Any shape, any depth, the format that came in: each trains and draws, by the programs as a user runs them."""

import functools
import pathlib
import re
import types

import numpy as np
import pytest
from PIL import Image
from run_programs import run

from ddpm_jax import data
from ddpm_jax.data.image_files import decode
from ddpm_jax.pipeline import outputs

TINY = """
from ddpm_jax.config import Config, Evaluation, Net, Optim, Sampling, Schedule

config = Config(
    steps=5, batch=4, log_every=1, sample_every=0, save_every=10, schedule=Schedule(T=8, beta_1=0.05, beta_T=0.9),
    net=Net(4, (1,), 1, (), dropout=0.1, groups=2), optim=Optim(learning_rate=3e-3, warmup=2, ema_decay=0.5),
    sampling=Sampling(steps=8, tile=2, num=2), evaluation=Evaluation(images=2, strata=1),
)
"""


def noise(*shape, dtype: type = np.uint8):
    return np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def pictures(folder, images, extension, **options):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(folder / f"{i}.{extension}", **options)
    return f"folder:{folder}"


def arrays(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        np.save(folder / f"{i}.npy", image)
    return f"folder:{folder}"


def archive(path, images):
    np.savez(path, images=images)
    return f"npz:{path}"


@functools.cache
def sources(home):
    """name: (source, flags of training); from 1 to 5 channels, and volumes."""
    volumes = np.linspace(-3, 7, 20 * 6 * 8 * 8, dtype=np.float32).reshape(20, 6, 8, 8, 1)
    flip = ["--data.flip"]
    return {
        "grey16": (pictures(home / "1", noise(20, 8, 8, 1, dtype=np.uint16), "png"), []),
        "line": (archive(home / "2.npz", noise(20, 1, 64, 2)), flip),
        "jpg": (pictures(home / "3", noise(20, 8, 8, 3), "jpg", quality=95), flip),
        "webp": (pictures(home / "4", noise(20, 33, 47, 4), "webp", lossless=True, exact=True), []),
        "five": (archive(home / "5.npz", noise(20, 8, 8, 5, dtype=np.uint16) % 200), ["--data.levels", "200"]),
        "volume": (arrays(home / "6", volumes), ["--data.range", "-3", "7", *flip]),
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "tiny.py").write_text(TINY)
    return folder


@functools.cache
def message(home: pathlib.Path, name: str) -> str:
    """What the programs say of a run that trains 5 steps and then draws the images 7, 8 and 9."""
    source, flags = sources(home)[name]
    shown = [run("train.py", home / "tiny.py", "--workdir", home / name, "--data.source", source, *flags)]
    draw = ("sample.py", home / name, "--num", 3, "--start", 7)
    trajectory = ["--trajectory"] if name == "volume" else []
    shown.append(run(*draw, "--out", home / f"{name}-out", *trajectory))
    if name == "grey16":
        shown.append(run(*draw, "--out", home / "tiffs", "--format", "tiff"))
    if name == "volume":
        shown.append(run("sample.py", home / name, "--verify", home / "volume-out" / "manifest.json"))
    return "".join(done.stdout for done in shown)


EXPECTED = {
    "grey16": ((8, 8, 1), np.uint16, "png"), "line": ((1, 64, 2), np.uint8, None), "jpg": ((8, 8, 3), np.uint8, "jpg"),
    "webp": ((33, 47, 4), np.uint8, "webp"), "five": ((8, 8, 5), np.uint16, None),
    "volume": ((6, 8, 8, 1), np.float32, "npy"),
}  # fmt: skip


QUICK = ("grey16", "volume")
some = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPECTED]


@pytest.mark.parametrize("name", some)
def test_it_trains_and_draws_what_came_in(home, name):
    shape, dtype, extension = EXPECTED[name]
    out = message(home, name)
    assert f", {'x'.join(map(str, shape))} {np.dtype(dtype)}, " in out and "held-out loss" in out
    found = np.load(home / f"{name}-out" / "samples.npz")["arr_0"]
    assert (found.shape, found.dtype) == ((3, *shape), dtype)
    assert len({image.tobytes() for image in found}) == 3
    written = sorted((home / f"{name}-out").glob("images/*"))
    if extension is None:
        assert not written
        return
    assert [path.name for path in written] == [f"00000{i}.{extension}" for i in (7, 8, 9)]
    for path, image in zip(written, found, strict=True):
        back = decode(path).pixels
        assert (back.shape, back.dtype) == (shape, dtype)
        if extension != "jpg":
            np.testing.assert_array_equal(back, image)
    assert ("jpg is lossy, samples.npz is exact" in out) == (extension == "jpg")


def test_samples_of_a_folder_are_a_folder_to_train_on(home):
    message(home, "grey16")
    found = data.load(f"folder:{home / 'grey16-out' / 'images'}")
    assert (found.train.dtype, found.levels, found.format) == (np.uint16, 65536, "png")


def test_another_format_holds_the_same_images(home):
    message(home, "grey16")
    for i in (7, 8, 9):
        png, tiff = decode(home / "grey16-out/images" / f"00000{i}.png"), decode(home / f"tiffs/images/00000{i}.tiff")
        np.testing.assert_array_equal(png.pixels, tiff.pixels)


def test_floating_point_volumes_are_in_their_range_drawn_on_their_way_and_made_again(home):
    out = message(home, "volume")
    found = np.load(home / "volume-out" / "samples.npz")["arr_0"]
    assert found.min() >= -3 and found.max() <= 7 and "float32, -3 to 7, " in out
    assert "equal: all 3 images, bit for bit" in out and "trajectory at t = [8, " in out
    picture = data.read_png(home / "volume-out" / "grid.png").image  # three volumes of six slices, two in a row
    np.testing.assert_array_equal(picture[1:9, 1:49], data.make_grid(found[:1], data.ValueRange(-3, 7), padding=0))


@pytest.mark.parametrize(
    ("name", "form", "text"),
    [
        ("volume", "tiff", "6x8x8x1 float32 cannot be tiff, .*; take npy"),
        pytest.param("five", "png", "8x8x5 uint16 cannot be png, .*; take npy", marks=pytest.mark.slow),
        pytest.param(
            "webp", "jpg", "33x47x4 uint8 cannot be jpg, .*; take png or webp or tiff", marks=pytest.mark.slow
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_is_drawn(home, name, form, text):
    message(home, name)
    assert re.search(
        f"--format {form}: images {text}", run("sample.py", home / name, "--format", form, status=2).stderr
    )


def test_floating_point_images_are_not_for_what_is_done_with_integers_and_need_a_range(home):
    message(home, "volume")
    refused = run("-m", "ddpm_jax", "evaluate", home / "volume", "likelihood", status=2).stderr
    assert "has floating-point images, and this command needs integers" in refused
    flags = ("--workdir", home / "none", "--data.source", f"folder:{home / '6'}")
    refused = run("train.py", home / "tiny.py", *flags, status=2).stderr
    assert "floating-point values from -3 to 7; say which" in refused


@pytest.mark.parametrize(
    ("came", "shape", "requested", "written"),
    [
        ("gif", (8, 8, 3), "source", "png"), ("bmp", (8, 8, 4), "source", "png"), ("bmp", (8, 8, 3), "source", "bmp"),
        ("", (8, 8, 1), "source", "npz"), ("png", (8, 8, 1), "npz", "npz"), ("npz", (8, 8, 1), "bmp", "bmp"),
    ],
)  # fmt: skip
def test_what_cannot_go_out_as_it_came_in_is_a_png_and_that_is_said(capsys, came, shape, requested, written):
    model = types.SimpleNamespace(format=came, shape=shape, dtype=np.dtype(np.uint8))
    assert outputs.file_format(model, requested) == written
    message = f"training images are {came} files, which cannot be written: the samples will be png files\n"
    assert capsys.readouterr().out == (message if written == "png" else "")
