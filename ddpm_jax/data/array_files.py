"""Data sets in one file of arrays, "npz:PATH" and "npy:PATH", with the keys and shapes of `sources.load`.

Headers are checked before anything is decompressed: a small file may hold more than fits in memory.
"""

import contextlib
import io
import math
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ddpm_jax.data.dataset import Dataset, check_values, train_test_indices
from ddpm_jax.data.image_files import (
    ARRAY_TYPES,
    check_memory,
    conversion_hint,
    is_channels_first,
    read_array_header,
    to_finite_float32,
    too_large_reason,
)
from ddpm_jax.data.images import ValueRange
from ddpm_jax.process import first_line

TRAIN_KEYS = ("train", "x_train", "train_images", "images", "arr_0", "jpeg")
TEST_KEYS = ("test", "x_test", "test_images")
TRAIN_LABEL_KEYS = ("train_labels", "y_train", "labels")
TEST_LABEL_KEYS = ("test_labels", "y_test")
LABEL_NAMES_KEY = "label_names"
PREPARED = ("mnist", "cifar10")  # files NAME.npz that `ddpm-jax prepare NAME` makes
HeaderCheck = Callable[[str, tuple[int, ...], np.dtype], None]


def load_npz(path: Path, name: str, held_out: float, levels: int | None, value_range: ValueRange | None) -> Dataset:
    """The images of an .npz file; arguments and errors as those of `sources.load`."""
    if not path.exists():
        command = f"ddpm-jax prepare {path.stem} --out {shlex.quote(str(path.parent))}"
        hint = f"; {command} makes it" if path.stem in PREPARED and path.suffix == ".npz" else ""
        raise FileNotFoundError(f"load: no file {path}{hint}")
    # numpy would read a plain .npy as an array, and refuse other files with a message about pickles
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file, or not a whole one (numpy.savez_compressed writes them)")
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            archive.files  # noqa: B018  a plain array or a pickle has none
        except Exception as error:  # the directory of an archive may be damaged in any way
            raise ValueError(f"{path}: not an .npz file, or a damaged one: {first_line(error)}") from error
        with archive:
            return _load_archive(path, archive, name, held_out, levels, value_range)


def load_npy(path: Path, name: str, held_out: float, levels: int | None, value_range: ValueRange | None) -> Dataset:
    """The images of an .npy file; arguments and errors as those of `sources.load`."""
    if not path.exists():
        raise FileNotFoundError(f"load: no file {path}")
    if not path.is_file():
        raise ValueError(f"{path}: not a file, but a folder, a pipe or a device")
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header is read as Python and fails as Python does, in any way
        raise ValueError(f"{path}: not an .npy file, or not a whole one: {error}") from error
    return _load_archive(path, {"arr_0": array}, name, held_out, levels, value_range)


def _load_archive(
    path: Path,
    archive: Mapping[str, np.ndarray],
    name: str,
    held_out: float,
    levels: int | None,
    value_range: ValueRange | None,
) -> Dataset:
    key, test_key, label_key, test_label_key = _find_keys(path, list(archive))
    train, scale = _read_images(path, archive, key, levels, value_range)
    labels = _read_labels(path, archive, label_key, len(train)) if label_key else None
    if not test_key:
        names = _read_label_names(path, archive, labels)
        train_rows, test_rows = train_test_indices(f"{path}: {key!r}", len(train), held_out, labels)
        train, test = _split_in_place(train, train_rows, test_rows)
        both = (None, None) if labels is None else (labels[train_rows], labels[test_rows])
        return Dataset(train, test, *both, scale, name, names)
    test, _ = _read_images(path, archive, test_key, levels, value_range)
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        ours, theirs = f"{train.dtype} {train.shape}", f"{test.dtype} {test.shape}"
        raise ValueError(f"{path}: {key!r} and {test_key!r} must be alike, got {ours} and {theirs}")
    test_labels = _read_labels(path, archive, test_label_key, len(test)) if test_label_key else None
    names = _read_label_names(path, archive, labels, test_labels)
    return Dataset(train, test, labels, test_labels, scale, name, names)


def _find_keys(path: Path, files: Sequence[str]) -> tuple[str, str | None, str | None, str | None]:
    """The keys of the training images, the test images, and the labels of both."""
    shown = ", ".join(sorted(files)[:12]) + (", ..." if len(files) > 12 else "")
    train = _find_key(path, files, TRAIN_KEYS)
    if train is None:
        raise ValueError(f"{path}: no images; expected a key of {', '.join(TRAIN_KEYS)}, found {shown or 'none'}")
    test = _find_key(path, files, TEST_KEYS)
    labels = _find_key(path, files, (*TRAIN_LABEL_KEYS, "arr_1") if train == "arr_0" else TRAIN_LABEL_KEYS)
    test_labels = _find_key(path, files, TEST_LABEL_KEYS)
    if test and (labels is None) != (test_labels is None):
        raise ValueError(f"{path}: expected labels of both training and test images or of neither, found {shown}")
    if test_labels and not test:
        raise ValueError(f"{path}: {test_labels!r} without test images; expected a key of {', '.join(TEST_KEYS)}")
    return train, test, labels, test_labels


def _find_key(path: Path, files: Sequence[str], names: Sequence[str]) -> str | None:
    found = [name for name in names if name in files]
    if len(found) > 1:
        raise ValueError(f"{path}: the keys {' and '.join(map(repr, found))} mean the same thing; keep one of them")
    return found[0] if found else None


def _read_array(path: Path, archive: Mapping[str, np.ndarray], key: str, check: HeaderCheck) -> np.ndarray:
    """An array of a file, whose header is checked before anything is decompressed."""
    with _explain_read_errors(path, key):
        shape, dtype = read_array_header(archive, key)
    what = f"{path}: {key!r} is {dtype} {shape}"
    check(what, shape, dtype)
    check_memory(what, math.prod(shape) * dtype.itemsize)
    with _explain_read_errors(path, key):
        return archive[key]


@contextlib.contextmanager
def _explain_read_errors(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged header is read as Python, and a damaged size as so much memory
        raise ValueError(f"{path}: cannot read the array {key!r}: {first_line(error)}") from error


def _check_images(what: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.str[1:] not in ARRAY_TYPES:
        raise ValueError(f"{what}; expected images of type uint8, uint16 or floating point: {conversion_hint(dtype)}")
    if len(shape) not in (3, 4, 5):
        raise ValueError(f"{what}; expected [N, H, W, C], [N, H, W] for one channel, or [N, D, H, W, C] for volumes")
    if 0 in shape:
        raise ValueError(f"{what}; expected at least one image with at least one pixel")
    if len(shape) > 3 and is_channels_first(shape[1:]):
        raise ValueError(f"{what}, channels first; expected [N, H, W, C]: save numpy.moveaxis(images, 1, -1)")
    refusal = too_large_reason(shape[1:3])
    if refusal and len(shape) < 5:
        raise ValueError(f"{what}, {refusal}")


def _read_images(
    path: Path, archive: Mapping[str, np.ndarray], key: str, levels: int | None, value_range: ValueRange | None
) -> tuple[np.ndarray, int | ValueRange]:
    """Images [N, H, W, C] or [N, D, H, W, C], and their number of levels or range, checked against their values."""
    array = _decode_jpegs(path, archive) if key == "jpeg" else _read_array(path, archive, key, _check_images)
    what = f"{path}: {key!r} is {array.dtype} {array.shape}"
    array = array if array.ndim > 3 else array[..., None]
    if array.dtype.kind == "f":
        array = to_finite_float32(what, array)
    array = np.asarray(array, array.dtype.newbyteorder("="))
    least, most = array.min().item(), array.max().item()
    return array, check_values(what, array.dtype, least, most, levels=levels, value_range=value_range)


def _read_labels(path: Path, archive: Mapping[str, np.ndarray], key: str, count: int) -> np.ndarray:
    def check(what: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if dtype.kind not in "iu":
            raise ValueError(f"{what}; expected integer labels")
        if shape != (count,):
            raise ValueError(f"{what}; expected one label for each of the {count} images, shape ({count},)")

    labels = _read_array(path, archive, key, check)
    if labels.min() < 0 or labels.max() >= 2**31:
        what = f"{path}: {key!r} is {labels.dtype} {labels.shape}"
        raise ValueError(f"{what} with values {labels.min()} .. {labels.max()}; expected classes 0, 1, ...")
    return labels.astype(np.int32)


def _read_label_names(path: Path, archive: Mapping[str, np.ndarray], *labels: np.ndarray | None) -> tuple[str, ...]:
    """The names of the labels 0, 1, ...; () without names or labels."""
    present = [some for some in labels if some is not None]
    if LABEL_NAMES_KEY not in archive or not present:
        return ()
    count = 1 + max(int(some.max()) for some in present)

    def check(what: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if dtype.kind != "U" or len(shape) != 1 or shape[0] < count:
            raise ValueError(f"{what}; expected a text for each of the {count} labels, shape ({count},)")

    names = tuple(map(str, _read_array(path, archive, LABEL_NAMES_KEY, check)))
    twice = [name for name in names if not name.strip() or names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: {LABEL_NAMES_KEY!r} has {twice[0]!r}; expected names that differ and are not empty")
    return names


def _split_in_place(array: np.ndarray, train_rows: np.ndarray, test_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images at `train_rows`, moved in place, and a copy of those at `test_rows`; both indices ascend."""
    test = array[test_rows]
    if len(train_rows) == len(array):
        return array, test
    # Close the gaps from front to back: no second copy of what may fill half of the memory.
    end = int(test_rows[0])
    for gap, after in zip(test_rows, [*test_rows[1:], len(array)], strict=True):
        array[end : end + after - gap - 1] = array[gap + 1 : after]
        end += int(after - gap) - 1
    return array[:end], test


def _decode_jpegs(path: Path, archive: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images of concatenated JPEG files, uint8 [N, H, W, 1 | 3]: file i is jpeg[offsets[i]:offsets[i + 1]]."""
    if "offsets" not in archive:
        raise ValueError(f"{path}: 'jpeg' without 'offsets' [N + 1], the borders of its files")

    def check(what: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if dtype != np.uint8 or len(shape) != 1:
            raise ValueError(f"{what}; expected the files' bytes, uint8 [bytes]")

    data, offsets = _read_array(path, archive, "jpeg", check), _read_array(path, archive, "offsets", lambda *_: None)
    increasing = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    if not increasing or offsets[0] != 0 or offsets[-1] != len(data) or np.any(offsets[:-1] >= offsets[1:]):
        raise ValueError(f"{path}: 'offsets' must be increasing integers [N + 1] from 0 to len(jpeg) = {len(data)}")
    jpeg_0 = _decode_jpeg(path, data, offsets, 0)
    check_memory(f"{path}: {len(offsets) - 1:,} JPEG files {jpeg_0.shape}", (len(offsets) - 1) * jpeg_0.size)
    images = np.empty((len(offsets) - 1, *jpeg_0.shape), np.uint8)
    for i in range(len(images)):
        image = _decode_jpeg(path, data, offsets, i)
        if image.shape != jpeg_0.shape:
            raise ValueError(f"{path}: JPEG {i} has shape {image.shape}, JPEG 0 has {jpeg_0.shape}; expected one shape")
        images[i] = image
    return images


def _decode_jpeg(path: Path, data: np.ndarray, offsets: np.ndarray, i: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()), formats=["JPEG"]) as file:
            refusal = too_large_reason((file.height, file.width))
            if refusal:
                raise ValueError(refusal)
            pixels = np.asarray(file)
            mode = file.mode
    except Exception as error:  # Pillow's decoders raise errors of any type on damaged bytes
        raise ValueError(f"{path}: JPEG {i} cannot be decoded: {first_line(error)}") from error
    if mode not in ("L", "RGB"):
        raise ValueError(f"{path}: JPEG {i} has the mode {mode}; expected grey (L) or RGB")
    return pixels.reshape(*pixels.shape[:2], -1)
