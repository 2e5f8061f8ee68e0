"""Folders of images: what is in them is told by name, what can be used is used exactly, and the rest is refused."""

import dataclasses
import io
import os
import re
import shutil
import struct
import sys
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tyro
from image_files import animation, converted, encoded, random_pixels, truncated
from PIL import Image

from ddpm_jax import config as configs
from ddpm_jax import data
from ddpm_jax.data.dataset import map_in_threads
from ddpm_jax.data.folder_report import make_folder_report
from ddpm_jax.data.image_files import EXTENSIONS, decode, resize_center_crop
from ddpm_jax.data.tfds import records


def put(path: Path, pixels: np.ndarray, **options) -> Path:
    """A picture of these pixels; the extension says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)
    return path


def reported(folder, **options):
    """The images, and the report as one text."""
    lines: list[str] = []
    return data.load(f"folder:{folder}", report=lines.append, **options), "\n".join(lines)


def together(images):
    """Training and held-out images, in the order of the folder if labels count them."""
    return np.concatenate([images.train, images.test])


# What is read is what was written

EXACT = [
    ("L.png", 1, np.uint8, {}), ("LA.png", 2, np.uint8, {}), ("RGB.PNG", 3, np.uint8, {}),
    ("RGBA.png", 4, np.uint8, {}), ("L.Tif", 1, np.uint8, {}), ("RGBA.tif", 4, np.uint8, {}),
    ("RGB.tiff", 3, np.uint8, {"compression": "tiff_deflate"}),
    ("16.png", 1, np.uint16, {}), ("16.tif", 1, np.uint16, {}), ("16.TIFF", 1, np.uint16, {"compression": "tiff_lzw"}),
    ("RGB.bmp", 3, np.uint8, {}), ("L.BMP", 1, np.uint8, {}), ("RGB.webp", 3, np.uint8, {"lossless": True}),
    ("RGBA.WebP", 4, np.uint8, {"lossless": True, "exact": True}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "channels", "dtype", "options"), EXACT, ids=[case[0] for case in EXACT])
def test_pixels_survive_exactly(tmp_path, name, channels, dtype, options):
    pixels = [random_pixels(9, 7, channels, dtype=dtype, seed=i) for i in range(3)]
    for i in range(3):
        put(tmp_path / f"{i}{name}", pixels[i], **options)
    train, test = data.open_readers(f"folder:{tmp_path}")
    assert (train.shape, train.dtype, train.levels) == ((9, 7, channels), dtype, np.iinfo(dtype).max + 1)
    found = sorted([train[0].tobytes(), train[1].tobytes(), test[0].tobytes()])
    assert found == sorted(image.tobytes() for image in pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff"])
def test_every_one_of_sixteen_bits_survives(tmp_path, name):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    options = {"compression": "tiff_adobe_deflate"} if name == "a.tiff" else {}
    image = decode(put(tmp_path / name, ramp, **options))
    assert (image.mode, image.pixels.dtype) == ("I;16", np.uint16)
    np.testing.assert_array_equal(image.pixels, ramp)


def test_big_endian_tiffs_and_arrays_are_the_same_numbers(tmp_path):
    ramp = np.arange(300, dtype=np.uint16).reshape(15, 20) * 218
    entries = [(256, 3, 20), (257, 3, 15), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8 + 2 + 12 * 8 + 4)]
    entries += [(277, 3, 1), (279, 4, 600)]
    shift = {3: 65536, 4: 1}  # a short stands to the left in its four bytes
    table = b"".join(struct.pack(">HHII", tag, kind, 1, value * shift[kind]) for tag, kind, value in entries)
    tiff = b"MM\0*" + struct.pack(">IH", 8, 8) + table + bytes(4) + ramp.astype(">u2").tobytes()
    (tmp_path / "a.tif").write_bytes(tiff)
    np.save(tmp_path / "a.npy", ramp.astype(">u2"))
    for name, mode in [("a.tif", "I;16"), ("a.npy", "uint16 x 1")]:
        image = decode(tmp_path / name)
        assert (image.mode, image.pixels.dtype.isnative) == (mode, True)
        np.testing.assert_array_equal(image.pixels[..., 0], ramp)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 2), (6, 5, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_may_have_any_number_of_channels(tmp_path, shape, dtype):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full(shape, i, dtype))
    images = data.load(f"folder:{tmp_path}")
    assert images.train.shape == (3, *shape[:2], shape[2] if len(shape) == 3 else 1)
    assert images.train.dtype == dtype
    assert sorted(together(images)[:, 0, 0, 0]) == [0, 1, 2, 3]


def test_lossy_formats_are_close(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8)[:, None, None], (50, 40, 3))
    for name in ("a.jpg", "b.JPEG", "c.webp"):
        image = decode(put(tmp_path / name, ramp, quality=95)).pixels
        assert np.abs(image.astype(int) - ramp).max() <= 8


def test_of_a_cameras_file_of_several_pictures_the_first_is_read(tmp_path):
    first_picture, second_picture = (np.full((16, 16, 3), value, np.uint8) for value in (40, 200))
    Image.fromarray(first_picture).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(second_picture)], quality=95
    )
    with Image.open(tmp_path / "a.jpg") as file:
        assert (file.format, file.n_frames) == ("MPO", 2)
    image = decode(tmp_path / "a.jpg")
    assert (image.format, image.mode) == ("JPEG", "RGB") and np.abs(image.pixels.astype(int) - 40).max() <= 2


def test_the_content_counts_and_not_the_extension(tmp_path):
    pixels = random_pixels(5, 5, 3)
    (tmp_path / "a.jpg").write_bytes(encoded(pixels, "PNG"))
    image = decode(tmp_path / "a.jpg")
    assert image.format == "PNG"
    np.testing.assert_array_equal(image.pixels, pixels)


# Order, labels by folder, splits


def test_the_order_and_the_division_are_those_of_an_npz_file(tmp_path):
    pixels = random_pixels(60, 4, 4, 3)
    names = sorted(f"{'ab'[i % 2]}{'/-'[i % 3 == 0]}{i}.png" for i in range(60))  # "-" comes before "/"
    for i in np.random.RandomState(1).permutation(60):  # files are made in another order than that of their names
        put(tmp_path / "images" / names[i], pixels[i])
    np.savez(tmp_path / "a.npz", images=pixels)
    ours, theirs = (data.load(source, held_out=0.2) for source in (f"folder:{tmp_path}", f"npz:{tmp_path / 'a.npz'}"))
    np.testing.assert_array_equal(ours.train, theirs.train)
    np.testing.assert_array_equal(ours.test, theirs.test)


def test_labels_are_the_first_level_of_folders(tmp_path):
    for i in range(30):
        deeper = "deep/er/" if i % 2 else ""
        put(tmp_path / ("dog", "ant", "cat")[i % 3] / f"{deeper}{i}.png", np.full((2, 2, 3), i, np.uint8))
    images, report = reported(tmp_path)
    assert images.label_names == ("ant", "cat", "dog")
    for pixels, labels in [(images.train, images.train_labels), (images.test, images.test_labels)]:
        assert labels is not None and labels.dtype == np.int32
        np.testing.assert_array_equal(labels, np.array([2, 0, 1])[pixels[:, 0, 0, 0] % 3])
    assert "labels    by sub-folder: 3 (ant, cat, dog)" in report
    assert "27 training and 3 held-out images: held_out=0.1" in report
    put(tmp_path / "loose.png", np.zeros((2, 2, 3), np.uint8))
    images, report = reported(tmp_path)
    assert (images.train_labels, images.label_names) == (None, ())
    assert "labels    none: 1 images lie outside of the sub-folders (loose.png)" in report


def test_folders_named_by_numbers_are_in_their_order(tmp_path):
    for i in range(12):
        put(tmp_path / str(i) / "a.png", np.full((2, 2, 3), i, np.uint8))
    images = data.load(f"folder:{tmp_path}")
    assert images.train_labels is not None
    np.testing.assert_array_equal(images.train_labels, images.train[:, 0, 0, 0])


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("train", "test"), ("train", "val"), ("train", "validation"), ("train", "valid"), ("Train", "Test"),
        ("TRAINING", "Testing"), ("train", "dev"), ("train2017", "val2017"), ("train_images", "test-set"),
        ("trainset", "held_out"), ("train", "Eval"),
    ],
)  # fmt: skip
def test_folders_that_divide_are_no_labels(tmp_path, train, held):
    for i in range(9):
        part = (held, train, train)[i % 3]
        put(tmp_path / part / "xyz"[i // 3] / f"{i}.png", np.full((2, 2, 3), i, np.uint8))
    images, report = reported(tmp_path, held_out=0.9)
    assert images.test[:, 0, 0, 0].tolist() == [0, 3, 6]
    assert images.train[:, 0, 0, 0].tolist() == [1, 2, 4, 5, 7, 8]
    assert images.train_labels is not None and images.test_labels is not None
    assert (images.train_labels.tolist(), images.test_labels.tolist()) == ([0, 0, 1, 1, 2, 2], [0, 1, 2])
    assert f"6 training and 3 held-out images: {train}/ and {held}/" in report


def test_a_folder_that_may_be_a_split_is_not_taken_for_a_label(tmp_path):
    pixels = random_pixels(2, 2, 3)
    for top in ("train", "Lernen"):
        for name in ("cat", "dog", "cow"):
            put(tmp_path / top / name / "a.png", pixels)
    report_lines = r"train/ and Lernen/ both have sub-folders cat, cow, dog: if the two divide the images, call them"
    with pytest.raises(ValueError, match=report_lines):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "train").rename(tmp_path / "Validation")
    with pytest.raises(ValueError, match=r"Validation/ and Lernen/ both have sub-folders"):
        data.load(f"folder:{tmp_path}")
    # no name says which is what: the report asks
    (tmp_path / "Validation").rename(tmp_path / "Pr\u00fcfen")
    images, report = reported(tmp_path)
    assert images.label_names == ("Lernen", "Pr\u00fcfen")
    assert "all have the sub-folders cat, cow, dog: if they divide the images, call them train/ and test/" in report
    shutil.rmtree(tmp_path / "Pr\u00fcfen" / "cow")
    assert "if they divide" not in reported(tmp_path)[1]


def test_labels_are_found_in_the_one_split_that_there_is(tmp_path):
    for name in ("cat", "dog"):
        for i in range(4):
            put(tmp_path / "train" / name / f"{i}.png", random_pixels(2, 2, 3))
    assert data.load(f"folder:{tmp_path}").label_names == ("cat", "dog")
    for name in ("training", "express"):  # kinds of trains, beside none that is held out
        put(tmp_path / "trains" / name / "0.png", random_pixels(2, 2, 3))
    assert data.load(f"folder:{tmp_path / 'trains'}").label_names == ("express", "training")


def test_splits_that_are_not_clear_are_refused(tmp_path):
    pixels = random_pixels(2, 2, 3)
    put(tmp_path / "train" / "a.png", pixels)
    put(tmp_path / "bus" / "a.png", pixels)
    assert data.load(f"folder:{tmp_path}").label_names == ("bus", "train")  # no test: these are classes
    put(tmp_path / "test" / "a.png", pixels)
    with pytest.raises(ValueError, match=r"1 images lie outside of train/ and test/: bus/a\.png; move them"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "bus").rename(tmp_path / "val")
    with pytest.raises(ValueError, match="test/, val/ beside train/; keep one to train on and one to hold"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "val" / "a.png").unlink()
    (tmp_path / "test" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no usable images in test/"):
        data.load(f"folder:{tmp_path}", skip_bad=True)


# Names that look alike

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_names_that_look_alike_are_one_label(tmp_path):
    for part, name in (("train", COMPOSED), ("test", DECOMPOSED), ("train", "tea"), ("test", "tea")):
        put(tmp_path / part / name / "0.png", random_pixels(2, 2, 3))
    images, report = reported(tmp_path)
    assert images.label_names == (COMPOSED, "tea") and f"by sub-folder: 2 ({COMPOSED}, tea)" in report
    assert images.train_labels is not None and images.test_labels is not None
    assert images.train_labels.tolist() == images.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(("on_disk", "in_table"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_table_names_a_file_in_either_form(tmp_path, on_disk, in_table):
    for name in (on_disk, "tea"):
        put(tmp_path / f"{name}.png", random_pixels(2, 2, 3))
    (tmp_path / "a.csv").write_text(f"file,label\n{in_table}.png,hot {in_table}\ntea.png,hot {on_disk}\n", "utf-8")
    assert data.load(f"folder:{tmp_path}").label_names == (f"hot {COMPOSED}",)
    if on_disk == COMPOSED:  # two files of names that look alike are told apart by their bytes
        put(tmp_path / f"{in_table}.png", random_pixels(2, 2, 3))
        with pytest.raises(ValueError, match=f"1 images have no label in any table.*\n  {COMPOSED}.png"):
            data.load(f"folder:{tmp_path}")


def test_what_moves_a_cursor_is_escaped_wherever_a_folder_is_spoken_of(tmp_path):
    escape = "\x1b[31m"
    put(tmp_path / "pictures" / f"cat{escape}" / "0.png", random_pixels(2, 2, 3))
    put(tmp_path / "pictures" / "dog" / "0.png", random_pixels(2, 2, 3))
    _, report = reported(tmp_path / "pictures")
    assert escape not in report and r"'cat\x1b[31m'" in report
    for header, row in ((f"fil{escape},label", "0.png,a"), ("file,label", f"{escape}.png,a"), ("file,label", "a,b,c")):
        (tmp_path / "pictures" / f"a{escape}.csv").write_text(f"{header}\n{row}\n")
        with pytest.raises(ValueError, match=r"x1b\[31m") as error:
            data.load(f"folder:{tmp_path / 'pictures'}")
        assert escape not in str(error.value)


# A dirty folder


def sixteen_bit_colour_png(pixels):
    """Of uint16 [H, W, 3], which Pillow does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (b"IHDR", b"IDAT", b"IEND"), (header, zlib.compress(rows), b"")))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def array(pixels):
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


SMALL = random_pixels(8, 8, 3)
GOOD = {
    "one/a.JPG": encoded(SMALL, "JPEG"),
    "one/b.webp": encoded(SMALL, "WEBP"),
    "two/deep/c.PNG": encoded(SMALL, "PNG"),
}
BAD = {
    "cut.jpg": (truncated(random_pixels(64, 64, 3), "JPEG"), "cannot be decoded, damaged or cut off: .*truncated"),
    "cut.png": (truncated(random_pixels(64, 64, 3), "PNG"), "cannot be decoded, damaged or cut off: "),
    "cut.webp": (truncated(random_pixels(64, 64, 3), "WEBP"), "(cannot be decoded, damaged or cut off|not an image)"),
    "cut.tif": (truncated(random_pixels(64, 64, 3), "TIFF"), "(cannot be decoded, damaged or cut off|not an image)"),
    "cut.npy": (array(SMALL)[:-20], "not a .npy file, or not a whole one"),
    "empty.png": (b"", "empty: 0 bytes"),
    "empty.npy": (b"", "empty: 0 bytes"),
    "text.png": (b"hello", r"not an image, or a damaged one \(none of PNG, JPEG"),
    "text.npy": (b"hello", "not a .npy file, or not a whole one"),
    "gif.gif": (animation("GIF"), "animated, or several images in one file: 3 frames"),
    "webp.webp": (animation("WEBP"), "animated, .*: 3 frames"),
    "apng.png": (animation("PNG"), "animated, .*: 3 frames"),
    "pages.tif": (animation("TIFF"), "animated, .*: 3 frames"),
    "cmyk.jpg": (converted("CMYK", "JPEG"), "mode CMYK: convert it to one of L, LA, RGB, RGBA"),
    "gray.png": (converted("L", "PNG"), "mode L, but the most frequent mode is RGB"),
    "alpha.png": (converted("RGBA", "PNG"), "mode RGBA, but the most frequent mode is RGB"),
    "palette.png": (converted("P", "PNG"), "mode P, a palette: convert it to RGB"),
    "bits.png": (converted("1", "PNG"), "mode 1, one bit per pixel: convert it to L"),
    "float.tif": (converted("F", "TIFF"), "mode F: convert it to one of"),
    "key.png": (converted("RGB", "PNG", transparency=(1, 2, 3)), "mode RGB with one transparent colour"),
    "deep.png": (encoded(random_pixels(8, 8, dtype=np.uint16), "PNG"), "mode I;16, but the most frequent mode is RGB"),
    "deeper.png": (
        sixteen_bit_colour_png(random_pixels(8, 8, 3, dtype=np.uint16)),
        "16 bits in each of 3 channels, .*npy",
    ),
    "array.npy": (array(random_pixels(8, 8, 5)), "mode uint8 x 5, but the most frequent mode is RGB"),
    "float.npy": (array(SMALL / 255), r"mode float64 x 3, but the most frequent mode is RGB"),
    "nan.npy": (array(SMALL * np.nan), r"an array float64 \(8, 8, 3\); 192 of 192 values are not finite"),
    "long.npy": (
        array(SMALL.astype(int)),
        r"an array int64 \(8, 8, 3\); .*array.astype\(numpy.uint8\) keeps integers of 0 to 255, ",
    ),
    "object.npy": (array(np.array([None])), "not a .npy file, or not a whole one: .*allow_pickle"),
    "flat.npy": (array(SMALL[0, 0]), r"an array uint8 \(3,\); expected an image, \[H, W, C\]"),
    "none.npy": (array(SMALL[:0]), r"an array uint8 \(0, 8, 3\); expected an image"),
    "first.npy": (
        array(SMALL.transpose(2, 0, 1)),
        r"an array uint8 \(3, 8, 8\), channels first; .*save numpy.moveaxis\(image, 0, -1\)",
    ),
}


@pytest.fixture
def dirty(tmp_path):
    """A folder with every kind of file there is."""
    contents = GOOD | {f"two/{name}": content for name, (content, _) in BAD.items()}
    contents |= {"notes.txt": b"hello", "two/more.TXT": b"", "meta.json": b"{}", "two/Thumbs.db": b"\0", "README": b""}
    contents |= {".DS_Store": b"\0", "two/.hidden.png": b"\0", ".git/a.png": b"\0"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "two" / "folder.png").mkdir()
    return tmp_path


def test_a_dirty_folder_is_reported_by_name_and_the_rest_loads(dirty):
    with pytest.raises(ValueError, match=f"{len(BAD) + 1} of {len(BAD) + 4} image files cannot be used; .*--data.skip"):
        data.load(f"folder:{dirty}")
    images, report = reported(dirty, skip_bad=True)
    found = make_folder_report(dirty, "dirty")
    why = {file.path: file.bad for file in found.bad()}
    assert set(why) == {f"two/{name}" for name in BAD} | {"two/folder.png"}
    assert why["two/folder.png"] == "a folder, named like an image"
    for name, (_, text) in BAD.items():
        assert re.match(text, why[f"two/{name}"]), (name, why[f"two/{name}"])
    assert "3 usable" in report
    assert "formats   1 JPEG, 1 PNG, 1 WEBP\nmodes     3 RGB\nsizes     3 8x8 (height x width)" in report
    assert "(1 .db, 1 .json, 2 .txt, 1 without extension), 3 hidden" in report.replace(
        "2 .txt, 1 .db, 1 .json", "1 .db, 1 .json, 2 .txt"
    )
    assert (len(images.train), len(images.test), images.label_names) == (2, 1, ("one", "two"))
    # The error and the report hold the first twenty by name, and count the others.
    assert f"\n  and {len(BAD) + 1 - 20} more" in report


def test_without_their_values_images_have_the_same_properties_or_reasons(dirty):
    exif = Image.Exif()
    exif[274] = 6
    put(dirty / "turned.jpg", random_pixels(17, 9, 3), exif=exif)
    put(dirty / "grey.jpg", random_pixels(17, 9, 1))
    put(dirty / "progressive.jpg", random_pixels(17, 9, 3), progressive=True)
    put(dirty / "deep.png", random_pixels(17, 9, 1, dtype=np.uint16))

    def outcome(path, values):
        try:
            image = decode(path, values=values)
        except ValueError as error:
            return str(error)
        return image._replace(pixels=(image.pixels.shape, image.pixels.dtype))

    paths = [path for path in dirty.rglob("*.*") if path.suffix.lower() in EXTENSIONS]
    assert len(paths) > len(BAD)
    for path in paths:
        assert outcome(path, False) == outcome(path, True), path
    turned = decode(dirty / "turned.jpg", values=False)
    assert (turned.exif_transposed, turned.pixels.shape, turned.pixels.any()) == (True, (9, 17, 3), False)


@pytest.mark.parametrize("count", [0, 1, 999, 2_500, 20_001])
def test_many_items_are_handed_to_threads_in_groups_and_none_is_lost(count):
    ticks: list[tuple[str, int, int]] = []
    squares = map_in_threads(lambda i: i * i, range(count), lambda *tick: ticks.append(tick), "squared")
    assert squares == [i * i for i in range(count)]
    assert ticks == [("squared", i + 1, count) for i in range(count)]


def test_twenty_bad_files_are_named_and_the_others_counted(tmp_path):
    for i in range(25):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"25 of 25 image files cannot be used") as caught:
        data.load(f"folder:{tmp_path}")
    lines = str(caught.value).splitlines()
    report_lines: list[str] = []
    with pytest.raises(ValueError):
        data.load(f"folder:{tmp_path}", report=report_lines.append)
    assert "25 image files, 0.0 MB on disk; 0 usable" in report_lines[0]  # the report comes first
    assert lines[1] == "  00.png: empty: 0 bytes"
    assert lines[20:] == ["  19.png: empty: 0 bytes", "  and 5 more"]
    with pytest.raises(ValueError, match="none of 25 image files can be used"):
        data.load(f"folder:{tmp_path}", skip_bad=True)


def test_without_a_majority_no_mode_is_chosen(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.png", random_pixels(2, 2, (1, 3)[i % 2]))
    with pytest.raises(
        ValueError, match=r"none of 4 .*\n  0.png: mode L: no mode has a majority\n  1.png: mode RGB: no"
    ):
        data.load(f"folder:{tmp_path}", skip_bad=True)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no images: looked for .png, .jpg, .*, and no other files"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no images: looked for .png, .* and its sub-folders; found 1 .heic"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"a\.heic: not a folder; PATH of folder:PATH must be the folder"):
        data.load(f"folder:{tmp_path / 'a.heic'}")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        data.load(f"folder:{tmp_path / 'nowhere'}")


def test_links_lead_nowhere_out_or_in_circles(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for i in range(3):
        put(root / "here" / f"{i}.png", np.full((2, 2, 3), i, np.uint8))
    put(elsewhere / "secret.png", np.zeros((2, 2, 3), np.uint8))
    (root / "linked").symlink_to(root / "here")
    (root / "one.png").symlink_to(root / "here" / "0.png")
    assert len(make_folder_report(root, "links").good()) == 7
    (root / "here" / "up").symlink_to(root)
    (root / "out").symlink_to(elsewhere)
    (root / "out.png").symlink_to(elsewhere / "secret.png")
    (root / "labels.csv").symlink_to(elsewhere / "secret.png")
    (root / "broken.png").symlink_to(tmp_path / "nothing")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "pipe.png")  # to open it would be to wait for ever
    os.mkfifo(root / "pipe.csv")
    found = make_folder_report(root, "links")
    assert {file.path: file.bad.split(":")[0] for file in found.bad()} == {
        "broken.png": "a broken link",
        "self.png": "a broken link",
    }
    out = f"a link out of the folder, to {elsewhere}"
    copy = "; use a copy instead"
    assert found.skipped == [
        "here/up: a link to a folder that contains it",
        f"labels.csv: {out}/secret.png{copy}",
        "linked/up: a link to a folder that contains it",
        f"out.png: {out}/secret.png{copy}",
        f"out: {out}{copy}",
        "pipe.csv: a pipe, a socket or a device",
        "pipe.png: a pipe, a socket or a device",
    ]
    assert (len(found.good()), found.others, found.tables) == (7, {"without extension": 1}, [])
    assert "skipped   7 that are not files of the folder\n  here/up: a link" in "\n".join(found.lines())
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "images").symlink_to(root)
    with pytest.raises(ValueError, match=r"no images: .*; skipped were\n  images: a link out of the folder, to "):
        data.load(f"folder:{tmp_path / 'all'}")
    (tmp_path / "link").symlink_to(root / "here")  # the folder itself may be one
    assert len(make_folder_report(tmp_path / "link", "link").good()) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path):
    put(tmp_path / "a.png", SMALL).chmod(0)
    put(tmp_path / "b" / "c.png", SMALL).parent.chmod(0)
    found = {file.path: file.bad for file in make_folder_report(tmp_path, "closed").bad()}
    (tmp_path / "b").chmod(0o700)
    assert found == {
        "a.png": "cannot be opened: Permission denied",
        "b/": "a folder that cannot be listed: Permission denied",
    }


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails")
def test_files_that_fail_while_they_are_read_are_named(tmp_path):
    for name in ("a.png", "a.npy"):
        (tmp_path / name).symlink_to("/proc/self/mem")
        with pytest.raises(ValueError, match=r"empty|cannot be opened|not an image"):
            decode(tmp_path / name)


def test_names_that_are_no_text_can_be_printed(tmp_path):
    os.makedirs(os.fsencode(tmp_path) + b"/\xff")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/a\n.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=re.escape(r"'\udcff/a\n.png': empty")) as caught:
        data.load(f"folder:{tmp_path}")
    str(caught.value).encode()


# Damage and warnings


@pytest.mark.parametrize(("form", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif")])
def test_damaged_files_are_bad_or_load_and_nothing_else_happens(tmp_path, form, extension):
    original = bytearray(
        encoded(random_pixels(24, 24, 3), form, **({"compression": "tiff_lzw"} if form == "TIFF" else {}))
    )
    random = np.random.RandomState(sum(map(ord, form)))
    (tmp_path / f"whole.{extension}").write_bytes(original)
    for i in range(100):
        damaged = bytearray(original)
        start = random.randint(0, (64, len(damaged))[i % 2])  # half of the damage is in the header
        if i % 5 == 0:
            damaged = damaged[:start]
        elif i % 5 == 1:
            damaged[start : start + random.randint(1, 30)] = b""
        elif i % 5 == 2:
            damaged[start:start] = random.bytes(random.randint(1, 30))
        else:
            for index in random.randint(0, (64, len(damaged))[i % 2], 1 + i % 4):
                damaged[index] = random.randint(256)
        (tmp_path / f"{i:02}.{extension}").write_bytes(damaged)
    found = make_folder_report(tmp_path, "damaged")
    assert len(found.files) == 101
    assert 20 < len(found.bad()) <= 100  # checksums, ends and headers say much; the whole one is not among them
    assert found.files[-1].bad == ""
    assert all(file.shape[2] > 0 for file in found.good())
    same = [file for file in found.files if file.shape == (24, 24, 3)]
    for file in (file for file in found.good() if file not in same):
        (tmp_path / file.path).unlink()
    images = data.load(f"folder:{tmp_path}", skip_bad=True)
    assert len(images.train) + len(images.test) == len([file for file in same if not file.bad])


def test_too_many_pixels_are_bad_and_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (10, 12, 20):
        put(tmp_path / f"{side}.png", random_pixels(side, side, 3))
    found = make_folder_report(tmp_path, "large")
    assert [(file.path, file.bad.split(":")[0]) for file in found.bad()] == [
        ("12.png", "too large to be decoded"),
        ("20.png", "too large to be decoded"),
    ]
    assert found.bad()[0].bad == "too large to be decoded: 12x12, more than 100 pixels"


@pytest.mark.parametrize("side", [12_000, 16_000, 2**31 - 1])
def test_images_that_are_too_large_are_not_decoded(tmp_path, side):
    """They hold no pixels at all: who decoded them would say so."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    assert "too large to be decoded" in make_folder_report(tmp_path, "large").bad()[0].bad
    with pytest.raises(ValueError if side == 12_000 else Image.DecompressionBombError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records.decode(png, 3, np.dtype(np.uint8))


def test_a_header_that_claims_much_costs_nothing(tmp_path):
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    huge = array(SMALL).replace(b"(8, 8, 3), }", b"(8, 8, 3000000000), }")
    (tmp_path / "a.npy").write_bytes(huge)
    assert len(make_folder_report(tmp_path, "claims").bad()) == 2


def test_damaged_metadata_are_in_the_report_and_the_pixels_are_used(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x110, 2, 100, 5000)
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(
            encoded(random_pixels(8, 8, 3, seed=i), "JPEG", **({"exif": exif} if i == 1 else {}))
        )
    images, report = reported(tmp_path)
    assert len(images.train) == 2
    assert "warnings  1 files have damaged metadata; their pixels are used\n  1.jpg: " in report


# Orientation

# Exif 2.3, 4.6.4 A: row 0 and column 0 of the stored image are these sides of the scene.
SIDES = {
    1: "top left",
    2: "top right",
    3: "bottom right",
    4: "bottom left",
    5: "left top",
    6: "right top",
    7: "right bottom",
    8: "left bottom",
}


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_images_are_turned_upright_as_exif_says(tmp_path, extension):
    stored = np.zeros((24, 48, 3), np.uint8)
    stored[0:8], stored[:, 0:8] = (250, 0, 0), (0, 250, 0)  # row 0 is red, column 0 green
    for orientation, sides in SIDES.items():
        exif = Image.Exif()
        exif[274] = orientation
        path = put(
            tmp_path / f"{orientation}.{extension}",
            stored,
            exif=exif,
            **({"lossless": True} if extension == "webp" else {}),
        )
        image = decode(path)
        edges = {"top": image.pixels[4, 10:-10], "bottom": image.pixels[-5, 10:-10]}
        edges |= {"left": image.pixels[10:-10, 4], "right": image.pixels[10:-10, -5]}
        strongest = {name: edge.mean(0).argmax() for name, edge in edges.items() if edge.mean(0).max() > 200}
        row, column = sides.split()
        assert strongest == {row: 0, column: 1}, orientation
        assert image.exif_transposed == (orientation != 1)
    if extension == "png":
        _, report = reported(tmp_path, resolution=(24, 24))
        assert "rotated   7 by their Exif orientation: 2.png, 3.png, 4.png and 4 more" in report
        assert "sizes     4 24x48, 4 48x24 (height x width)" in report


# Resizing


def lanczos(size, start, end, out):
    """The matrix [out, size] that scales start .. end to `out` values: Lanczos of order 3, widened when it reduces."""
    scale = (end - start) / out
    wider = max(scale, 1)
    centres = start + (np.arange(out) + 0.5) * scale
    x = (np.arange(size) + 0.5 - centres[:, None]) / wider
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("stored", "size"), [((30, 30), (10, 10)), ((24, 40), (12, 12)), ((40, 25), (16, 30)), ((8, 9), (20, 20))]
)
@pytest.mark.parametrize(("levels", "dtype"), [(256, np.uint8), (65536, np.uint16)])
def test_all_bits_are_kept_through_resizing(stored, size, levels, dtype):
    pixels = random_pixels(*stored, 3, dtype=dtype)
    height, width = stored
    tall, wide = min(height, width * size[0] / size[1]), min(width, height * size[1] / size[0])
    down = lanczos(height, (height - tall) / 2, (height + tall) / 2, size[0])
    across = lanczos(width, (width - wide) / 2, (width + wide) / 2, size[1])
    exact = np.clip(np.einsum("yh,xw,hwc->yxc", down, across, pixels.astype(float)), 0, levels - 1)
    found = resize_center_crop(pixels, f"{np.dtype(dtype)} x 3", size, levels)
    assert found.dtype == dtype
    assert np.abs(found - exact).max() < 0.5 + 0.05  # half a level of rounding, and float32


def test_the_middle_is_taken_and_not_squeezed(tmp_path):
    pixels = random_pixels(10, 20, 3)
    # The middle square at its own size: nothing is scaled.
    np.testing.assert_array_equal(resize_center_crop(pixels, "RGB", (10, 10), 256), pixels[:, 5:15])
    np.testing.assert_array_equal(
        resize_center_crop(pixels.swapaxes(0, 1), "RGB", (10, 10), 256), pixels.swapaxes(0, 1)[5:15]
    )
    np.testing.assert_array_equal(resize_center_crop(pixels, "RGB", (10, 20), 256), pixels)
    # A disc stays a disc.
    y, x = np.mgrid[:60, :120]
    disc = (255 * ((y - 29.5) ** 2 + (x - 59.5) ** 2 < 20**2)).astype(np.uint8)[..., None]
    small = resize_center_crop(disc, "L", (30, 30), 256)[..., 0]
    assert abs(small.sum() / 255 - np.pi * 10**2) < 3
    np.testing.assert_array_equal(small, small.T)


def test_reducing_averages_and_does_not_drop_pixels():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_center_crop(stripes, "L", (16, 16), 256)[:, 3:-3]
    assert np.abs(inner.astype(int) - 127.5).max() < 5  # taking every fourth pixel would give 0 or 255


def test_the_colour_of_invisible_pixels_is_not_mixed_in():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (200, 0, 0, 255), (0, 200, 0, 0)
    found = resize_center_crop(pixels, "RGBA", (1, 1), 256)[0, 0]
    assert found[:3].tolist() == [200, 0, 0]
    assert abs(int(found[3]) - 128) <= 1


@pytest.mark.parametrize(("levels", "dtype"), [(17, np.uint8), (256, np.uint8), (1000, np.uint16), (65536, np.uint16)])
def test_resized_images_stay_within_their_levels_and_flat_ones_flat(levels, dtype):
    edge = np.zeros((40, 40, 1), dtype)
    edge[:, 20:] = levels - 1  # where the filter swings over
    mode = "L" if dtype == np.uint8 else "I;16"
    found = resize_center_crop(edge, mode, (13, 13), levels)
    assert (found.min(), found.max()) == (0, levels - 1)
    flat = np.full((40, 30, 1), levels - 2, dtype)
    np.testing.assert_array_equal(resize_center_crop(flat, mode, (13, 7), levels), levels - 2)


def test_different_sizes_need_a_resolution(tmp_path):
    for i in range(12):
        put(
            tmp_path / f"{i}.png",
            np.full([(20, 20, 3), (30, 40, 3), (50, 20, 3)][i % 3 if i < 9 else 0], 10 * i, np.uint8),
        )
    with pytest.raises(ValueError, match=r"sizes: 6 20x20, 3 30x40, 3 50x20 \(height.*--data.resolution 16 .*to 16x16"):
        data.load(f"folder:{tmp_path}")
    images, report = reported(tmp_path, resolution=(20,))
    assert "resizing  6 to 20x20 with the Lanczos filter (antialiased), of which 6 are centre-cropped first" in report
    assert "and 0 enlarged; 6 unchanged" in report
    assert "memory    0.0 MB when decoded" in report
    assert images.train.shape[1:] == (20, 20, 3)
    assert sorted(together(images)[:, 3, 4, 1]) == [10 * i for i in range(12)]
    wide, report = reported(tmp_path, resolution=(24, 32))
    assert wide.train.shape[1:] == (24, 32, 3)
    assert "12 to 24x32" in report and "9 are centre-cropped first and 9 enlarged" in report


def test_what_does_not_fit_is_left_where_it_is(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.png", SMALL)
    large = data.load(f"folder:{tmp_path}", resolution=(16384,))  # 3 GiB
    assert isinstance(large.train, data.LazyImages) and isinstance(large.test, data.LazyImages)
    assert large.train.nbytes == 3 * 16384**2 * 3 and "3221.2 MB, read when needed" in data.summary(large)
    lazy = data.load(f"folder:{tmp_path}", stream=True)
    assert isinstance(lazy.train, data.LazyImages)
    np.testing.assert_array_equal(lazy.train[:], data.load(f"folder:{tmp_path}", stream=False).train)


# Tables


THREE = "0.png,x\n1.png,x\n2.png,x\n"
HEADER = "a.csv: expected a header with the columns file and label"
TABLES = {
    "a row too many": ({"a.csv": f"file,label\n{THREE}9.png,x\n"}, r"1 rows name files .*\n  a.csv, line 5: 9.png"),
    "a row too few": ({"a.csv": "file,caption\n0.png,x\n2.png,x\n"}, r"1 images have no caption .*\n  1.png"),
    "twice": (
        {"a.csv": f"file,label\n{THREE}./0.png,y\n"},
        r"1 rows .*second time:\n  a.csv, line 5: ./0.png, which has its label from a.csv, line 2",
    ),
    "twice in two": (
        {"a.csv": f"file,label\n{THREE}", "b.csv": "file,label\n1.png,x\n"},
        "b.csv, line 2: 1.png, .* from a.csv, line 3",
    ),
    "an unquoted comma": ({"a.csv": "file,caption\n0.png,red, round\n"}, "line 2: 3 values under 2 columns; quote"),
    "too few values": ({"a.csv": "file,caption\n0.png\n"}, "a.csv, line 2: 1 values under 2 columns"),
    "no header": ({"a.csv": THREE}, f"{HEADER}, .*found 0.png,x;"),
    "nothing": ({"a.csv": ""}, f"{HEADER}, .* found none; if it is not about these images, move it elsewhere"),
    "one column": ({"a.csv": "file\n0.png\n"}, f"{HEADER}, .* found file;"),
    "a column twice": ({"a.csv": "file,label,label\n0.png,x,y\n"}, f"{HEADER}, .* found file,label,label"),
    "an empty label": ({"a.csv": "file,label\n0.png, \n"}, "a.csv, line 2: an empty label"),
    "an empty file": ({"a.csv": "file,label\n,x\n"}, "a.csv, line 2: an empty file"),
    "not text": ({"a.csv": b"file,label\n\xff\xfe,x\n"}, "a.csv: cannot be read as a table in UTF-8"),
    "quotes": ({"a.csv": 'file,label\n0.png,"x\n'}, "a.csv: cannot be read as a table in UTF-8: unexpected end"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_that_are_refused(tmp_path, case):
    tables, text = TABLES[case]
    for i in range(3):
        put(tmp_path / f"{i}.png", SMALL)
    for name, content in tables.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=text):
        data.load(f"folder:{tmp_path}")


def test_labels_and_captions_come_from_tables(tmp_path):
    for i in range(20):
        put(tmp_path / ("a/b", "c")[i % 2] / f"{i}.png", np.full((2, 2, 3), i, np.uint8))
    (tmp_path / "c" / "20.png").write_bytes(b"")  # left out, though a table names it
    rows = [f"{('a/b', 'c')[i % 2]}/{i}.png,{i % 4 * 5},ignored" for i in range(21) if i != 20] + ["c/20.png,5,"]
    (tmp_path / "labels.csv").write_text("\ufefffile,label,more\n" + "\n".join(reversed(rows)) + "\n")
    texts = [f'"{row.split(",")[0]}","no. {i}, a ""grey"" one"' for i, row in enumerate(rows)]
    (tmp_path / "texts.CSV").write_text("file,caption\r\n" + "\r\n".join(texts) + "\r\n")
    images, report = reported(tmp_path, skip_bad=True)
    assert images.label_names == ("0", "5", "10", "15")
    for pixels, labels, captions in [
        (images.train, images.train_labels, images.train_captions),
        (images.test, images.test_labels, images.test_captions),
    ]:
        assert labels is not None and captions is not None
        numbers = pixels[:, 0, 0, 0]
        np.testing.assert_array_equal(labels, numbers % 4)
        assert captions == tuple(f'no. {i}, a "grey" one' for i in numbers)
    assert "tables    labels.csv, texts.CSV\nlabels    of the column 'label': 4 (0, 5, 10, 15)" in report
    assert "ignored" not in report


def test_tables_may_lie_in_the_folders_that_divide(tmp_path):
    for part in ("train", "test"):
        put(tmp_path / part / "deep" / "a.png", SMALL)
        (tmp_path / part / "captions.csv").write_text(f"file,caption\ndeep/a.png,in {part}\n")
    images = data.load(f"folder:{tmp_path}")
    assert (images.train_captions, images.test_captions) == (("in train",), ("in test",))
    assert images.label_names == ("deep",)  # from the folders: the tables have captions alone


# Options, and readers as such


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"levels": 300}, "images of type uint8; expected 2 to 256 levels, got levels=300"),
        ({"levels": 10}, r"1\.png: the value 10 is above levels - 1 = 9"),
        ({"held_out": 1.0}, "0 < held_out < 1, got 1.0"),
        ({"held_out": 0.9}, r"has 2 images; holding out held_out=0.9 of them leaves none"),
        ({"resolution": (1, 2, 3)}, "SIDE or HEIGHT WIDTH, as 48 64, got 1 2 3"),
        ({"resolution": (0,)}, "resolution must be .*got 0"),
    ],
)
def test_options_that_are_refused(tmp_path, options, text):
    for i in range(2):
        put(tmp_path / f"{i}.png", np.full((2, 2, 3), 10 * i, np.uint8))
    with pytest.raises(ValueError, match=text):
        data.load(f"folder:{tmp_path}", **options)


def test_sources_that_are_no_folders_are_not_resized(tmp_path):
    with pytest.raises(
        ValueError, match="resolution and skip_bad are for folder: and tfds: sources; 'digits' has neither"
    ):
        data.load("digits", resolution=(4,))
    with pytest.raises(
        ValueError, match=r"open_readers: expected a source .folder:PATH. or .tfds:NAME., .* got 'digits'"
    ):
        data.open_readers("digits")
    with pytest.raises(ValueError, match=f'expected "digits", .* or "tfds:NAME"; did you mean "folder:{tmp_path}"'):
        data.load(str(tmp_path))


def test_levels_may_be_fewer(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.png", np.full((2, 2, 1), 5 * i, np.uint8))
    assert data.load(f"folder:{tmp_path}", levels=16).levels == 16


# Arrays: any type, and volumes


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_arrays_of_floats_come_in_their_range(tmp_path, dtype):
    values = np.linspace(0, 1, 10 * 24).reshape(10, 4, 6, 1).astype(dtype)
    for i, image in enumerate(values):
        np.save(tmp_path / f"{i}.npy", image if i % 2 else image[..., 0])
    found = data.load(f"folder:{tmp_path}", value_range=(0, 1))
    assert (found.levels, found.train.dtype, found.format) == (data.ValueRange(0, 1), np.float32, "npy")
    np.testing.assert_array_equal(np.sort(together(found), axis=0), values.astype(np.float32))
    with pytest.raises(ValueError, match=r"floating-point values from 0 to 1; .* as --data.range 0 1$"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"9\.npy: the value 1 is outside of the range 0 0.95$"):
        data.load(f"folder:{tmp_path}", value_range=(0, 0.95))
    with pytest.raises(ValueError, match="floating-point images have no levels, got levels=2"):
        data.load(f"folder:{tmp_path}", value_range=(0, 1), levels=2)


def test_integers_of_a_folder_have_no_range(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png", SMALL)
    with pytest.raises(ValueError, match="images of type uint8 have levels; a range is for floating-point images"):
        data.load(f"folder:{tmp_path}", value_range=(0, 255))


def test_resized_floats_stay_in_their_range(tmp_path):
    edge = np.zeros((40, 30, 2), np.float32)
    edge[:, 15:] = 3  # where the filter swings over
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", edge)
    found = data.load(f"folder:{tmp_path}", value_range=(0, 3), resolution=(20, 15)).train
    assert (found.min(), found.max()) == (0, 3) and ((found > 0) & (found < 3)).any()


def test_arrays_may_be_volumes(tmp_path):
    volumes = random_pixels(6, 5, 8, 9, 2)
    for i, volume in enumerate(volumes):
        np.save(tmp_path / f"{i}.npy", volume)
    found, report = reported(tmp_path)
    np.testing.assert_array_equal(np.sort(together(found), axis=0), np.sort(volumes, axis=0))
    assert "sizes     6 5x8x9 (height x width)" in report
    with pytest.raises(ValueError, match=r"0\.npy is a volume 5x8x9x2, and these are not resized"):
        data.load(f"folder:{tmp_path}", resolution=(8,))
    np.save(tmp_path / "7.npy", volumes[0][1:])
    with pytest.raises(ValueError, match="volumes of different sizes: 6 5x8x9, 1 4x8x9; cut them to one size"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"volumes are not resized, got \(5, 8, 9, 2\) for \(4, 4\)"):
        resize_center_crop(volumes[0], "uint8 x 2", (4, 4), 256)


# What is written is what was read

PICTURES = [
    ("png", 1, np.uint8), ("png", 2, np.uint8), ("png", 3, np.uint8), ("png", 4, np.uint8), ("png", 1, np.uint16),
    ("tiff", 1, np.uint8), ("tiff", 2, np.uint8), ("tiff", 3, np.uint8), ("tiff", 4, np.uint8), ("tiff", 1, np.uint16),
    ("webp", 3, np.uint8), ("webp", 4, np.uint8), ("bmp", 1, np.uint8), ("bmp", 3, np.uint8),
    ("npy", 1, np.uint8), ("npy", 5, np.uint8), ("npy", 3, np.uint16), ("npy", 2, np.float32),
]  # fmt: skip


@pytest.mark.parametrize(("form", "channels", "dtype"), PICTURES)
def test_files_give_back_every_number_that_was_written(tmp_path, form, channels, dtype):
    """A ramp through all values of the type, with transparent pixels that have a colour, and a size that is odd."""
    top = 65535 if dtype == np.uint16 else 255
    image = (np.arange(257 * 511 * channels) % (top + 1)).astype(dtype).reshape(257, 511, channels)
    data.write_image(tmp_path / f"a.{form}", image, form)
    found = decode(tmp_path / f"a.{form}")
    assert found.pixels.dtype == dtype and len(np.unique(found.pixels)) == top + 1
    np.testing.assert_array_equal(found.pixels, image)


def test_volumes_are_written_as_arrays(tmp_path):
    volume = random_pixels(3, 4, 5, 1, dtype=np.uint16)
    data.write_image(tmp_path / "a.npy", volume, "npy")
    np.testing.assert_array_equal(decode(tmp_path / "a.npy").pixels, volume)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_near_and_keeps_its_colours_sharp(tmp_path, channels):
    """Columns of saturated colours: with halved chroma, neighbours would mix by a hundred levels."""
    image = np.zeros((16, 16, channels), np.uint8)
    image[:, ::2, 0], image[:, 1::2, -1] = 255, 255
    data.write_image(tmp_path / "a.jpg", image, "jpg")
    assert np.abs(decode(tmp_path / "a.jpg").pixels.astype(int) - image).max() < 30


@pytest.mark.parametrize(
    ("form", "shape", "dtype", "text"),
    [
        (
            "png", (8, 9, 5), np.uint8,
            "8x9x5 uint8 cannot be png, which holds grey, grey with alpha, RGB, RGBA, 16-bit grey; take npy",
        ),
        ("png", (8, 9, 3), np.uint16, "8x9x3 uint16 cannot be png, .*; take npy"),
        ("png", (8, 9, 1), np.float32, "8x9x1 float32 cannot be png, .*; take npy"),
        ("tiff", (4, 8, 9, 1), np.uint8, "4x8x9x1 uint8 cannot be tiff, .*; take npy"),
        ("jpg", (8, 9, 4), np.uint8, "uint8 cannot be jpg, which holds grey, RGB; take png or webp or tiff or npy"),
        ("jpg", (8, 9, 1), np.uint16, "8x9x1 uint16 cannot be jpg, .*; take png or tiff or npy"),
        ("webp", (8, 9, 1), np.uint8, "uint8 cannot be webp, which holds RGB, RGBA; take png or bmp or tiff or npy"),
        ("bmp", (8, 9, 4), np.uint8, "uint8 cannot be bmp, which holds grey, RGB; take png or webp or tiff or npy"),
    ],
)  # fmt: skip
def test_files_that_would_lose_something_are_not_written(tmp_path, form, shape, dtype, text):
    with pytest.raises(ValueError, match=f"write_image: .*{text}$"):
        data.write_image(tmp_path / "a", np.zeros(shape, dtype), form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "format"),
    [(["a.png", "b.png", "c.jpg"], "png"), (["a.jpg", "b.jpeg", "c.png"], "jpg"), (["a.tif", "b.tiff"], "tiff")],
)
def test_a_folder_has_the_format_of_most_of_its_files(tmp_path, names, format):
    for name in names:
        put(tmp_path / name, SMALL)
    assert data.load(f"folder:{tmp_path}").format == format


def test_progress_is_told_after_each_image(tmp_path):
    for i in range(5):
        put(tmp_path / f"{i}.png", SMALL)
    report_lines = []
    data.load(f"folder:{tmp_path}", progress=lambda *message: report_lines.append(message))
    assert report_lines == [(what, i, 5) for what in ("checked", "loaded") for i in range(1, 6)]


def test_a_file_that_changes_is_noticed(tmp_path):
    for i in range(5):
        put(tmp_path / f"{i}.png", SMALL)
    train, test = data.open_readers(f"folder:{tmp_path}")
    for i in range(5):
        put(tmp_path / f"{i}.png", random_pixels(8, 9, 3))
    with pytest.raises(ValueError, match=r"\d\.png: was RGB \(8, 8, 3\) when .*is RGB \(8, 9, 3\)"):
        train[0]
    for i in range(5):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(ValueError, match=r"\d\.png: cannot be opened: No such file"):
        data.load_into_memory(train, test)
    with pytest.raises(IndexError):
        train[4]


@dataclasses.dataclass(frozen=True)
class NumberedReader:
    """A reader of images that are each filled with their number."""

    name: str = "numbers"
    shape: tuple[int, ...] = (64, 64, 3)
    dtype: np.dtype = np.dtype(np.uint8)
    levels: int = 256
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None
    format: str = ""

    def __len__(self):
        return 200

    def __getitem__(self, i):
        return np.full(self.shape, i, self.dtype)


def test_any_reader_can_be_read_whole_and_is_held_once():
    tracemalloc.start()
    try:
        images = data.load_into_memory(*data.train_test_split(NumberedReader(), 0.1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = images.train.nbytes + images.test.nbytes
    assert peak < 1.3 * size == 1.3 * 200 * 64 * 64 * 3
    np.testing.assert_array_equal(np.sort(together(images)[:, 9, 9, 1]), np.arange(200))
    last = np.random.RandomState(0).permutation(200)[-20:]
    np.testing.assert_array_equal(images.test[:, 0, 0, 0], np.sort(last))


class Failing(NumberedReader):
    """One image of which cannot be read, after a while."""

    def __getitem__(self, i):
        time.sleep(0.005)
        read.append(i)
        if i == 3:
            raise ValueError("3.png: damaged")
        return super().__getitem__(i)


read: list[int] = []


def test_an_error_ends_the_reading_at_once():
    read.clear()
    with pytest.raises(ValueError, match=r"3\.png: damaged"):
        data.load_into_memory(*data.train_test_split(Failing(), 0.1))
    assert len(read) < 100


def test_readers_that_are_not_alike_are_not_put_together():
    other = dataclasses.replace(NumberedReader(), shape=(32, 32, 3))
    with pytest.raises(ValueError, match=r"numbers: .* must have one shape, got \(64, 64, 3\), \(32, 32, 3\)"):
        data.load_into_memory(NumberedReader(), other)
    with pytest.raises(ValueError, match="numbers: expected labels of both training and held-out images or of neither"):
        data.load_into_memory(NumberedReader(), dataclasses.replace(NumberedReader(), labels=np.zeros(200, np.int32)))


def test_the_options_go_through_flags_and_files():
    data_config = tyro.cli(configs.Data, args=["--source", "folder:cats", "--resolution", "48", "64", "--skip-bad"])
    assert (data_config.resolution, data_config.skip_bad) == ((48, 64), True)
    config = configs.Config(data=data_config)
    assert configs.from_dict(dataclasses.asdict(config)) == config
    old = dataclasses.asdict(config)
    del old["data"]["resolution"], old["data"]["skip_bad"]
    assert configs.from_dict(old).data.resolution == ()


def test_arrays_are_read_by_many_threads_at_once(tmp_path):
    """Python 3.11 parses the headers of two files at once wrongly now and then: thousands of times, and none is."""
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((2, 2, 1), i, np.uint8))
    images = data.load(f"folder:{tmp_path}", stream=True).train
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        found = images[np.arange(4000) % len(images)]
    finally:
        sys.setswitchinterval(before)
    np.testing.assert_array_equal(found, images[:][np.arange(4000) % len(images)])
