"""Data: the real digits, files of every legal and illegal kind, and batches that are functions of (seed, step)."""

import functools
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import order as epoch_order
from ddpm_jax.keys import from_seed
from scripts import make_digits

# Sources: the digits


def test_the_digits_are_the_published_ones():
    digits = data.load("digits")
    assert digits.train_labels is not None
    assert digits.test_labels is not None
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    # The class counts that scikit-learn documents, and the sum of all pixels.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert int(digits.train.sum(dtype=int) + digits.test.sum(dtype=int)) == 561718
    assert (digits.train.shape, digits.test.shape, digits.levels) == ((1500, 8, 8, 1), (297, 8, 8, 1), 17)
    assert digits.train.max() == digits.test.max() == 16
    # The first image of the set, a zero; it is in one of the parts.
    zero = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0], [0, 3, 15, 2, 0, 11, 8, 0]]
    both = np.concatenate([digits.train, digits.test])
    assert labels[np.all(both[:, :3, :, 0] == zero, axis=(1, 2))].tolist() == [0]


def test_the_digits_are_divided_by_class():
    digits = data.load("digits")
    assert digits.train_labels is not None
    assert digits.test_labels is not None
    held = np.bincount(digits.test_labels)
    expected = 297 / 1797 * (held + np.bincount(digits.train_labels))
    assert np.abs(held - expected).max() < 1


def test_the_digits_look_like_their_labels():
    digits = data.load("digits")
    means = np.stack([digits.train[digits.train_labels == label].mean(0) for label in range(10)])
    distance = ((digits.test[:, None] - means) ** 2).sum((2, 3, 4))
    right = np.mean(distance.argmin(1) == digits.test_labels)
    assert right > 0.85  # the nearest mean is right for about nine in ten; shuffled labels give one in ten


def test_the_file_of_digits_can_be_remade(tmp_path):
    pytest.importorskip("sklearn")
    digits = data.load("digits")
    for name, array in make_digits.make_arrays().items():
        shipped = getattr(digits, name)
        assert (shipped.dtype, shipped.shape, shipped.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
    assert make_digits.main([str(tmp_path / "made.npz")]) == 0
    made = data.load(f"npz:{tmp_path / 'made.npz'}", levels=17)
    assert made.test.tobytes() == digits.test.tobytes()


def test_the_digits_come_with_their_licence():
    text = Path(data.__file__).with_name("LICENSE-digits.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text


# Sources: files


def pictures(count: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    """Images of which each is filled with its own number."""
    return np.broadcast_to(np.arange(count).reshape(-1, *[1] * len(shape)), (count, *shape)).astype(dtype)


def saved(path, **arrays):
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("train", "test", "labels", "test_labels"),
    [
        ("train", "test", "train_labels", "test_labels"),
        ("x_train", "x_test", "y_train", "y_test"),
        ("train_images", "test_images", "train_labels", "test_labels"),
    ],
)
def test_files_with_a_test_set_are_taken_as_they_are(tmp_path, train, test, labels, test_labels):
    arrays = {train: pictures(7, 2, 3, 3), test: pictures(4, 2, 3, 3) + 100}
    named = saved(tmp_path / "a.npz", **arrays, **{labels: np.arange(7) % 3, test_labels: np.arange(4, dtype=np.uint8)})
    found = data.load(named, held_out=0.5)
    np.testing.assert_array_equal(found.train, arrays[train])
    np.testing.assert_array_equal(found.test, arrays[test])
    assert found.train_labels is not None
    assert found.test_labels is not None
    assert found.train_labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found.test_labels.tolist() == [0, 1, 2, 3]
    assert found.train_labels.dtype == found.test_labels.dtype == np.int32
    assert (found.levels, found.name) == (256, named)


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("arr_0", "arr_1"), ("arr_0", "labels")])
@pytest.mark.parametrize(("held_out", "held"), [(0.1, 20), (0.001, 1), (0.995, 199)])
def test_a_part_is_held_out_where_the_file_has_none(tmp_path, images, labels, held_out, held):
    named = saved(tmp_path / "a.npz", **{images: pictures(200, 3, 2), labels: np.arange(200)})
    found = data.load(named, held_out=held_out)
    assert found.train_labels is not None
    assert found.test_labels is not None
    assert len(found.test) == held
    # Together they are the whole, each image once and with its own label; the order of the file is kept.
    together = np.sort(np.concatenate([found.train_labels, found.test_labels]))
    np.testing.assert_array_equal(together, np.arange(200))
    for part, part_labels in [(found.train, found.train_labels), (found.test, found.test_labels)]:
        assert part.shape[1:] == (3, 2, 1)
        np.testing.assert_array_equal(part[:, 0, 0, 0], part_labels)
        assert np.all(np.diff(part_labels) > 0)


def test_what_is_held_out_never_changes(tmp_path):
    found = data.load(saved(tmp_path / "a.npz", images=pictures(50, 2, 2)))
    # The last five of numpy.random.RandomState(0).permutation(50), which numpy keeps for ever.
    assert found.test[:, 0, 0, 0].tolist() == [0, 3, 44, 46, 47]
    # A larger part contains the smaller one.
    more = data.load(saved(tmp_path / "a.npz", images=pictures(50, 2, 2)), held_out=0.3)
    assert set(found.test[:, 0, 0, 0]) < set(more.test[:, 0, 0, 0])


def bomb(path, name, shape, dtype="|u1"):
    """A file that says that it holds an array and holds nothing of it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", file.getvalue())


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (
            {"images": (3, 13_000, 13_000, 3)},
            "'images' is .* too large to be decoded: 13000x13000, more than 89,478,485",
        ),
        ({"images": (3, 13_000, 13_000)}, "too large to be decoded"),
        ({"images": (10**9, 100, 100, 3)}, r"GB, and this machine has [\d,.]+ GB of memory"),
        ({"images": (2**40, 2, 2, 2, 2)}, "GB, and this machine has"),
        ({"images": (9, 3, 9000, 9000)}, "channels first"),
        ({"train": (9, 4, 4, 1), "test": (9, 13_000, 13_000, 1)}, "cannot read the array 'train'"),
        ({"jpeg": (10**15,), "offsets": (4,)}, "GB, and this machine has"),
        ({"jpeg": (10**5, 10**5), "offsets": (4,)}, "expected the files' bytes"),
    ],
)
def test_what_a_file_declares_is_checked_before_it_is_decompressed(tmp_path, arrays, text):
    for name, shape in arrays.items():
        bomb(tmp_path / "a.npz", name, shape)
    with pytest.raises(ValueError, match=text):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_labels_are_checked_before_they_are_decompressed(tmp_path):
    saved(tmp_path / "a.npz", images=pictures(10, 2, 2))
    bomb(tmp_path / "a.npz", "labels", (10**12,), "<i8")
    with pytest.raises(
        ValueError, match=r"'labels' is int64 \(1000000000000,\); expected one label for each of the 10"
    ):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for kind, text in (("npz", "not an .npz file"), ("npy", "not a file, but a folder, a pipe or a device")):
        with pytest.raises(ValueError, match=text):
            data.load(f"{kind}:{tmp_path / 'pipe'}")


def test_no_label_is_held_out_whole(tmp_path):
    labels = np.zeros(50, int)
    labels[[0, 3]], labels[44] = 1, 2
    found = data.load(saved(tmp_path / "a.npz", images=pictures(50, 2, 2), labels=labels))
    last = np.random.RandomState(0).permutation(50)[-7:].tolist()
    back = [min((0, 3), key=last.index), 44]  # of each label the one that would have been held out last
    assert sorted(last[2:]) == [0, 3, 44, 46, 47]
    assert found.test[:, 0, 0, 0].tolist() == sorted({*last} - {*back})
    assert found.train[:, 0, 0, 0].tolist() == sorted({*range(50)} - {*last} | {*back})
    for pixels, of_these in ((found.train, found.train_labels), (found.test, found.test_labels)):
        assert of_these is not None
        np.testing.assert_array_equal(of_these, labels[pixels[:, 0, 0, 0]])


def test_one_image_is_trained_on_and_held_out(tmp_path):
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    np.save(tmp_path / "folder" / "cat" / "0.npy", pictures(1, 2, 2, 1)[0] + 7)
    np.save(tmp_path / "all.npy", pictures(1, 2, 2, 1) + 7)
    of_file = saved(tmp_path / "a.npz", images=pictures(1, 2, 2, 1) + 7, labels=np.zeros(1, int))
    for source in (of_file, f"npy:{tmp_path / 'all.npy'}", f"folder:{tmp_path / 'folder'}"):
        for held_out in (0.1, 0.9):
            found, report = data.load(source, held_out=held_out), []
            assert found.train.tolist() == found.test.tolist() == [[[[7], [7]], [[7], [7]]]]
            assert (found.train_labels is None) == source.startswith("npy")
            assert data.summary(found).endswith("MB; the one image is both")
    data.load(f"folder:{tmp_path / 'folder'}", report=report.append)
    assert "split     1 training and 1 held-out images: the one image is both" in report
    two = saved(tmp_path / "b.npz", images=pictures(2, 2, 2, 1))
    assert data.summary(data.load(two)).endswith("MB")


def test_sixteen_bits_and_other_numbers_of_levels(tmp_path):
    named = saved(tmp_path / "a.npz", images=pictures(400, 2, 2, dtype=np.uint16))
    assert (data.load(named).levels, data.load(named).train.dtype) == (65536, np.uint16)
    assert data.load(named, levels=400).levels == 400


@pytest.mark.parametrize("held_out", [{}, {"test": pictures(3, 4, 5), "test_labels": np.array([0, 2, 3])}])
def test_labels_have_the_names_that_a_file_gives_them(tmp_path, held_out):
    names = np.array(["cat", "a dog", "köttur", "owl", "unused"])
    arrays = {"images": pictures(20, 4, 5), "labels": np.arange(20) % 4, "label_names": names, **held_out}
    assert data.load(saved(tmp_path / "a.npz", **arrays)).label_names == tuple(names)
    del arrays["labels"]
    arrays.pop("test_labels", None)
    assert data.load(saved(tmp_path / "a.npz", **arrays)).label_names == ()


def test_positional_arrays_without_labels(tmp_path):
    np.savez(tmp_path / "a.npz", pictures(20, 2, 2, 1))
    found = data.load(f"npz:{tmp_path / 'a.npz'}")
    assert (found.train_labels, found.test_labels) == (None, None)


def test_loading_holds_the_images_once(tmp_path):
    named = saved(tmp_path / "a.npz", images=np.zeros((2000, 64, 64, 3), np.uint8))
    tracemalloc.start()
    try:
        data.load(named)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * 2000 * 64 * 64 * 3  # the images, the tenth that is held out, and a margin


def jpeg(value, size=(6, 4), mode="RGB", form="JPEG"):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(file, format=form, quality=100)
    return np.frombuffer(file.getvalue(), np.uint8)


def packed(files):
    return {"jpeg": np.concatenate(files), "offsets": np.cumsum([0, *map(len, files)])}


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_packed_jpegs_are_decoded(tmp_path, mode, channels):
    files = [jpeg(20 * i, mode=mode) for i in range(10)]
    found = data.load(saved(tmp_path / "a.npz", **packed(files), labels=20 * np.arange(10)))
    assert found.train.shape == (9, 4, 6, channels)
    assert found.train_labels is not None
    # A JPEG of one colour keeps it within one level.
    assert np.abs(found.train.astype(int) - found.train_labels[:, None, None, None]).max() <= 1


IMAGES = pictures(10, 4, 5, 3)
REFUSED = {
    "no usable key": ({"pixels": IMAGES, "extra": IMAGES}, "expected a key of train, .*, found extra, pixels"),
    "nothing at all": ({}, "no images; .*found none"),
    "two of a kind": ({"train": IMAGES, "images": IMAGES}, "keys 'train' and 'images' mean the same thing"),
    "floats": (
        {"images": np.float32(IMAGES) / 2 - 1},
        r"'images' is float32 \(10, 4, 5, 3\): floating-point values from -1 to 3.5; .*as --data.range -1 3.5",
    ),
    "nan": ({"images": np.where(IMAGES == 3, np.nan, IMAGES)}, r"\(10, 4, 5, 3\); 60 of 600 values are not finite"),
    "too large": ({"images": IMAGES * 1e38}, "values are not finite numbers in float32"),
    "int64": (
        {"images": IMAGES.astype(int)},
        r"'images' is int64 .*array.astype\(numpy.uint8\) keeps integers of 0 to 255, numpy.uint16 those of 0 to 65535"
        r", and numpy.float32, with --data.range LOWEST HIGHEST, negative ones too",
    ),
    "int16": ({"images": IMAGES.astype(np.int16) - 300}, r"'images' is int16 .*numpy.float32, with --data.range L"),
    "objects": ({"images": np.array([None, 1])}, r"'images' is object \(2,\); expected images of type uint8"),
    "rank 2": (
        {"images": IMAGES[:, :, 0, 0]},
        r"'images' is uint8 \(10, 4\); expected \[N, H, W, C\], \[N, H, W\] for",
    ),
    "rank 6": ({"images": IMAGES[None, None]}, r"\(1, 1, 10, 4, 5, 3\); .*\[N, D, H, W, C\] for volumes"),
    "volumes, channels first": ({"images": pictures(9, 1, 8, 8, 8)}, "channels first; .*moveaxis"),
    "empty": ({"images": IMAGES[:0]}, r"'images' is uint8 \(0, 4, 5, 3\); expected at least one image"),
    "channels first": ({"images": pictures(9, 3, 32, 32)}, r"channels first; .*save numpy.moveaxis\(images, 1, -1\)"),
    "shapes differ": (
        {"train": IMAGES, "test": IMAGES[:, :2]},
        r"must be alike, .*uint8 \(10, 4, .*uint8 \(10, 2, 5, 3\)",
    ),
    "types differ": ({"train": IMAGES, "test": IMAGES.astype(np.uint16)}, "'train' and 'test' must be alike.*uint16"),
    "test is empty": ({"train": IMAGES, "test": IMAGES[:0]}, "'test' is uint8 .*at least one image"),
    "labels too few": ({"images": IMAGES, "labels": np.arange(9)}, r"'labels' is int64 \(9,\); .*shape \(10,\)"),
    "labels in a column": ({"images": IMAGES, "labels": np.zeros((10, 1), int)}, r"\(10, 1\); .*shape \(10,\)"),
    "labels are floats": ({"images": IMAGES, "labels": np.zeros(10)}, "'labels' is float64 .*integer labels"),
    "labels are negative": ({"images": IMAGES, "labels": np.arange(10) - 1}, "values -1 .. 8; expected classes 0, 1"),
    "labels of one": (
        {"train": IMAGES, "test": IMAGES, "train_labels": np.arange(10)},
        "labels of both training and test images or of neither, found test, train, train_labels",
    ),
    "labels of none": ({"train": IMAGES, "test_labels": np.arange(10)}, "'test_labels' without test images; .*x_test"),
    "names too few": (
        {
            "train": IMAGES,
            "test": IMAGES,
            "labels": np.arange(10) % 3,
            "test_labels": np.arange(10) % 4,
            "label_names": np.array(["a", "b", "c"]),
        },
        r"'label_names' is <U1 \(3,\); expected a text for each of the 4 labels, shape \(4,\)",
    ),
    "names are bytes": (
        {"images": IMAGES, "labels": np.arange(10), "label_names": np.array([b"a"] * 10)},
        r"'label_names' is \|S1 \(10,\); expected a text for each of the 10 labels",
    ),
    "names are the same": (
        {"images": IMAGES, "labels": np.arange(10) % 2, "label_names": np.array(["cat", "dog", "dog"])},
        "'label_names' has 'dog'; expected names that differ and are not empty",
    ),
    "a name is empty": (
        {"images": IMAGES, "labels": np.arange(10) % 2, "label_names": np.array(["cat", " "])},
        "'label_names' has ' '; expected names that differ and are not empty",
    ),
    "jpeg alone": (packed([jpeg(0)]) | {"offsets_": 0, "offsets": np.zeros(0)}, "'offsets' must be increasing .* = "),
    "no offsets": ({"jpeg": jpeg(0)}, r"'jpeg' without 'offsets' \[N \+ 1\]"),
    "jpeg not bytes": (
        {"jpeg": IMAGES, "offsets": [0, 10]},
        r"'jpeg' is uint8 \(10, 4, 5, 3\); expected the files' bytes",
    ),
    "offsets short": ({"jpeg": jpeg(0), "offsets": np.array([0, 9])}, r"from 0 to len\(jpeg\) = \d+"),
    "a broken jpeg": (packed([jpeg(0), jpeg(0)[:40]]), "JPEG 1 cannot be decoded"),
    "a png": (packed([jpeg(0), jpeg(0, form="PNG")]), "JPEG 1 cannot be decoded"),
    "a cmyk jpeg": (packed([jpeg((0, 0, 0, 0), mode="CMYK")]), r"JPEG 0 has the mode CMYK; expected grey \(L\) or RGB"),
    "jpeg sizes differ": (packed([jpeg(0), jpeg(0, (4, 6))]), r"JPEG 1 has shape \(6, 4, 3\), JPEG 0 has \(4, 6, 3\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(tmp_path, case):
    arrays, text = REFUSED[case]
    with pytest.raises(ValueError, match=rf"a\.npz: .*{text}"):
        data.load(saved(tmp_path / "a.npz", **arrays))


FLOATS = np.linspace(-3, 7, 120).reshape(10, 2, 3, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_come_with_the_range_that_they_are_given(tmp_path, dtype):
    stored = FLOATS.astype(dtype)
    found = data.load(saved(tmp_path / "a.npz", images=stored), value_range=(-3, 7))
    assert found.levels == data.ValueRange(-3, 7) and found.train.dtype == np.float32
    together = np.concatenate([found.train, found.test])
    np.testing.assert_array_equal(np.sort(together.ravel()), np.float32(stored).ravel())
    assert "2x3x2 float32, -3 to 7, no labels" in data.summary(found)


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ((0.0, 0.25), "0 1"),
        ((-0.5, 1.0), "-1 1"),
        ((0.0, 254.0), "0 255"),
        ((-3.0, 7.5), "-3 7.5"),
        ((0.1, 300), "0.1 300"),
    ],
)
def test_floats_without_a_range_are_told_what_is_there_and_what_to_say(tmp_path, values, ends):
    images = np.resize(np.array(values, np.float32), (9, 2, 2, 1))
    text = f"floating-point values from {values[0]:g} to {values[1]:g}; .* as --data.range {ends}$"
    with pytest.raises(ValueError, match=text):
        data.load(saved(tmp_path / "a.npz", images=images))


@pytest.mark.parametrize(
    ("images", "options", "text"),
    [
        (FLOATS, {"value_range": (-2, 7)}, "the value -3 is outside of the range -2 7"),
        (FLOATS, {"value_range": (-3, 6.5)}, "the value 7 is outside of the range -3 6.5"),
        (FLOATS, {"value_range": (7, -3)}, "range must be the lowest and the highest value, as 0 1, got 7 -3"),
        (FLOATS, {"value_range": (7,)}, "range must be the lowest and the highest value, as 0 1, got 7$"),
        (FLOATS, {"value_range": (0, np.inf)}, "got 0 inf"),
        (FLOATS, {"value_range": (0, 1e300)}, r"got 0 1e\+300"),
        (FLOATS, {"value_range": (-3, 7), "levels": 256}, "floating-point images have no levels, got levels=256"),
        (IMAGES, {"value_range": (0, 9)}, "images of type uint8 have levels; a range is for floating-point images"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(tmp_path, images, options, text):
    with pytest.raises(ValueError, match=text):
        data.load(saved(tmp_path / "a.npz", images=images), **options)


def test_the_digits_have_no_range():
    with pytest.raises(ValueError, match=r"the digits have 17 levels, got levels=None, range=\(0, 16\)"):
        data.load("digits", value_range=(0, 16))


@pytest.mark.parametrize("shape", [(1, 64, 5), (1, 5, 5), (3, 47, 2), (6, 8, 8, 1), (1, 8, 8, 3)])
def test_odd_shapes_and_volumes_are_not_taken_for_channels_first(tmp_path, shape):
    found = data.load(saved(tmp_path / "a.npz", images=np.zeros((10, *shape), np.uint8)))
    assert found.train.shape == (9, *shape) and f", {'x'.join(map(str, shape))} uint8, 256" in data.summary(found)


def test_only_an_archive_says_that_it_is_one(tmp_path):
    assert data.load(saved(tmp_path / "a.npz", images=IMAGES)).format == "npz"
    assert data.load("digits").format == ""


@pytest.mark.parametrize(
    ("levels", "text"),
    [(9, "the value 9 is above levels - 1 = 8"), (257, "2 to 256 levels, got levels=257"), (1, "got levels=1")],
)
def test_levels_that_do_not_fit_are_refused(tmp_path, levels, text):
    with pytest.raises(ValueError, match=rf"a\.npz: 'images' is uint8 .*{text}"):
        data.load(saved(tmp_path / "a.npz", images=IMAGES), levels=levels)


def test_what_is_no_npz_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npz"):
        data.load(f"npz:{tmp_path / 'none.npz'}")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        data.load(f"npz:{tmp_path}")
    np.save(tmp_path / "b.npy", IMAGES)
    with pytest.raises(ValueError, match=r"b\.npy: not an \.npz file"):
        data.load(f"npz:{tmp_path / 'b.npy'}")


@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.float64])
def test_a_plain_array_is_a_source_too(tmp_path, dtype):
    np.save(tmp_path / "a.npy", IMAGES.astype(dtype))
    ends = (0, 9) if dtype is np.float64 else ()
    found = data.load(f"npy:{tmp_path / 'a.npy'}", value_range=ends)
    same = data.load(saved(tmp_path / "a.npz", images=IMAGES))
    np.testing.assert_array_equal(found.train, same.train)
    np.testing.assert_array_equal(found.test, same.test)
    assert found.train.dtype.isnative and found.format == "npz"


def test_what_is_no_npy_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.npy"):
        data.load(f"npy:{tmp_path / 'none.npy'}")
    (tmp_path / "b.npy").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"b\.npy: not an \.npy file, or not a whole one: "):
        data.load(f"npy:{tmp_path / 'b.npy'}")
    np.save(tmp_path / "c.npy", np.array([None]))
    with pytest.raises(ValueError, match=r"c\.npy: not an \.npy file, .*allow_pickle"):
        data.load(f"npy:{tmp_path / 'c.npy'}")


def test_damaged_files_are_refused(tmp_path):
    named = saved(tmp_path / "a.npz", images=np.random.RandomState(0).randint(0, 256, (9, 16, 16, 3)).astype(np.uint8))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.npz: not an \.npz file, or not a whole one"):
        data.load(named)
    half = len(whole) // 2
    (tmp_path / "a.npz").write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
    with pytest.raises(ValueError, match=r"a\.npz: cannot read the array 'images'"):
        data.load(named)
    for head in (b"\0\0", b"\x80\x04"):  # as no file begins, and as a pickle does
        (tmp_path / "a.npz").write_bytes(head + whole[2:])
        with pytest.raises(ValueError, match=r"a\.npz: not an \.npz file, or a damaged one"):
            data.load(named)


def test_claims_of_an_absurd_size_and_pickles_are_refused(tmp_path):
    import io
    import zipfile

    header = io.BytesIO()
    np.save(header, np.zeros((4, 4, 4), np.uint8))
    absurd = header.getvalue().replace(b"(4, 4, 4), }", b"(4, 4, 4000000000000000), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", absurd)
    with pytest.raises(ValueError, match=r"a\.npz: 'images' is uint8 .* too large to be decoded: 4x4000000000000000"):
        data.load(f"npz:{tmp_path / 'a.npz'}")
    np.savez(tmp_path / "b.npz", images=np.array([tmp_path]))
    with pytest.raises(ValueError, match=r"b\.npz: 'images' is object \(1,\); expected images of type"):
        data.load(f"npz:{tmp_path / 'b.npz'}")


def test_an_archive_of_something_else_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("images", "not an array")
    with pytest.raises(ValueError, match=r"a\.zip: cannot read the array 'images': ValueError: not an array"):
        data.load(f"npz:{tmp_path / 'a.zip'}")


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        (
            "cifar",
            {},
            'unknown source \'cifar\': expected "digits", .*, "npz:PATH", "npy:PATH", "folder:PATH" or "tfds:NAME"$',
        ),
        (
            "npz:",
            {},
            'unknown source \'npz:\': expected "digits", .*, "npz:PATH", "npy:PATH", "folder:PATH" or "tfds:NAME"$',
        ),
        ("here/a.npz", {}, 'did you mean "npz:here/a.npz"'),
        ("here/a.npy", {}, 'did you mean "npy:here/a.npy"'),
        ("digits", {"levels": 16}, "the digits have 17 levels, got levels=16"),
        ("digits", {"held_out": 0.0}, "0 < held_out < 1, got 0.0"),
        ("digits", {"held_out": 1.5}, "0 < held_out < 1, got 1.5"),
    ],
)
def test_sources_that_are_refused(source, options, text):
    with pytest.raises(ValueError, match=text):
        data.load(source, **options)


def test_the_summary_is_one_line_with_the_numbers_in_it(tmp_path):
    line = data.summary(data.load("digits"))
    assert line == "digits: 1,500 training and 297 held-out images, 8x8x1 uint8, 17 levels, 10 classes, 0.1 MB"
    assert "no labels" in data.summary(data.load(saved(tmp_path / "a.npz", images=IMAGES)))


# Batches: the order

NOT_A_KEY: Any = 0


def running(order, batch, steps):
    return np.concatenate([order.indices(step, batch) for step in range(steps)])


@pytest.mark.parametrize(("size", "batch"), [(10, 5), (10, 4), (10, 10), (10, 23), (10, 1), (1, 5)])
def test_every_epoch_sees_every_example_once(size, batch):
    epochs = running(data.EpochShuffle(from_seed(0), size), batch, 6 * size)[: 6 * batch * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1)))


def test_an_epoch_is_the_permutation_of_its_own_key():
    key = from_seed(3)
    epochs = running(data.EpochShuffle(key, 10), 4, 10).reshape(4, 10)
    own = jax.jit(lambda e: jax.random.permutation(jax.random.fold_in(key, e), 10))
    np.testing.assert_array_equal(epochs, [own(epoch) for epoch in range(4)])


def test_the_stream_does_not_depend_on_how_it_is_cut():
    streams = [running(data.EpochShuffle(from_seed(1), 10), batch, 60 // batch) for batch in (1, 4, 6, 10, 30, 60)]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])


def test_resuming_and_going_back_see_what_a_straight_run_saw():
    straight = data.EpochShuffle(from_seed(2), 10)
    epoch_order = [straight.indices(step, 4) for step in range(30)]
    for step in (29, 13, 2, 14, 0):
        np.testing.assert_array_equal(data.EpochShuffle(from_seed(2), 10).indices(step, 4), epoch_order[step])
        np.testing.assert_array_equal(straight.indices(step, 4), epoch_order[step])


def test_epochs_and_seeds_have_different_orders():
    epoch_0, epoch_1 = running(data.EpochShuffle(from_seed(0), 100), 100, 2).reshape(2, 100)
    other = data.EpochShuffle(from_seed(1), 100).indices(0, 100)
    # Two random orders of 100 agree in about one place (Poisson): more than seven is one chance in 10^5.
    assert max(np.sum(epoch_0 == epoch_1), np.sum(epoch_0 == other)) <= 7


def test_a_permutation_is_made_once_per_epoch(monkeypatch):
    made, permutation = [], epoch_order._permutation
    monkeypatch.setattr(
        epoch_order, "_permutation", lambda key, epoch, size: made.append(epoch) or permutation(key, epoch, size)
    )
    running(data.EpochShuffle(from_seed(0), 10), 7, 10)  # 70 examples: seven epochs, most batches in the midst of one
    assert made == [*range(7)]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: data.EpochShuffle(jax.random.PRNGKey(0), 5),
            r"EpochShuffle: keys must be typed \(jax.random.key\), got uint32",
        ),
        (lambda: data.EpochShuffle(NOT_A_KEY, 5), "EpochShuffle: keys must be typed .*got int"),
        (
            lambda: data.EpochShuffle(jax.random.split(from_seed(0)), 5),
            r"EpochShuffle: expected keys of shape \(\), got \(2,\)",
        ),
        (lambda: data.EpochShuffle(from_seed(0), 0), r"a size of 1 to 2\^31 - 1 examples, got 0"),
        (lambda: data.EpochShuffle(from_seed(0), 5).indices(-1, 2), "step >= 0 and batch >= 1, got step=-1, batch=2"),
        (lambda: data.EpochShuffle(from_seed(0), 5).indices(0, 0), "step >= 0 and batch >= 1, got step=0, batch=0"),
    ],
)
def test_orders_refuse(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# Batches: the examples


@functools.partial(jax.jit, static_argnums=1)
def image_keys(seed, count):
    return jax.vmap(lambda i: jax.random.fold_in(from_seed(seed), i))(jnp.arange(count))


SLOPES = np.tile(np.array([0, 100, 255], np.uint8)[:, None], (5, 2, 1, 1))  # [5, 2, 3, 1], dark on the left
MANY = 4000


def test_examples_are_the_scaled_images_at_the_indices():
    digits = data.load("digits")
    indices = np.array([5, 5, 1499, 0])
    found = data.gather_examples(image_keys(0, 4), digits.train, indices, levels=17, flip=False)
    np.testing.assert_array_equal(data.to_integer(found, 17), digits.train[indices])


@pytest.fixture(scope="module")
def flipped():
    """The first image of SLOPES many times, as it comes out."""
    return np.asarray(data.gather_examples(image_keys(1, MANY), SLOPES, np.zeros(MANY, int), levels=256, flip=True))


def test_flips_mirror_left_and_right_half_of_the_time(flipped):
    integers = data.to_integer(flipped, 256)
    mirrored = integers[:, 0, 0, 0] == 255
    expected = np.where(mirrored[:, None, None, None], SLOPES[0, :, ::-1], SLOPES[0])
    np.testing.assert_array_equal(integers, expected)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(MANY)


def test_volumes_are_mirrored_along_their_width_and_floats_scaled():
    volumes = np.linspace(-2, 6, 48, dtype=np.float32).reshape(2, 2, 3, 4, 1)
    which = np.arange(64) % 2
    found = np.asarray(
        data.gather_examples(image_keys(1, 64), volumes, which, levels=data.ValueRange(-2, 6), flip=True)
    )
    assert (found[0].min(), found[1].max()) == (-1, 1)
    unit = np.asarray(data.normalize(volumes, data.ValueRange(-2, 6)))[which]
    kinds = [np.all(found == unit[..., ::way, :], axis=(1, 2, 3, 4)) for way in (1, -1)]
    assert np.all(kinds[0] ^ kinds[1]) and 0 < kinds[1].sum() < 64


def test_the_flip_of_an_example_is_its_keys_alone():
    keys, indices = image_keys(2, 64), np.arange(64) % 5
    whole = np.asarray(data.gather_examples(keys, SLOPES, indices, levels=256, flip=True))
    assert len(np.unique(whole[:, 0, 0, 0])) == 2  # some are flipped and some are not

    @jax.jit
    def alone(keys, indices, i):
        return data.gather_examples(keys[i][None], SLOPES, indices[i][None], levels=256, flip=True)[0]

    np.testing.assert_array_equal([alone(keys, indices, i) for i in range(64)], whole)
    order = np.random.RandomState(0).permutation(64)
    shuffled = data.gather_examples(keys[order], SLOPES, indices[order], levels=256, flip=True)
    np.testing.assert_array_equal(shuffled, whole[order])


def test_flips_are_not_what_the_same_key_draws_elsewhere(flipped):
    @jax.jit
    def elsewhere(keys):
        draw_functions = jax.random.bernoulli, lambda key: jax.random.bernoulli(jax.random.fold_in(key, 0))
        return [jax.vmap(draw)(keys) for draw in draw_functions]

    for other in elsewhere(image_keys(1, MANY)):
        agreement = np.mean((flipped[:, 0, 0, 0] == 1) == np.asarray(other))
        assert abs(agreement - 0.5) < 4 * 0.5 / np.sqrt(MANY)


def test_examples_are_the_same_on_any_number_of_devices():
    digits = data.load("digits").train
    devices = jax.local_device_count()
    batch = 4 * devices
    keys, indices = image_keys(4, batch), data.EpochShuffle(from_seed(4), len(digits)).indices(9, batch)
    whole = np.asarray(data.gather_examples(keys, digits, indices, levels=17, flip=True))

    def of_device(keys, images, indices):
        return data.gather_examples(keys, images, indices, levels=17, flip=True)

    split = (keys.reshape(devices, 4), digits, indices.reshape(devices, 4))
    for mapped in (jax.pmap(of_device, in_axes=(0, None, 0)), jax.jit(jax.vmap(of_device, in_axes=(0, None, 0)))):
        np.testing.assert_array_equal(np.asarray(mapped(*split)).reshape(whole.shape), whole)


@pytest.mark.parametrize(
    ("keys", "images", "indices", "text"),
    [
        (jnp.zeros((2, 2), jnp.uint32), SLOPES, np.arange(2), "gather_examples: keys must be typed .*got uint32"),
        (from_seed(0), SLOPES, np.arange(2), r"expected keys of shape \(2,\), got \(\)"),
        (image_keys(0, 2), SLOPES[0], np.arange(2), r"images \[N, H, W, C\], got shape \(2, 3, 1\)"),
        (image_keys(0, 2), SLOPES / 255, np.arange(2), "uint8 or uint16, got float32; to_integer makes them"),
        (image_keys(0, 2), SLOPES, np.arange(2.0), r"integer indices \[b\], got float32 \(2,\)"),
        (image_keys(0, 2), SLOPES, np.zeros((1, 2), int), r"integer indices \[b\], got int32 \(1, 2\)"),
    ],
)
def test_examples_refuse(keys, images, indices, text):
    with pytest.raises(ValueError, match=text):
        data.gather_examples(keys, images, indices, levels=256, flip=True)


# The package


def test_importing_data_is_light():
    lines = "import sys; import ddpm_jax.data; print([m for m in ('PIL', 'sklearn', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
