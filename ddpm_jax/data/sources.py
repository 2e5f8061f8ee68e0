"""Loading of data sets: the digits inside the package, generated pictures, a file, a folder, or a TFDS data set.

Images stay the stored integers, or float32 in a range that the user states; `ddpm_jax.data.normalize` scales them.
Other types are refused with advice, and not converted.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ddpm_jax.data import array_files, folder, pairs, scenes
from ddpm_jax.data.dataset import (
    MAX_BYTES_IN_MEMORY,
    Dataset,
    ImageReader,
    LazyImages,
    ProgressCallback,
    load_into_memory,
    load_lazily,
)
from ddpm_jax.data.images import ValueRange, to_value_range
from ddpm_jax.data.tfds import checksums, reader
from ddpm_jax.data.tfds.address import find_folder, parse_address

BUILT_IN = {"digits": 17, "pairs": 17, "scenes": 256}  # sources inside the package, and their levels
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
    progress: ProgressCallback | None = None,
) -> Dataset:
    """The data set of a source: "digits", "pairs", "scenes", "npz:PATH", "npy:PATH", "folder:PATH" or "tfds:NAME".

    The digits are in the package; `pairs` and `scenes` are generated with captions, see the modules of these names.

    An .npz file holds the training images under one of `train`, `x_train`, `train_images`, `images`, `arr_0` (as
    numpy.savez names an array without a name), and may hold held-out ones under `test`, `x_test`, `test_images`.
    Images are uint8, uint16 or floating point [N, H, W, C], [N, H, W] for one channel, or [N, D, H, W, C] for volumes;
    floating-point values need a `value_range`, and are kept in float32.  Labels, integers [N], are found under
    `train_labels`, `y_train`, `labels` (beside `arr_0` also `arr_1`) and `test_labels`, `y_test`; texts [K] under
    `label_names` name the labels 0 .. K - 1.  Images may also be JPEG files, end to end in the bytes `jpeg` with their
    borders in `offsets` [N + 1]; these are decoded with Pillow.  Other keys are not read.  An .npy file holds the
    training images alone.

    A folder holds image files in any sub-folders, and TFDS data sets are read without TensorFlow: see `open_readers`.

    Args:
        held_out: the fraction of the images, at least one, to hold out if the source has no held-out images: the last
            of a fixed permutation, but no label's last image.  The others keep their order.  A single image is both
            trained on and held out.
        levels: the number of levels if it is not 256 for uint8 and 65536 for uint16.
        value_range: the values of floating-point images that become -1 and 1; none may be outside.
        resolution, skip_bad, report: for images that are read one by one, see `open_readers`.
        stream: read images of folders and TFDS only when they are indexed; None does so for those of more than 2 GiB.
        progress: called with (what, done, total) after each of these images is "checked" and after it is "loaded".

    Raises:
        FileNotFoundError: if the file or folder does not exist.
        ValueError: if the source is unknown, or its content or an option is not as described.
    """
    _check_held_out(held_out)
    kind, _, path = source.partition(":")
    if kind in ("folder", "tfds") and path:
        train, test = open_readers(
            source, held_out=held_out, levels=levels, value_range=value_range, resolution=resolution,
            skip_bad=skip_bad, report=report, progress=progress,
        )  # fmt: skip
        images = load_lazily(train, test)
        streamed = images.train.nbytes + images.test.nbytes > MAX_BYTES_IN_MEMORY if stream is None else stream
        return images if streamed else load_into_memory(train, test, progress=progress)
    if resolution or skip_bad:
        raise ValueError(f"load: resolution and skip_bad are for folder: and tfds: sources; {source!r} has neither")
    if source in BUILT_IN:
        if levels not in (None, BUILT_IN[source]) or len(value_range):
            got = f"levels={levels}, range={tuple(value_range)}"
            raise ValueError(f"load: the {source} have {BUILT_IN[source]} levels, got {got}")
        if source == "scenes":
            return scenes.make_dataset()
        digits = array_files.load_npz(Path(__file__).with_name("digits.npz"), "digits", 0.1, 17, None)
        digits = digits._replace(label_names=DIGIT_NAMES)
        return pairs.make_dataset(digits) if source == "pairs" else digits
    if kind in ("npz", "npy") and path:
        read, file = array_files.load_npz if kind == "npz" else array_files.load_npy, Path(os.path.expanduser(path))
        return read(file, source, held_out, levels, to_value_range(value_range))._replace(format="npz")
    ends = next((end for end in ("npz", "npy") if source.endswith(f".{end}") and not kind.startswith("np")), "")
    hint = f'; did you mean "{ends}:{source}"?' if ends else ""
    hint = f'; did you mean "folder:{source}"?' if not hint and source and Path(source).is_dir() else hint
    if source in array_files.PREPARED:
        hint = f"; ddpm-jax prepare {source} --out data makes npz:data/{source}.npz"
    expected = '"digits", "pairs", "scenes", "npz:PATH", "npy:PATH", "folder:PATH" or "tfds:NAME"'
    raise ValueError(f"load: unknown source {source!r}: expected {expected}{hint}")


def open_readers(
    source: str,
    *,
    held_out: float = 0.1,
    levels: int | None = None,
    value_range: Sequence[float] = (),
    resolution: Sequence[int] = (),
    skip_bad: bool = False,
    report: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[ImageReader, ImageReader]:
    """The readers of training and held-out images of "folder:PATH" or "tfds:NAME".

    A folder holds image files in any sub-folders: png, jpg, jpeg, webp, bmp, tif, tiff, gif, and npy for arrays uint8,
    uint16 or floating point [H, W, C], [H, W] or [D, H, W, C] of any number of channels.  Pictures have 8 bits and are
    grey, RGB, or either with alpha, or are 16-bit grey; they are never converted, and all must be of one mode.  Their
    order is that of their paths.  The Exif orientation is applied.  Labels are the first-level sub-folders, or the
    column `label` of a .csv file beside them; captions are its column `caption` (see `annotations`).  Where there are
    sub-folders `train` and `test`, or of similar names (see `folder`), these are the splits.  Links are followed only
    within the folder.

    For the address of a TFDS data set see `tfds.address`; `ddpm-jax prepare` makes one.

    Args:
        held_out, levels, value_range: as in `load`.
        resolution: () for the stored sizes; (side,), or (height, width), to cut each image to the largest part in its
            middle of this aspect and resize it with an antialiased Lanczos filter.
        skip_bad: (folders) leave out files that cannot be read or are not of the most frequent mode; the report names
            them.
        report: (folders) called with each line of the report.
        progress: called with ("checked", done, total) after each image.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the source is of another kind, or its content or an option is not as described.
    """
    _check_held_out(held_out)
    kind, _, path = source.partition(":")
    if kind == "tfds" and path:
        if skip_bad:
            raise ValueError(f"open_readers: skip_bad is not for {source!r}; ddpm-jax prepare has --skip-bad")
        checksums.verify(find_folder(parse_address(source)))
        return reader.open_readers(
            source, held_out=held_out, levels=levels, value_range=to_value_range(value_range),
            size=folder.parse_resolution(resolution),
        )  # fmt: skip
    if kind != "folder" or not path:
        raise ValueError(
            f'open_readers: expected a source "folder:PATH" or "tfds:NAME", whose images are read one by one, '
            f"got {source!r}"
        )
    return folder.open_readers(
        Path(os.path.expanduser(path)), source, held_out=held_out, levels=levels, value_range=value_range,
        resolution=resolution, skip_bad=skip_bad, report=report, progress=progress,
    )  # fmt: skip


def summary(dataset: Dataset) -> str:
    """A line on a data set: numbers of images, size, levels, classes, memory."""
    levels = dataset.levels
    values = f"{levels.low:g} to {levels.high:g}" if isinstance(levels, ValueRange) else f"{levels} levels"
    labels = "no labels"
    if dataset.train_labels is not None and dataset.test_labels is not None:
        labels = f"{len(np.union1d(dataset.train_labels, dataset.test_labels))} classes"
    left = isinstance(dataset.train, LazyImages)
    one = len(dataset.train) == len(dataset.test) == 1 and np.array_equal(dataset.train[0], dataset.test[0])
    return (
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} held-out images, "
        f"{'x'.join(map(str, dataset.train.shape[1:]))} {dataset.train.dtype}, {values}, {labels}, "
        f"{(dataset.train.nbytes + dataset.test.nbytes) / 1e6:.1f} MB{', read when needed' * left}"
        f"{'; the one image is both' * one}"
    )


def _check_held_out(held_out: float) -> None:
    if not 0 < held_out < 1:
        raise ValueError(f"load: expected a fraction 0 < held_out < 1, got {held_out}")
