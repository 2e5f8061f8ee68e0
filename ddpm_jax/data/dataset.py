"""Data sets, in memory or read image by image, and their split into training and held-out images."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from ddpm_jax.data.images import ValueRange

ProgressCallback = Callable[[str, int, int], None]
"""(what, done, total): called after each image, with "checked" or "loaded"."""

MAX_BYTES_IN_MEMORY = 2 << 30
"""Largest size, in bytes, of images held in memory (the host's and each device's) by default."""

A = TypeVar("A")
B = TypeVar("B")


class Dataset(NamedTuple):
    """Training and held-out images, with their labels and captions.

    train, test: uint8 or uint16, values 0 .. levels - 1, or float32 in a range: [N, H, W, C], or volumes
        [N, D, H, W, C], in host memory or read when indexed; test is never trained on.
    train_labels, test_labels: int32 [N], or both None.
    levels: 17 for the digits, 256 for 8 bits, 65536 for 16 bits, unless given to `load`; the `ValueRange` of
        floating-point images.
    name: the source, as given to `load`.
    label_names: the names of the labels 0, 1, ...; () if there are no labels, or only numbers.
    train_captions, test_captions: a text for each image, or both None; its lines are descriptions of one image.
    format: the images' file format: "npz" (also for one .npy file of all); for a folder the most frequent of "png",
        "jpg", "webp", "bmp", "tiff", "gif" and "npy"; "" for other sources.
    """

    train: "Pixels"
    test: "Pixels"
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    levels: int | ValueRange
    name: str
    label_names: tuple[str, ...] = ()
    train_captions: tuple[str, ...] | None = None
    test_captions: tuple[str, ...] | None = None
    format: str = ""


@dataclasses.dataclass(eq=False)
class ImageReader:
    """Images in files of their own or too large for memory, read one by one, by several threads at once.

    name: the source, as given to `load`.
    shape: (H, W, C) or (D, H, W, C) of every image, after resizing.
    dtype: uint8, uint16 or float32.
    levels, label_names, format: as in `Dataset`.
    labels: int32 [N], or None.
    captions: a text for each image, or None.
    count: N.
    read: i -> image i, of shape and dtype; a ValueError names the file if it cannot be read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    levels: int | ValueRange
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    captions: tuple[str, ...] | None
    format: str
    count: int
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        return self.read(i)


def subset(reader: ImageReader, indices: np.ndarray) -> ImageReader:
    """Some images of a reader, in the order of `indices`."""
    labels = None if reader.labels is None else reader.labels[indices]
    captions = None if reader.captions is None else tuple(reader.captions[i] for i in indices)
    return ImageReader(
        reader.name, reader.shape, reader.dtype, reader.levels, labels, reader.label_names, captions, reader.format,
        len(indices), lambda i: reader[int(indices[i])],
    )  # fmt: skip


class LazyImages:
    """The images of a reader as an array [N, H, W, C] that is read when indexed, several images at a time.

    An index is one integer, a slice or an array of integers.
    """

    def __init__(self, reader: ImageReader) -> None:
        self.reader, self.dtype = reader, reader.dtype
        self.shape = (len(reader), *reader.shape)
        self.ndim, self.nbytes = len(self.shape), math.prod(self.shape) * reader.dtype.itemsize

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: "int | slice | np.ndarray") -> np.ndarray:
        indices = np.arange(len(self))[index]
        images = np.empty((indices.size, *self.reader.shape), self.dtype)
        _read_images([(image, self.reader, int(i)) for image, i in zip(images, indices.reshape(-1), strict=True)])
        return images.reshape(*indices.shape, *self.reader.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Pixels = np.ndarray | LazyImages
"""Images [N, H, W, C] in memory, or read when indexed."""


def train_test_indices(
    what: str, count: int, held_out: float, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out images among `count`, each ascending.

    The last images of a fixed permutation, at least one, are held out.  The last training image of a label is not held
    out: an earlier image of the permutation replaces it, if there is one.  A single image is both.

    Raises:
        ValueError: if no training image would be left; it begins with `what`.
    """
    if count == 1:
        return np.zeros(1, int), np.zeros(1, int)
    held = max(1, round(held_out * count))
    if held >= count:
        raise ValueError(f"{what} has {count} images; holding out held_out={held_out} of them leaves none to train on")
    # RandomState and not default_rng: numpy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(count)[::-1]
    if labels is not None and len(np.setdiff1d(labels[order[:held]], labels[order[held:]])):
        last = np.unique(labels[order][::-1], return_index=True)[1]  # the first of each label in the permutation
        must_train = np.zeros(count, bool)
        must_train[count - 1 - last] = True
        order = np.concatenate([order[~must_train], order[must_train]])
    out = np.sort(order[:held])
    return np.delete(np.arange(count), out), out


def train_test_split(reader: ImageReader, held_out: float) -> tuple[ImageReader, ImageReader]:
    """The training and the held-out images, by `train_test_indices`; both keep their order.

    Raises:
        ValueError: if no training image would be left.
    """
    train, out = train_test_indices(reader.name, len(reader), held_out, reader.labels)
    return subset(reader, train), subset(reader, out)


def check_values(
    what: str, dtype: np.dtype, least: float, most: float, *, levels: int | None, value_range: ValueRange | None
) -> int | ValueRange:
    """The number of levels of integer images, all of their type if it is None; of floating-point images the range.

    Raises:
        ValueError: if the type has fewer levels, no range is given for floating-point images or levels are, or a range
            for integers; if the values `least` to `most` are outside.  The text begins with `what`.
    """
    if dtype.kind != "f":
        if value_range is not None:
            raise ValueError(f"{what}: images of type {dtype} have levels; a range is for floating-point images")
        held = int(np.iinfo(dtype).max) + 1
        levels = held if levels is None else levels
        if not isinstance(levels, int) or not 2 <= levels <= held:
            raise ValueError(f"{what}: images of type {dtype}; expected 2 to {held} levels, got levels={levels}")
        if most >= levels:
            raise ValueError(f"{what}: the value {most:.0f} is above levels - 1 = {levels - 1}")
        return levels
    if levels is not None:
        raise ValueError(f"{what}: floating-point images have no levels, got levels={levels}")
    if value_range is None:
        usual = [(low, high) for low, high in ((0, 1), (-1, 1), (0, 255)) if low <= least and most <= high]
        low, high = usual[0] if usual else (least, most)
        raise ValueError(
            f"{what}: floating-point values from {_short(least)} to {_short(most)}; say which become -1 and 1, the "
            f"lowest and the highest that images can have, as --data.range {_short(low)} {_short(high)}"
        )
    for value in (least, most):
        if not value_range.low <= value <= value_range.high:
            ends = f"{_short(value_range.low)} {_short(value_range.high)}"
            raise ValueError(f"{what}: the value {_short(value)} is outside of the range {ends}")
    return value_range


def _short(value: float) -> str:
    """The shortest text of a number in float32."""
    return f"{float(str(np.float32(value))):.9g}"


def load_into_memory(train: ImageReader, test: ImageReader, *, progress: ProgressCallback | None = None) -> Dataset:
    """All images of two readers in memory, read several at a time.

    Raises:
        ValueError: as `load_lazily`, or if an image cannot be read.
    """
    dataset = load_lazily(train, test)
    train_images, test_images = (np.empty((len(reader), *reader.shape), reader.dtype) for reader in (train, test))
    tasks = [(image, train, i) for i, image in enumerate(train_images)]
    tasks += [(image, test, i) for i, image in enumerate(test_images)]
    _read_images(tasks, progress)
    return dataset._replace(train=train_images, test=test_images)


def load_lazily(train: ImageReader, test: ImageReader) -> Dataset:
    """The images of two readers, read when they are indexed.

    Raises:
        ValueError: unless the two agree in shape, type, levels, label names and in which annotations they have.
    """
    for field in ("shape", "dtype", "levels", "label_names"):
        ours, theirs = getattr(train, field), getattr(test, field)
        if ours != theirs:
            raise ValueError(f"{train.name}: training and held-out images must have one {field}, got {ours}, {theirs}")
    for field in ("labels", "captions"):
        if (getattr(train, field) is None) != (getattr(test, field) is None):
            raise ValueError(f"{train.name}: expected {field} of both training and held-out images or of neither")
    return Dataset(
        LazyImages(train), LazyImages(test), train.labels, test.labels, train.levels, train.name, train.label_names,
        train.captions, test.captions, train.format,
    )  # fmt: skip


def _read_images(
    tasks: Sequence[tuple[np.ndarray, ImageReader, int]], progress: ProgressCallback | None = None
) -> None:
    """Reads image i of a reader into an array, for each (array, reader, i) and several at a time."""

    def read(task: tuple[np.ndarray, ImageReader, int]) -> None:
        array, reader, i = task
        array[:] = reader[i]

    # The report of a folder has Pillow's warnings on metadata.  Filters belong to the whole process, so they are set
    # around all threads and not in each.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        map_in_threads(read, tasks, progress, "loaded")


def map_in_threads(
    function: Callable[[A], B], items: Sequence[A], progress: ProgressCallback | None, what: str
) -> list[B]:
    """function(item) of every item, in order; after an error or an interrupt, no further group of items begins.

    A thread is handed a group of up to 16 of many items: to hand over one takes as long as to decode a small image.
    """
    pool, results, size = ThreadPoolExecutor(), [], min(16, 1 + len(items) // 1000)
    groups = [items[i : i + size] for i in range(0, len(items), size)]
    try:
        for group in pool.map(lambda group: [function(item) for item in group], groups):
            for result in group:
                results.append(result)
                if progress is not None:
                    progress(what, len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results
