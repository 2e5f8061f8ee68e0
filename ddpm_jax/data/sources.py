"""Where images come from: the digits inside the package, generated pictures, a file, a folder, or a TFDS data set.

Images stay the integers that they are stored as, or float32 in a range that the user states, and
`ddpm_jax.data.images.to_unit` scales them.  Nothing else is converted on the way in: what is something else is refused,
in words that say what would be right.
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
    nbytes,
)
from ddpm_jax.data.images import ValueRange, to_value_range
from ddpm_jax.data.tfds import checksums, reader
from ddpm_jax.data.tfds.address import find_folder, parse_address

BUILT_IN = {"digits": 17, "pairs": 17, "scenes": 256}  # what is in the package or made by it, and its levels
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
            ones of a fixed permutation, but no label's last image.  The others keep their order.  Of a source of one
            image, this is both trained on and held out.
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
        train, test = open_readers(
            source, held_out=held_out, levels=levels, value_range=value_range, resolution=resolution,
            skip_bad=skip_bad, report=report, progress=progress,
        )  # fmt: skip
        streamed = nbytes(train) + nbytes(test) > MAX_BYTES_IN_MEMORY if stream is None else stream
        return load_lazily(train, test) if streamed else load_into_memory(train, test, progress=progress)
    if resolution or skip_bad:
        raise ValueError(
            f"load: resolution and skip_bad are for folder: and tfds: sources; {source!r} is taken as it is"
        )
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
    """The training and the held-out images of a source whose images are read one by one: "folder:PATH", "tfds:NAME".

    A folder holds image files in any sub-folders: png, jpg, jpeg, webp, bmp, tif, tiff, gif, and npy for arrays uint8,
    uint16 or floating point [H, W, C], [H, W] or [D, H, W, C] of any number of channels.  Pictures have 8 bits and are
    grey, RGB, or either with alpha, or are 16-bit grey; they are never converted, and all must be of one mode.  Their
    order is that of their paths.  The Exif orientation is applied.  Labels are the first-level sub-folders, or the
    column `label` of a .csv file beside them; captions are its column `caption` (see `annotations`).  Where there are
    sub-folders `train` and `test`, or of names like these (see `folder`), they divide the images.  Links are followed
    within the folder only.

    For the address of a TFDS data set see `catalogue`; `ddpm-jax prepare` makes one.

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
            raise ValueError(f"open_readers: {source!r} is taken whole; ddpm-jax prepare has --skip-bad")
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
    """One line: how many images of what size and depth, labels, memory."""
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
