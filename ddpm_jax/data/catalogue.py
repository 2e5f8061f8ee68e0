"""Data sets prepared by TensorFlow Datasets (TFDS), read image by image and without TensorFlow.

    tfds:NAME[/CONFIG][:VERSION][#TRAIN[,TEST]][@FOLDER]

NAME, CONFIG and VERSION are TFDS's own; without a version the newest that is there is taken.  FOLDER is where data sets
lie, by default the environment's TFDS_DATA_DIR or ~/tensorflow_datasets.  TRAIN and TEST are splits as TFDS writes
them, `train[:90%]` for example.

Preparing a data set of TFDS's catalogue takes TensorFlow, once; reading it afterwards does not.  Its files may be of
array_record or of tfrecord, which is TFDS's default.
"""

import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ddpm_jax.data.files import finite, fitted
from ddpm_jax.data.images import Range, range_of
from ddpm_jax.data.reader import Reader, checked_range, divided
from ddpm_jax.data.records import Records, TFRecords, check_described, decoded, image_feature, only
from ddpm_jax.data.survey import listed

ADDRESS = re.compile(
    r"tfds:(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?(#(?P<splits>[^@,]+(,[^@,]+)?))?(@(?P<home>.+))?"
)
VERSION = re.compile(r"\d+\.\d+\.\d+")
TEST = ("test", "validation")
CAPTIONS = ("caption", "text", "prompt")
COLOURS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
ENOUGH = 1000  # images that are looked at before different sizes are reported


class Address(NamedTuple):
    """What a source `tfds:...` names; config and version are "" and splits are () where it does not say."""

    name: str
    config: str
    version: str
    splits: tuple[str, ...]
    home: Path


def parts(
    source: str,
    *,
    held_out: float = 0.1,
    levels: int | None = None,
    given: Range | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[Reader, Reader]:
    """The training and the held-out images of a prepared data set.

    The training images are those of the split `train`, the held-out images those of `test`, or else of `validation`,
    unless the source names others; where there are neither, a part of the training images is held out.

    Args:
        held_out: the fraction that is held out where the data set has no such split, as in `sources.load`.
        levels: the number of levels, if it is neither what the data set says nor 256 for uint8 and 65536 for uint16.
        given: the range of floating-point images, if it is not what the data set says.
        size: (H, W) to which images are brought by `files.fitted`; None for as they are.

    Raises:
        FileNotFoundError: if it is not prepared; the text says how to.
        ValueError: if the source is not as described, or the data set has no images or splits that can be read.
    """
    told = address(source)
    where = located(told)
    import tensorflow_datasets as tfds

    try:
        check_described(where)
        builder = tfds.builder_from_directory(str(where))
    except Exception as error:  # half of what JSON and protocol buffers can raise
        raise ValueError(f"{where}: not a data set as TFDS prepares them: {error}") from error
    there = sorted(builder.info.splits)
    train = told.splits[0] if told.splits else "train"
    test = told.splits[1:] if told.splits else [name for name in TEST if name in there]
    for split in (train, *test):
        if re.split(r"[\[+]", split)[0] not in (*there, "all"):
            raise ValueError(
                f"{source}: no split {split!r}; there are {listed(there)}: name those to train and to test on, as "
                f"in tfds:{told.name}#{there[0]}"
            )
    first = Split(builder, source, train, levels, given, size)
    return (first, Split(builder, source, test[0], levels, given, size)) if test else divided(first, held_out)


def address(source: str) -> Address:
    """The parts of a source `tfds:...`.

    Raises:
        ValueError: if it is not written as the module says.
    """
    found = ADDRESS.fullmatch(source)
    if found is None:
        raise ValueError(f"{source!r}: expected tfds:NAME[/CONFIG][:VERSION][#TRAIN[,TEST]][@FOLDER]")
    home = found["home"] or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    splits = tuple(found["splits"].split(",")) if found["splits"] else ()
    return Address(found["name"], found["config"] or "", found["version"] or "", splits, Path(os.path.expanduser(home)))


def located(told: Address) -> Path:
    """The folder of a prepared data set.

    Raises:
        FileNotFoundError: if it is not there, with the command that prepares it.
        ValueError: if it is there in several configs and none was named.
    """
    top = told.home / told.name / told.config
    versions = _versions(top)
    if told.version in versions:
        return top / told.version
    if versions and not told.version:
        return top / versions[-1]
    if versions:
        raise FileNotFoundError(f"{top}: no version {told.version}; there are {', '.join(versions)}")
    configs = sorted(child.name for child in top.iterdir() if _versions(child)) if top.is_dir() else []
    if configs and not told.config:
        raise ValueError(f"{top} has the configs {listed(configs)}: name one, as in tfds:{told.name}/{configs[0]}")
    raise FileNotFoundError(_not_prepared(told))


class Split:
    """A split of a prepared data set: a `Reader`.

    Args:
        builder: a TFDS builder of what is on disk.
        source: as it was given.
        split: its name in TFDS.
        levels, given, size: as in `parts`.

    Attributes:
        name: the source.
        dtype: of the images.
        levels: their number of levels, or their range.
        format: "": what a data set was made of is not known.
        label_names: () without labels, or if these are only numbers.

    Raises:
        ValueError: if there is no image in it that can be read, or not so many levels.
    """

    def __init__(
        self,
        builder: Any,
        source: str,
        split: str,
        levels: int | None,
        given: Range | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        import tensorflow_datasets as tfds

        self.format = ""
        self.name, self._split, features = source, split, dict(builder.info.features.items())
        self._image = image_feature(source, features)
        self._label = only([key for key, f in features.items() if type(f) is tfds.features.ClassLabel], "label")
        self._caption = only([key for key in CAPTIONS if type(features.get(key)) is tfds.features.Text])
        feature = features[self._image]
        # Pillow decodes, and not TFDS: that would be OpenCV where it is installed, and 16 bits would need it.
        self._encoded = type(feature) is tfds.features.Image
        self._skip = {self._image: tfds.decode.SkipDecoding()} if self._encoded else None
        self._declared, self.dtype = tuple(feature.shape), np.dtype(feature.np_dtype)
        names = tuple(map(str, features[self._label].names)) if self._label else ()
        self.label_names = () if names == tuple(map(str, range(len(names)))) else names
        keys = [key for key in (self._image, self._label, self._caption) if key]
        self._columns = {key: tfds.features.FeaturesDict({key: features[key]}) for key in keys}
        self._records = _records(builder, source, split)
        self.levels, self._size = _levels(source, self.dtype, builder.info.metadata, levels, given), size

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, [H, W, C] or [D, H, W, C].

        Raises:
            ValueError: naming it, if it cannot be read or is not of the shape that the others have.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}: expected 0 <= i < {len(self)}, got {i}")
        with self._named(i):
            image = self._example(i, self._image, self._skip)
            image = decoded(image, self._declared[-1], self.dtype) if self._encoded else image
        if isinstance(self.levels, Range):
            least, most = finite(self._what(i), image).min().item(), image.max().item()
            checked_range(self._what(i), least, most, levels=None, given=self.levels)
        elif image.max() >= self.levels:
            raise ValueError(f"{self._what(i)} holds the value {image.max()}, above levels - 1 = {self.levels - 1}")
        if self._size is not None:
            image = fitted(image, COLOURS.get(image.shape[-1], ""), self._size, self.levels)
        if image.shape != self.shape:
            raise ValueError(f"{self._what(i)} has the shape {image.shape}, others have {self.shape}")
        return image

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) or (D, H, W, C) of every image; where the data set does not declare it, all of them are looked at.

        Raises:
            ValueError: if they differ; the text names their sizes and says how to make them one.
        """
        return self._shape

    @functools.cached_property
    def _shape(self) -> tuple[int, ...]:
        if self._size is not None and len(self._declared) == 3:
            return (*self._size, self._declared[-1])
        if None not in self._declared:
            return self._declared
        sizes: Counter[tuple[int, int]] = Counter()
        for i in tqdm(range(len(self)), desc=f"{self.name}: sizes", delay=2, leave=False):
            sizes[self._height_and_width(i)] += 1
            if len(sizes) > 1 and i >= ENOUGH:
                break
        if len(sizes) > 1:
            told, seen = address(self.name), ", ".join(f"{h}x{w} ({n})" for (h, w), n in sizes.most_common(4))
            raise ValueError(
                f"{self.name}: images of different sizes: {seen}{', ...' if len(sizes) > 4 else ''} (height x width). "
                f"This makes them one: ddpm-jax prepare {shlex.quote(self.name)} --name {told.name}_64 "
                f"--out {shlex.quote(str(told.home))} --resolution 64"
            )
        return (*next(iter(sizes)), self._declared[-1])

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N], or None if there is not one feature of classes, nor one that is called `label`.

        Raises:
            ValueError: if an image has no label, which TFDS writes as -1.
        """
        return self._labels

    @functools.cached_property
    def _labels(self) -> np.ndarray | None:
        if self._label is None:
            return None
        labels = np.array([int(value) for value in self._column(self._label)], np.int32)
        if labels.min() < 0:
            raise ValueError(
                f"{self.name}: {np.count_nonzero(labels < 0)} images of the split {self._split!r} have no label: name "
                f"the splits to train and to test on, as in tfds:{address(self.name).name}#train,validation"
            )
        return labels

    @property
    def captions(self) -> tuple[str, ...] | None:
        """A text for each image, if there is a feature called `caption`, `text` or `prompt`."""
        return self._captions

    @functools.cached_property
    def _captions(self) -> tuple[str, ...] | None:
        return None if self._caption is None else tuple(value.decode() for value in self._column(self._caption))

    def _column(self, key: str) -> list[Any]:
        values = []
        for i in tqdm(range(len(self)), desc=f"{self.name}: {key}", delay=2, leave=False):
            with self._named(i):
                values.append(self._example(i, key, None))
        return values

    def _example(self, i: int, key: str, decoders: dict[str, Any] | None) -> Any:
        example: Any = self._columns[key].deserialize_example_np(self._records[i], decoders=decoders)
        return example[key]

    def _height_and_width(self, i: int) -> tuple[int, int]:
        from PIL import Image

        with self._named(i), Image.open(io.BytesIO(self._example(i, self._image, self._skip))) as file:
            return file.height, file.width

    @contextlib.contextmanager
    def _named(self, i: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # damaged records and pictures: every decoder has errors of its own
            raise ValueError(f"{self._what(i)} cannot be read: {error}") from error

    def _what(self, i: int) -> str:
        return f"{self.name}: image {i} of the split {self._split!r}"


def _records(builder: Any, source: str, split: str) -> Records:
    import tensorflow_datasets as tfds

    formats = {format.value for format in builder.info.available_file_formats()}
    if "array_record" in formats:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    if "tfrecord" in formats:
        files = builder.info.splits[split].file_instructions
        return TFRecords([(Path(f.filename), f.skip, f.take, f.examples_in_shard) for f in files])
    told = address(source)
    raise ValueError(
        f"{source}: prepared as {', '.join(sorted(formats))}, which is not read here, but array_record and tfrecord "
        f"are. This prepares it beside the other: {_tfds_command(told, Path(f'{told.home}-array_record'))}"
    )


def _levels(source: str, dtype: np.dtype, metadata: Any, told: int | None, given: Range | None) -> int | Range:
    said = metadata.get("ddpm_jax", {}) if isinstance(metadata, Mapping) else {}
    if dtype.kind == "f":
        found = given or range_of(said.get("levels", ()))
        if told is not None:
            raise ValueError(f"{source}: floating-point images have no levels, got levels={told}")
        if found is None:
            raise ValueError(
                f"{source}: floating-point images; say which values become -1 and 1, the lowest and the highest that "
                "images can have, as --data.range 0 1"
            )
        return found
    if given is not None:
        raise ValueError(f"{source}: images of type {dtype} have levels; a range is for floating-point images")
    most = int(np.iinfo(dtype).max) + 1
    levels = said.get("levels", most) if told is None else told
    if not isinstance(levels, int) or not 2 <= levels <= most:
        raise ValueError(f"{source}: images of type {dtype}; expected 2 to {most} levels, got levels={levels}")
    return levels


def _versions(folder: Path) -> list[str]:
    """The versions that are prepared in a folder, the newest last."""
    found = [path.parent.name for path in folder.glob("*/dataset_info.json")]
    return sorted(filter(VERSION.fullmatch, found), key=lambda name: [int(part) for part in name.split(".")])


def _not_prepared(told: Address) -> str:
    import tensorflow_datasets as tfds

    if told.name in tfds.list_builders(with_community_datasets=False):
        command = _tfds_command(told, told.home)
        return f"{'/'.join(filter(None, told[:2]))} is not prepared in {told.home}. This prepares it, once: {command}"
    there = sorted(child.name for child in told.home.iterdir() if child.is_dir()) if told.home.is_dir() else []
    return (
        f"{told.home}: no data set {told.name}; there are {listed(there) or 'none'}. This makes one of images in a "
        f"folder: ddpm-jax prepare folder:PATH --name {told.name} --out {shlex.quote(str(told.home))}"
    )


def _tfds_command(told: Address, home: Path) -> str:
    """How a data set of TFDS's catalogue is prepared; with what it takes to install TensorFlow, if it is not there."""
    name = "/".join(filter(None, told[:2]))
    call = f"tfds.builder({name!r}, data_dir={str(home)!r}, file_format='array_record').download_and_prepare()"
    install = "" if importlib.util.find_spec("tensorflow") else 'pip install "ddpm-jax[tfds]" && '
    return f'{install}python -c "import tensorflow_datasets as tfds; {call}"'
