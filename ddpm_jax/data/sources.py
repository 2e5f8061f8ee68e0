"""Where images come from: the digits inside the package, generated pictures, a file, a folder, or a TFDS data set.

Images stay the integers that they are stored as, or float32 in a range that the user states, and
`ddpm_jax.data.images.to_unit` scales them.  Nothing else is converted on the way in: what is something else is refused,
in words that say what would be right.
"""

import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ddpm_jax.data import catalogue, folder, pairs, scenes, seal
from ddpm_jax.data.files import channels_first, finite
from ddpm_jax.data.images import Range, range_of
from ddpm_jax.data.reader import (
    IN_MEMORY,
    Images,
    Progress,
    Reader,
    Unread,
    checked_range,
    gathered,
    held_out_indices,
    nbytes,
    unread,
)

TRAIN = ("train", "x_train", "train_images", "images", "arr_0", "jpeg")
TEST = ("test", "x_test", "test_images")
TRAIN_LABELS = ("train_labels", "y_train", "labels")
TEST_LABELS = ("test_labels", "y_test")
OWN = {"digits": 17, "pairs": 17, "scenes": 256}  # what is in the package or made by it, and its levels
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load(
    source: str,
    *,
    held_out: float = 0.1,
    levels: int | None = None,
    value_range: Sequence[float] = (),
    resolution: Sequence[int] = (),
    skip_bad: bool = False,
    stream: bool | None = None,
    report: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Images:
    """The images of a source: "digits", "pairs", "scenes", "npz:PATH", "npy:PATH", "folder:PATH" or "tfds:NAME".

    The digits are in the package; `pairs` and `scenes` say what those two are, which are generated with captions.

    An .npz file holds the training images under one of `train`, `x_train`, `train_images`, `images`, `arr_0` (as
    numpy.savez names an array without a name), and may hold held-out ones under `test`, `x_test`, `test_images`.
    Images are uint8, uint16 or floating point [N, H, W, C], [N, H, W] for one channel, or [N, D, H, W, C] for volumes;
    floating-point values need a `value_range`, and are kept in float32.  Labels, integers [N], are found under
    `train_labels`, `y_train`, `labels` (beside `arr_0` also `arr_1`) and `test_labels`, `y_test`.  Images may also be
    JPEG files, end to end in the bytes `jpeg` with their borders in `offsets` [N + 1]; these are decoded with Pillow.
    Other keys are not read.  An .npy file holds the training images alone.

    A folder holds image files in any sub-folders, and TFDS data sets are read without TensorFlow: see `parts`.

    Args:
        held_out: the fraction of the images, at least one image, that is held out where the source has none: the last
            ones of a fixed permutation.  The others keep their order.
        levels: the number of levels if it is not 256 for uint8 and 65536 for uint16.
        value_range: of floating-point images, the values that become -1 and 1; no value may lie outside.
        resolution, skip_bad, report: for images that are read one by one, see `parts`.
        stream: leave images that are read one by one where they are until they are indexed; None does so with those
            that would take more than 2 GiB of memory.
        progress: told (what, done, total) after each of these, when it is "checked" and again when it is "loaded".

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the source is unknown, or what it names or an option is not as described.
    """
    _check_held_out(held_out)
    kind, _, path = source.partition(":")
    if kind in ("folder", "tfds") and path:
        train, test = parts(
            source, held_out=held_out, levels=levels, value_range=value_range, resolution=resolution,
            skip_bad=skip_bad, report=report, progress=progress,
        )  # fmt: skip
        streamed = nbytes(train) + nbytes(test) > IN_MEMORY if stream is None else stream
        return unread(train, test) if streamed else gathered(train, test, progress=progress)
    if resolution or skip_bad:
        raise ValueError(
            f"load: resolution and skip_bad are for folder: and tfds: sources; {source!r} is taken as it is"
        )
    if source in OWN:
        if levels not in (None, OWN[source]) or len(value_range):
            got = f"levels={levels}, range={tuple(value_range)}"
            raise ValueError(f"load: the {source} have {OWN[source]} levels, got {got}")
        return scenes.images() if source == "scenes" else pairs.of(_digits()) if source == "pairs" else _digits()
    if kind in ("npz", "npy") and path:
        read = _npz if kind == "npz" else _npy
        return read(Path(os.path.expanduser(path)), source, held_out, levels, range_of(value_range))._replace(
            format="npz"
        )
    ends = next((end for end in ("npz", "npy") if source.endswith(f".{end}") and not kind.startswith("np")), "")
    hint = f'; did you mean "{ends}:{source}"?' if ends else ""
    hint = f'; did you mean "folder:{source}"?' if not hint and source and Path(source).is_dir() else hint
    expected = '"digits", "pairs", "scenes", "npz:PATH", "npy:PATH", "folder:PATH" or "tfds:NAME"'
    raise ValueError(f"load: unknown source {source!r}: expected {expected}{hint}")


def parts(
    source: str,
    *,
    held_out: float = 0.1,
    levels: int | None = None,
    value_range: Sequence[float] = (),
    resolution: Sequence[int] = (),
    skip_bad: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Reader, Reader]:
    """The training and the held-out images of a source whose images are read one by one: "folder:PATH", "tfds:NAME".

    A folder holds image files in any sub-folders: png, jpg, jpeg, webp, bmp, tif, tiff, gif, and npy for arrays uint8,
    uint16 or floating point [H, W, C], [H, W] or [D, H, W, C] of any number of channels.  Pictures have 8 bits and are
    grey, RGB, or either with alpha, or are 16-bit grey; they are never converted, and all must be of one mode.  Their
    order is that of their paths.  The Exif orientation is applied.  Labels are the first-level sub-folders, or the
    column `label` of a .csv file beside them; captions are its column `caption` (see `labels`).  Where there are
    sub-folders `train` and one of `test`, `val` and `validation`, these divide the images.

    For the address of a TFDS data set see `catalogue`; `python -m ddpm_jax.data prepare` makes one.

    Args:
        held_out, levels, value_range: as in `load`.
        resolution: () for as stored; (side,), or (height, width), to cut each image to the largest part in its middle
            that has this aspect and scale it with an antialiased Lanczos filter.
        skip_bad: (folders) go on without the files that cannot be read or are not of the most frequent mode; they are
            in the report.
        report: (folders) told each line of the report on what is there and what will be done with it.
        progress: told ("checked", done, total) after each image is.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the source is not a folder's, or what it holds or an option is not as described.
    """
    _check_held_out(held_out)
    kind, _, path = source.partition(":")
    if kind == "tfds" and path:
        if skip_bad:
            raise ValueError(f"parts: {source!r} is taken whole; python -m ddpm_jax.data prepare has --skip-bad")
        seal.check(catalogue.located(catalogue.address(source)))
        return catalogue.parts(
            source, held_out=held_out, levels=levels, given=range_of(value_range), size=folder.size_of(resolution)
        )
    if kind != "folder" or not path:
        raise ValueError(
            f'parts: expected a source "folder:PATH" or "tfds:NAME", whose images are read one by one, got {source!r}'
        )
    return folder.parts(
        Path(os.path.expanduser(path)), source, held_out=held_out, levels=levels, value_range=value_range,
        resolution=resolution, skip_bad=skip_bad, report=report, progress=progress,
    )  # fmt: skip


def summary(images: Images) -> str:
    """One line: how many images of what size and depth, labels, memory."""
    levels = images.levels
    values = f"{levels.low:g} to {levels.high:g}" if isinstance(levels, Range) else f"{levels} levels"
    labels = "no labels"
    if images.train_labels is not None and images.test_labels is not None:
        labels = f"{len(np.union1d(images.train_labels, images.test_labels))} classes"
    left = isinstance(images.train, Unread)
    return (
        f"{images.name}: {len(images.train):,} training and {len(images.test):,} held-out images, "
        f"{'x'.join(map(str, images.train.shape[1:]))} {images.train.dtype}, {values}, {labels}, "
        f"{(images.train.nbytes + images.test.nbytes) / 1e6:.1f} MB{', read when needed' * left}"
    )


def _digits() -> Images:
    return _npz(Path(__file__).with_name("digits.npz"), "digits", 0.1, 17, None)._replace(label_names=DIGITS)


def _check_held_out(held_out: float) -> None:
    if not 0 < held_out < 1:
        raise ValueError(f"load: expected a fraction 0 < held_out < 1, got {held_out}")


def _npz(path: Path, name: str, held_out: float, levels: int | None, given: Range | None) -> Images:
    if not path.exists():
        raise FileNotFoundError(f"load: no file {path}")
    # A plain .npy would be read as an array and a pickle be refused in words about pickles, so look before numpy does.
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file, or not a whole one (numpy.savez_compressed writes them)")
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            archive.files  # noqa: B018  of what begins as a plain array or a pickle there are none
        except Exception as error:  # the directory of an archive may be damaged in any way
            raise ValueError(f"{path}: not an .npz file, or a damaged one: {_said(error)}") from error
        with archive:
            return _images(path, archive, name, held_out, levels, given)


def _npy(path: Path, name: str, held_out: float, levels: int | None, given: Range | None) -> Images:
    if not path.exists():
        raise FileNotFoundError(f"load: no file {path}")
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header is read as Python and fails as Python does, in any way
        raise ValueError(f"{path}: not an .npy file, or not a whole one: {error}") from error
    return _images(path, {"arr_0": array}, name, held_out, levels, given)


def _images(
    path: Path, archive: Mapping[str, np.ndarray], name: str, held_out: float, levels: int | None, given: Range | None
) -> Images:
    key, test_key, label_key, test_label_key = _keys(path, list(archive))
    train = _jpeg(path, archive) if key == "jpeg" else _array(path, archive, key)
    train = _checked_images(path, key, train, levels, given)
    scale = given or (int(np.iinfo(train.dtype).max) + 1 if levels is None else levels)
    labels = _labels(path, archive, label_key, len(train)) if label_key else None
    if not test_key:
        train, test = _divided(path, key, train, held_out)
        both = (labels, None) if labels is None else _divided(path, key, labels, held_out)
        return Images(train, test, *both, scale, name)
    test = _checked_images(path, test_key, _array(path, archive, test_key), levels, given)
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise ValueError(
            f"{path}: {key!r} and {test_key!r} must be alike, got {train.dtype} {train.shape} and "
            f"{test.dtype} {test.shape}"
        )
    test_labels = _labels(path, archive, test_label_key, len(test)) if test_label_key else None
    return Images(train, test, labels, test_labels, scale, name)


def _keys(path: Path, files: Sequence[str]) -> tuple[str, str | None, str | None, str | None]:
    """The keys of the training images, the test images, and the labels of both."""
    shown = ", ".join(sorted(files)[:12]) + (", ..." if len(files) > 12 else "")
    train = _one_of(path, files, TRAIN)
    if train is None:
        raise ValueError(f"{path}: no images; expected one of the keys {', '.join(TRAIN)}, found {shown or 'none'}")
    test = _one_of(path, files, TEST)
    labels = _one_of(path, files, (*TRAIN_LABELS, "arr_1") if train == "arr_0" else TRAIN_LABELS)
    test_labels = _one_of(path, files, TEST_LABELS)
    if test and (labels is None) != (test_labels is None):
        raise ValueError(f"{path}: expected labels of both training and test images or of neither, found {shown}")
    if test_labels and not test:
        raise ValueError(f"{path}: {test_labels!r} without test images; expected one of the keys {', '.join(TEST)}")
    return train, test, labels, test_labels


def _one_of(path: Path, files: Sequence[str], names: Sequence[str]) -> str | None:
    found = [name for name in names if name in files]
    if len(found) > 1:
        raise ValueError(f"{path}: the keys {' and '.join(map(repr, found))} mean the same thing; keep one of them")
    return found[0] if found else None


def _array(path: Path, archive: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    try:
        array = archive[key]
    except Exception as error:  # a damaged header is read as Python, and a damaged size as so much memory
        raise ValueError(f"{path}: cannot read the array {key!r}: {_said(error)}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key!r} is not an array")
    return array


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _checked_images(path: Path, key: str, array: np.ndarray, levels: int | None, given: Range | None) -> np.ndarray:
    """The array as [N, H, W, C] or [N, D, H, W, C], if it holds images of so many levels or of this range."""
    what = f"{path}: {key!r} is {array.dtype} {array.shape}"
    if array.dtype.str[1:] not in ("u1", "u2", "f2", "f4", "f8"):
        advice = "integers 0 .. levels - 1 can be saved with images.astype(numpy.uint8)"
        raise ValueError(f"{what}; expected images of type uint8, uint16 or floating point: {advice}")
    if array.ndim not in (3, 4, 5):
        raise ValueError(f"{what}; expected [N, H, W, C], [N, H, W] for one channel, or [N, D, H, W, C] for volumes")
    if array.size == 0:
        raise ValueError(f"{what}; expected at least one image with at least one pixel")
    if array.ndim > 3 and channels_first(array.shape[1:]):
        raise ValueError(f"{what}, channels first; expected [N, H, W, C]: save numpy.moveaxis(images, 1, -1)")
    array = array if array.ndim > 3 else array[..., None]
    if array.dtype.kind == "f":
        array = finite(what, array)
        checked_range(what, array.min().item(), array.max().item(), levels=levels, given=given)
        return array
    array = np.asarray(array, array.dtype.newbyteorder("="))
    if given is not None:
        raise ValueError(f"{what}, which has levels; a range is for floating-point images")
    most = int(np.iinfo(array.dtype).max) + 1
    if levels is not None and not 2 <= levels <= most:
        raise ValueError(f"{what}; expected 2 to {most} levels, got levels={levels}")
    if levels is not None and array.max() >= levels:
        raise ValueError(f"{what} with the value {array.max()}, above levels - 1 = {levels - 1}")
    return array


def _labels(path: Path, archive: Mapping[str, np.ndarray], key: str, count: int) -> np.ndarray:
    labels = _array(path, archive, key)
    what = f"{path}: {key!r} is {labels.dtype} {labels.shape}"
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{what}; expected integer labels")
    if labels.shape != (count,):
        raise ValueError(f"{what}; expected one label for each of the {count} images, shape ({count},)")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise ValueError(f"{what} with values {labels.min()} .. {labels.max()}; expected classes 0, 1, ...")
    return labels.astype(np.int32)


def _divided(path: Path, key: str, array: np.ndarray, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """The array without those of `held_out_indices`, in place, and a copy of these."""
    count = len(array)
    out = held_out_indices(f"{path}: {key!r}", count, held_out)
    test = array[out]
    # Close the gaps from front to back: no second copy of what may fill half of the memory.
    end = int(out[0])
    for gap, after in zip(out, [*out[1:], count], strict=True):
        array[end : end + after - gap - 1] = array[gap + 1 : after]
        end += int(after - gap) - 1
    return array[:end], test


def _jpeg(path: Path, archive: Mapping[str, np.ndarray]) -> np.ndarray:
    """The images of concatenated JPEG files, uint8 [N, H, W, 1 | 3]: file i is jpeg[offsets[i]:offsets[i + 1]]."""
    if "offsets" not in archive:
        raise ValueError(f"{path}: 'jpeg' without 'offsets' [N + 1], the borders of its files")
    data, offsets = _array(path, archive, "jpeg"), _array(path, archive, "offsets")
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"{path}: 'jpeg' is {data.dtype} {data.shape}; expected the files' bytes, uint8 [bytes]")
    increasing = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    if not increasing or offsets[0] != 0 or offsets[-1] != len(data) or np.any(offsets[:-1] >= offsets[1:]):
        raise ValueError(f"{path}: 'offsets' must be increasing integers [N + 1] from 0 to len(jpeg) = {len(data)}")
    first = _decoded(path, data, offsets, 0)
    images = np.empty((len(offsets) - 1, *first.shape), np.uint8)
    for i in range(len(images)):
        image = _decoded(path, data, offsets, i)
        if image.shape != first.shape:
            raise ValueError(f"{path}: JPEG {i} has shape {image.shape}, JPEG 0 has {first.shape}; expected one shape")
        images[i] = image
    return images


def _decoded(path: Path, data: np.ndarray, offsets: np.ndarray, i: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()), formats=["JPEG"]) as file:
            pixels = np.asarray(file)
            mode = file.mode
    except Exception as error:  # on damaged bytes, Pillow's decoders raise nearly every type there is
        raise ValueError(f"{path}: JPEG {i} cannot be decoded: {_said(error)}") from error
    if mode not in ("L", "RGB"):
        raise ValueError(f"{path}: JPEG {i} has the mode {mode}; expected grey (L) or RGB")
    return pixels.reshape(*pixels.shape[:2], -1)
