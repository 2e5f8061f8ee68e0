"""Records and features of TensorFlow Datasets (TFDS): tfrecord files, pictures in records, descriptions.

A tfrecord file is a sequence of (length, checksum, record, checksum), with the same records as an array_record file.
They are found by their lengths, without TensorFlow; their checksums are not verified.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.folder_report import join_first
from ddpm_jax.data.image_files import MODES, mode_of_picture, too_large_reason


class TFRecords:
    """The records of tfrecord files.

    Args:
        files: (path, number of records to skip, to take, and in the file).

    Raises:
        ValueError: if a file is truncated or has another number of records.
    """

    def __init__(self, files: Sequence[tuple[Path, int, int, int]]) -> None:
        self._paths = [path for path, *_ in files]
        every = [_record_positions(path, count)[skip : skip + length] for path, skip, length, count in files]
        self._file = np.repeat(np.arange(len(files)), [len(places) for places in every])
        self._positions = np.concatenate(every)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> bytes:
        start, length = map(int, self._positions[i])
        with self._paths[self._file[i]].open("rb") as file:
            file.seek(start)
            return file.read(length)


def _record_positions(path: Path, count: int) -> np.ndarray:
    """Offset and length of each record of a tfrecord file, int64 [N, 2]."""
    positions, offset, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while offset + 16 <= size:
            file.seek(offset)
            length = int.from_bytes(file.read(8), "little")
            positions.append((offset + 12, length))
            offset += 12 + length + 4
    if offset != size or len(positions) != count:
        raise ValueError(f"{path}: expected {count} whole records in {size} bytes, found {len(positions)} in {offset}")
    return np.array(positions, np.int64).reshape(-1, 2)


def decode(encoded: bytes, channels: int, dtype: np.dtype) -> np.ndarray:
    """The image in a PNG, JPEG or other file, [H, W, channels] of dtype, as the data set declares it.

    Raises:
        ValueError: if it is of another kind; Pillow raises further errors for damaged files.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as file:
        refusal = too_large_reason((file.height, file.width))
        if refusal:
            raise ValueError(refusal)
        # as TFDS does: a colour data set may have grey files or palettes
        picture = file.convert("RGB") if channels == 3 and file.mode in ("L", "P") else file
        pixels, mode = np.asarray(picture), mode_of_picture(picture)
    if (mode, channels) not in MODES.items() or (mode == "I;16") != (dtype == np.uint16):
        raise ValueError(f"it has the mode {mode}; expected {dtype} of {channels} channels")
    return pixels.reshape(*pixels.shape[:2], channels)


def find_image_feature(source: str, features: Mapping[str, Any]) -> str:
    """The name of the TFDS feature with the images.

    Raises:
        ValueError: if there is none, or more than one and none is called "image".
    """
    import tensorflow_datasets as tfds

    pictures = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    found = choose_name([key for key in pictures if features[key].np_dtype in (np.uint8, np.uint16)], "image")
    array = features.get("image")
    if found is None and type(array) is tfds.features.Tensor and array.np_dtype in (np.uint8, np.uint16, np.float32):
        shape: Any = array.shape
        found = "image" if len(shape) in (3, 4) and None not in shape else None
    if found is None:
        shown = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in sorted(features.items()))
        raise ValueError(f"{source}: expected one feature of images, or one called 'image'; it has {shown}")
    return found


def check_feature_classes(folder: Path) -> None:
    """Checks that a data set's descriptions name only TFDS's own classes: TFDS imports the classes they name.

    Raises:
        ValueError: naming another class; if a description is not JSON, or pipes or devices are among its files.
    """
    import tensorflow_datasets as tfds

    odd = [path.name for path in sorted(folder.iterdir()) if path.exists() and not (path.is_file() or path.is_dir())]
    if odd:  # opening one would block for ever
        raise ValueError(f"pipes or devices among its files: {join_first(odd)}")
    known = set()
    for feature in (getattr(tfds.features, name) for name in tfds.features.__all__):
        if isinstance(feature, type) and issubclass(feature, tfds.features.FeatureConnector):
            known |= {f"{feature.__module__}.{feature.__name__}", *feature.__dict__.get("ALIASES", ())}
    for file in ("dataset_info.json", "features.json"):
        if not (folder / file).exists():
            continue
        description = json.loads((folder / file).read_text(encoding="utf-8"))
        for name in _named_classes(description.get("features") if file == "dataset_info.json" else description):
            if name not in known:
                raise ValueError(
                    f"{file} names the class {name!r}, whose module TFDS would import and so execute; only TFDS's "
                    f"own features are allowed, such as {tfds.features.Image.__module__}.Image"
                )


def _named_classes(description: Any) -> Iterator[str]:
    """The classes named in a description of features, in any of TFDS's formats, including JSON in a text."""
    if isinstance(description, dict):
        for key, value in description.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            yield from _named_classes(value)
    elif isinstance(description, list):
        for value in description:
            yield from _named_classes(value)
    elif isinstance(description, str) and description.lstrip().startswith("{"):
        try:
            within = json.loads(description)
        except ValueError:
            return
        yield from _named_classes(within)


def choose_name(names: Sequence[str], preferred: str = "") -> str | None:
    """The preferred name if it is among `names`, or the only one; else None."""
    return preferred if preferred in names else names[0] if len(names) == 1 else None
