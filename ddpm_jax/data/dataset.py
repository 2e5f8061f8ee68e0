"""A data set, whole in memory or read image by image, and the one rule by which both are divided.

What is too large for memory, or lies in files of its own, is a `Reader`; `whole` and `gathered` read one into memory,
and `unread` leaves it where it is.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from ddpm_jax.data.images import ValueRange

ProgressCallback = Callable[[str, int, int], None]
"""(what, done, total): told after each image that it is "checked" or "loaded"."""

MAX_BYTES_IN_MEMORY = 2 << 30
"""Bytes of images up to which they are held in memory, the host's and each device's, unless told otherwise."""

A = TypeVar("A")
B = TypeVar("B")


class Dataset(NamedTuple):
    """A data set.

    train, test: uint8 or uint16, values 0 .. levels - 1, or float32 in a range: [N, H, W, C], or volumes
        [N, D, H, W, C], in host memory or read where they are indexed; test is held out, never trained on.
    train_labels, test_labels: int32 [N], or both None.
    levels: 17 for the digits, 256 for 8 bits, 65536 for 16 bits, unless the caller of `load` said otherwise; of
        floating-point images the `Range`.
    name: the source, as it was given to `load`.
    label_names: what the labels 0, 1, ... are called; () if there are no labels, or only numbers.
    train_captions, test_captions: a text for each image, or both None; its lines are descriptions of one image.
    format: what the images came as: "npz" (also of an .npy file of them all); of a folder's files the most frequent of
        "png", "jpg", "webp", "bmp", "tiff", "gif" and "npy"; "" for other sources.
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


class ImageReader(Protocol):
    """Images that are read one by one.  Many threads may read at once."""

    @property
    def name(self) -> str:
        """The source, as it was given."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) or (D, H, W, C) of every image, after resizing."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """uint8, uint16 or float32."""
        ...

    @property
    def levels(self) -> int | ValueRange:
        """Values are 0 .. levels - 1, or lie in a range."""
        ...

    @property
    def format(self) -> str:
        """As in `Images`."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], or None."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels 0, 1, ... are called; () without labels."""
        ...

    @property
    def captions(self) -> tuple[str, ...] | None:
        """A text for each image, or None."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray:
        """Image i, of shape and dtype; a ValueError names the file if it cannot be read."""
        ...


class Subset:
    """Some images of a reader, in the order of `indices`: a `Reader` itself."""

    def __init__(self, reader: ImageReader, indices: np.ndarray) -> None:
        self.reader, self.indices = reader, indices
        self.name, self.shape, self.dtype, self.levels = reader.name, reader.shape, reader.dtype, reader.levels
        self.labels = None if reader.labels is None else reader.labels[indices]
        self.label_names, self.format = reader.label_names, reader.format
        self.captions = None if reader.captions is None else tuple(reader.captions[i] for i in indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.reader[int(self.indices[i])]


class LazyImages:
    """The images of a reader as an array [N, H, W, C] that is read where it is indexed, several at a time.

    It is indexed by one integer, a slice or an array of integers, and gives arrays.
    """

    def __init__(self, reader: ImageReader) -> None:
        self.reader, self.dtype = reader, reader.dtype
        self.shape = (len(reader), *reader.shape)
        self.ndim, self.nbytes = len(self.shape), nbytes(reader)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: "int | slice | np.ndarray") -> np.ndarray:
        indices = np.arange(len(self))[index]
        images = np.empty((indices.size, *self.reader.shape), self.dtype)
        _read_into(images, self.reader, indices.reshape(-1))
        return images.reshape(*indices.shape, *self.reader.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Pixels = np.ndarray | LazyImages
"""Images [N, H, W, C] in memory, or read where they are indexed."""


def train_test_indices(
    what: str, count: int, held_out: float, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` images are trained on and which are held out, each in ascending order.

    Held out are the last ones of a fixed permutation, at least one.  The last that training has of a label is not held
    out: an earlier one of the permutation takes its place, as long as there is one.  A single image is both.

    Raises:
        ValueError: if none would be left to train on; it begins with `what`.
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
        kept = np.zeros(count, bool)
        kept[count - 1 - last] = True
        order = np.concatenate([order[~kept], order[kept]])
    out = np.sort(order[:held])
    return np.delete(np.arange(count), out), out


def train_test_split(reader: ImageReader, held_out: float) -> tuple[Subset, Subset]:
    """The images to train on and those held out, by the rule of `division`; both keep their order.

    Raises:
        ValueError: if none would be left to train on.
    """
    train, out = train_test_indices(reader.name, len(reader), held_out, reader.labels)
    return Subset(reader, train), Subset(reader, out)


def check_range(
    what: str, least: float, most: float, *, levels: int | None, value_range: ValueRange | None
) -> ValueRange:
    """The range of floating-point images whose values go from `least` to `most`.

    Raises:
        ValueError: if none is given, or they lie outside of it, or levels are given; the text begins with `what`.
    """
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
    """The shortest text that is this number in float32."""
    return f"{float(str(np.float32(value))):.9g}"


def nbytes(reader: ImageReader) -> int:
    """The memory that all its images would take."""
    return len(reader) * math.prod(reader.shape) * reader.dtype.itemsize


def load_split_into_memory(
    reader: ImageReader, *, held_out: float, progress: ProgressCallback | None = None
) -> Dataset:
    """All images of a reader in memory, the fraction `held_out` of them held out as in `load`.

    Raises:
        ValueError: if none would be left to train on, or an image cannot be read.
    """
    return load_into_memory(*train_test_split(reader, held_out), progress=progress)


def load_into_memory(train: ImageReader, test: ImageReader, *, progress: ProgressCallback | None = None) -> Dataset:
    """All images of two readers in memory, each of them once; several are read at a time.

    Raises:
        ValueError: if the two are not of one kind, or an image cannot be read.
    """
    _check_same_kind(train, test)
    arrays = np.empty((len(train), *train.shape), train.dtype), np.empty((len(test), *test.shape), test.dtype)
    report = progress or (lambda what, done, total: None)
    total = len(train) + len(test)
    _read_into(arrays[0], train, np.arange(len(train)), lambda what, done, _: report(what, done, total))
    _read_into(arrays[1], test, np.arange(len(test)), lambda what, done, _: report(what, len(train) + done, total))
    return _dataset(train, test, *arrays)


def load_lazily(train: ImageReader, test: ImageReader) -> Dataset:
    """The images of two readers, left where they are until they are indexed."""
    _check_same_kind(train, test)
    return _dataset(train, test, LazyImages(train), LazyImages(test))


def _dataset(train: ImageReader, test: ImageReader, pixels: "Pixels", test_pixels: "Pixels") -> Dataset:
    return Dataset(
        pixels, test_pixels, train.labels, test.labels, train.levels, train.name, train.label_names,
        train.captions, test.captions, train.format,
    )  # fmt: skip


def _read_into(
    array: np.ndarray, reader: ImageReader, indices: np.ndarray, progress: ProgressCallback | None = None
) -> None:
    """array[k] = reader[places[k]] for all k, several at a time."""

    def read(k: int) -> None:
        array[k] = reader[int(indices[k])]

    # What Pillow thinks of metadata is in the report of a folder, by name, and here it would be noise.  Filters are
    # the whole process's, so they are set around all threads and not in each.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        map_in_threads(read, range(len(array)), progress, "loaded")


def _check_same_kind(train: ImageReader, test: ImageReader) -> None:
    """Raises a ValueError if the images of two readers are not of one kind."""
    for field in ("shape", "dtype", "levels", "label_names"):
        ours, theirs = getattr(train, field), getattr(test, field)
        if ours != theirs:
            raise ValueError(f"{train.name}: training and held-out images must have one {field}, got {ours}, {theirs}")
    for field in ("labels", "captions"):
        if (getattr(train, field) is None) != (getattr(test, field) is None):
            raise ValueError(f"{train.name}: expected {field} of both training and held-out images or of neither")


def map_in_threads(
    function: Callable[[A], B], items: Sequence[A], progress: ProgressCallback | None, what: str
) -> list[B]:
    """function(item) of every item, in order; an error or an interrupt ends it without beginning further ones."""
    pool, results = ThreadPoolExecutor(), []
    try:
        for done, result in enumerate(pool.map(function, items), 1):
            results.append(result)
            if progress is not None:
                progress(what, done, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results
