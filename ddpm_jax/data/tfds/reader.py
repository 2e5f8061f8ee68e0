"""Reader of data sets prepared by TensorFlow Datasets (TFDS), image by image and without TensorFlow.

Preparing a data set of TFDS's catalogue needs TensorFlow once; reading it does not.  Its files may be array_record or
tfrecord, TFDS's default.
"""

import contextlib
import functools
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax.data.dataset import ImageReader, check_values, train_test_split
from ddpm_jax.data.folder_report import join_first
from ddpm_jax.data.image_files import resize_center_crop
from ddpm_jax.data.images import ValueRange, to_value_range
from ddpm_jax.data.tfds import records
from ddpm_jax.data.tfds.address import find_folder, parse_address, prepare_command

TEST_SPLITS = ("test", "validation")
CAPTION_FEATURES = ("caption", "text", "prompt")
MODE_OF_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
MAX_SIZES_READ = 1000  # images read before different sizes are reported


def open_readers(
    source: str,
    *,
    held_out: float = 0.1,
    levels: int | None = None,
    value_range: ValueRange | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[ImageReader, ImageReader]:
    """The training and the held-out images of a prepared data set.

    The training images are those of the split `train`, the held-out images those of `test`, or else of `validation`,
    unless the source names others; without any of these, a part of the training images is held out.

    Args:
        held_out: the fraction to hold out if the data set has no such split, as in `sources.load`.
        levels: the number of levels, if it is neither in the data set's metadata nor 256 for uint8 or 65536 for uint16.
        value_range: the range of floating-point images, if it is not in the data set's metadata.
        size: (H, W) for `image_files.resize_center_crop`; None for the stored size.

    Raises:
        FileNotFoundError: if it is not prepared, with the command that does.
        ValueError: if the source is invalid, or the data set has no readable images or splits.
    """
    address = parse_address(source)
    folder = find_folder(address)
    import tensorflow_datasets as tfds

    try:
        records.check_feature_classes(folder)
        builder = tfds.builder_from_directory(str(folder))
    except Exception as error:  # JSON and protocol buffers raise errors of many types
        raise ValueError(f"{folder}: not a data set as TFDS prepares them: {error}") from error
    available = sorted(builder.info.splits)
    train = address.splits[0] if address.splits else "train"
    test = address.splits[1:] if address.splits else [name for name in TEST_SPLITS if name in available]
    for split in (train, *test):
        if re.split(r"[\[+]", split)[0] not in (*available, "all"):
            hint = f"name those to train and to test on, as in tfds:{address.name}#{available[0]}"
            raise ValueError(f"{source}: no split {split!r}; there are {join_first(available)}: {hint}")
        if not builder.info.splits[split].num_examples:
            raise ValueError(f"{source}: the split {split!r} has no images: name a larger part")

    readers = [TfdsReader(builder, source, split, levels, value_range, size) for split in (train, *test[:1])]
    return (readers[0], readers[1]) if test else train_test_split(readers[0], held_out)


class TfdsReader(ImageReader):
    """A split of a prepared data set as an `ImageReader`; its format is "", since the original one is unknown.

    Args:
        builder: a TFDS builder of the prepared folder.
        source, levels, value_range, size: as in `open_readers`.

    Raises:
        ValueError: if it has no readable images, or not so many levels.
    """

    def __init__(
        self,
        builder: Any,
        source: str,
        split: str,
        levels: int | None,
        value_range: ValueRange | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        import tensorflow_datasets as tfds

        self.name, self.format, self._split = source, "", split
        features = dict(builder.info.features.items())
        self._image = records.find_image_feature(source, features)
        labels = [key for key, f in features.items() if type(f) is tfds.features.ClassLabel]
        texts = [key for key in CAPTION_FEATURES if type(features.get(key)) is tfds.features.Text]
        self._label, self._caption = records.choose_name(labels, "label"), records.choose_name(texts)
        feature = features[self._image]
        # Pillow decodes: TFDS would use OpenCV where it is installed, and need it for 16 bits.
        self._encoded = type(feature) is tfds.features.Image
        self._decoders = {self._image: tfds.decode.SkipDecoding()} if self._encoded else {}
        self._declared, self.dtype = tuple(feature.shape), np.dtype(feature.np_dtype)
        names = tuple(map(str, features[self._label].names)) if self._label else ()
        self.label_names = () if names == tuple(map(str, range(len(names)))) else names
        keys = [key for key in (self._image, self._label, self._caption) if key]
        self._columns = {key: tfds.features.FeaturesDict({key: features[key]}) for key in keys}
        self._records = _open_records(builder, source, split)
        self.levels, self._size = _check_levels(source, self.dtype, builder.info.metadata, levels, value_range), size

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, [H, W, C] or [D, H, W, C].

        Raises:
            ValueError: naming it, if it cannot be read or is of another shape than the others.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}: expected 0 <= i < {len(self)}, got {i}")
        with self._naming_image(i):
            image = self._read_feature(i, self._image)
            image = records.decode(image, self._declared[-1], self.dtype) if self._encoded else image
        levels, value_range = (None, self.levels) if isinstance(self.levels, ValueRange) else (self.levels, None)
        least, most = image.min().item(), image.max().item()
        check_values(self._image_name(i), self.dtype, least, most, levels=levels, value_range=value_range)
        if self._size is not None:
            mode = MODE_OF_CHANNELS[image.shape[-1]] if self._encoded else ""  # no channel of an array is alpha
            image = resize_center_crop(image, mode, self._size, self.levels)
        if image.shape != self.shape:
            raise ValueError(f"{self._image_name(i)} has the shape {image.shape}, others have {self.shape}")
        return image

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) or (D, H, W, C) of every image; all are read if the data set does not declare it.

        Raises:
            ValueError: if they differ, with their sizes and the command that resizes them.
        """
        if self._size is not None and len(self._declared) == 3:
            return (*self._size, self._declared[-1])
        if None not in self._declared:
            return self._declared
        from PIL import Image

        sizes: Counter[tuple[int, int]] = Counter()
        for i in tqdm(range(len(self)), desc=f"{self.name}: sizes", delay=2, leave=False):
            with self._naming_image(i), Image.open(io.BytesIO(self._read_feature(i, self._image))) as file:
                sizes[file.height, file.width] += 1
            if len(sizes) > 1 and i >= MAX_SIZES_READ:
                break
        if len(sizes) > 1:
            address, shown = parse_address(self.name), ", ".join(f"{h}x{w} ({n})" for (h, w), n in sizes.most_common(4))
            raise ValueError(
                f"{self.name}: images of different sizes: {shown}{', ...' if len(sizes) > 4 else ''} (height x width). "
                f"This makes them one: ddpm-jax prepare {shlex.quote(self.name)} --name {address.name}_64 "
                f"--out {shlex.quote(str(address.data_dir))} --resolution 64"
            )
        return (*next(iter(sizes)), self._declared[-1])

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int32 [N], or None without a single feature of classes or one called `label`.

        Raises:
            ValueError: if an image has no label, which TFDS writes as -1.
        """
        if self._label is None:
            return None
        labels = np.array([int(value) for value in self._read_column(self._label)], np.int32)
        if labels.min() < 0:
            raise ValueError(
                f"{self.name}: {np.count_nonzero(labels < 0)} images of the split {self._split!r} have no label: name "
                f"the splits to train and to test on, as in tfds:{parse_address(self.name).name}#train,validation"
            )
        return labels

    @functools.cached_property
    def captions(self) -> tuple[str, ...] | None:
        """A text for each image, if there is a feature called `caption`, `text` or `prompt`."""
        return None if self._caption is None else tuple(value.decode() for value in self._read_column(self._caption))

    def _read_column(self, key: str) -> list[Any]:
        values = []
        for i in tqdm(range(len(self)), desc=f"{self.name}: {key}", delay=2, leave=False):
            with self._naming_image(i):
                values.append(self._read_feature(i, key))
        return values

    def _read_feature(self, i: int, key: str) -> Any:
        decoders = {key: self._decoders.get(key)}
        example: Any = self._columns[key].deserialize_example_np(self._records[i], decoders=decoders)
        return example[key]

    @contextlib.contextmanager
    def _naming_image(self, i: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # decoders raise errors of many types on damaged records
            raise ValueError(f"{self._image_name(i)} cannot be read: {error}") from error

    def _image_name(self, i: int) -> str:
        return f"{self.name}: image {i} of the split {self._split!r}"


def _open_records(builder: Any, source: str, split: str) -> Any:
    """The serialized examples of a split, a sequence of bytes that is read one by one."""
    import tensorflow_datasets as tfds

    formats = {format.value for format in builder.info.available_file_formats()}
    if "array_record" in formats:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    if "tfrecord" in formats:
        files = builder.info.splits[split].file_instructions
        return records.TFRecords([(Path(f.filename), f.skip, f.take, f.examples_in_shard) for f in files])
    address = parse_address(source)
    raise ValueError(
        f"{source}: prepared as {', '.join(sorted(formats))}, which is not supported; array_record and tfrecord "
        f"are. This prepares it beside the other: {prepare_command(address, Path(f'{address.data_dir}-array_record'))}"
    )


def _check_levels(
    source: str, dtype: np.dtype, metadata: Any, levels: int | None, value_range: ValueRange | None
) -> int | ValueRange:
    recorded = metadata.get("ddpm_jax", {}).get("levels") if isinstance(metadata, Mapping) else None
    if dtype.kind != "f":
        levels = recorded if levels is None else levels
    elif value_range is None:
        value_range = to_value_range(recorded or ())
        if value_range is None and levels is None:
            raise ValueError(
                f"{source}: floating-point images; say which values become -1 and 1, the lowest and the highest that "
                "images can have, as --data.range 0 1"
            )
    least = 0 if value_range is None else value_range.low
    return check_values(source, dtype, least, least, levels=levels, value_range=value_range)
