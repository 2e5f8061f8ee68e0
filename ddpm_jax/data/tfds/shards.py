"""Writer of shards and descriptions in the format of TensorFlow Datasets (TFDS), without TensorFlow.

TFDS's own preparation writes every image twice and starts again after an interruption.  Only its parts are used here:
its serialization of an example, the writer of array_record files, and its descriptions of existing files.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.dataset import ImageReader
from ddpm_jax.data.image_files import unwritable_reason, write_image
from ddpm_jax.data.tfds import reader as tfds_reader

IMAGES_PER_CHECK = 64  # images between two checks of the stop flag


class Shard(NamedTuple):
    """Images start ... stop - 1 of a split, and the name of their file."""

    split: str
    start: int
    stop: int
    file: str


def write_shard(
    path: Path,
    shard: Shard,
    example: Callable[[int], bytes],
    *,
    skip_bad: bool,
    should_stop: Callable[[], bool],
    on_images: Callable[[int], object],
) -> dict[str, Any] | None:
    """Writes a shard and returns its record; None if it is stopped before the end.

    Args:
        example: i -> image i of the split, serialized.
        skip_bad: leave out images that cannot be read.
        should_stop: called between images; True stops.
        on_images: called with numbers of finished images.

    Returns:
        "examples", their "bytes", and "skipped", the errors of the images left out.

    Raises:
        ValueError: naming an image that cannot be read, unless `skip_bad`; if no image can be read.
        OSError: if the file cannot be written.
    """
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  no stubs

    def attempt(i: int) -> bytes | str:
        try:
            return example(i)
        except ValueError as error:
            if skip_bad:
                return str(error)
            raise ValueError(f"{error} (--skip-bad leaves it out)") from error

    count, size, skipped = 0, 0, []
    try:
        # PNG files are compressed already; compressing them again made reading four times slower
        with (
            contextlib.closing(array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")) as writer,
            ThreadPoolExecutor() as pool,
        ):
            for start in range(shard.start, shard.stop, IMAGES_PER_CHECK):
                if should_stop():
                    return None
                for encoded in pool.map(attempt, range(start, min(start + IMAGES_PER_CHECK, shard.stop))):
                    if isinstance(encoded, str):
                        skipped.append(encoded)
                        continue
                    writer.write(encoded)
                    count, size = count + 1, size + len(encoded)
                on_images(min(IMAGES_PER_CHECK, shard.stop - start))
    except RuntimeError as error:  # array_record's error of a full disk
        path.unlink(missing_ok=True)
        raise OSError(
            f"{path} cannot be written: {error}. Complete shards are kept; the same command continues"
        ) from error
    if not count:
        raise ValueError(f"none of the images {shard.start} to {shard.stop - 1} can be read, the first: {skipped[0]}")
    return {"examples": count, "bytes": size, "skipped": skipped}


def example_serializers(splits: Mapping[str, ImageReader]) -> dict[str, Callable[[int], bytes]]:
    """For each split a function: i -> image i with its label and caption, as TFDS serializes them."""
    import tensorflow_datasets as tfds

    # Concatenated messages are one message.  A message for each feature fixes their order; in a common message,
    # protocol buffers would order them differently in each process.
    features = {key: tfds.features.FeaturesDict({key: feature}) for key, feature in tfds_features(splits).items()}
    return {split: functools.partial(_serialize_example, features, reader) for split, reader in splits.items()}


def _serialize_example(features: Mapping[str, Any], reader: ImageReader, i: int) -> bytes:
    value: dict[str, Any] = {"image": reader[i]}
    if _is_png_compatible(reader):
        picture = io.BytesIO()
        write_image(picture, value["image"], "png")
        picture.seek(0)
        value["image"] = picture
    if reader.labels is not None:
        value["label"] = int(reader.labels[i])
    if reader.captions is not None:
        value["caption"] = reader.captions[i]
    return b"".join(feature.serialize_example({key: value[key]}) for key, feature in features.items())


def tfds_features(splits: Mapping[str, ImageReader]) -> dict[str, Any]:
    """The TFDS features of an example: its image, and its label and caption if there are any.

    Raises:
        ValueError: if TFDS cannot keep a label's name.
    """
    import tensorflow_datasets as tfds

    train = splits["train"]
    shape, dtype = train.shape, train.dtype
    image = tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")
    if _is_png_compatible(train):
        image = tfds.features.Image(shape=shape, dtype=dtype, encoding_format="png")
    features: dict[str, Any] = {"image": image}
    if train.labels is not None:
        highest = max(int(np.max(reader.labels, initial=0)) for reader in splits.values() if reader.labels is not None)
        names = train.label_names or [str(i) for i in range(highest + 1)]
        bad = [name for name in names if not name or name != name.strip() or len(name.splitlines()) != 1]
        if bad:
            raise ValueError(f"TFDS keeps the names of labels one to a line; rename {', '.join(map(repr, bad[:5]))}")
        features["label"] = tfds.features.ClassLabel(names=list(names))
    if train.captions is not None:
        features["caption"] = tfds.features.Text()
    return features


def _is_png_compatible(reader: ImageReader) -> bool:
    """True if the images can be PNG files; others are kept as compressed arrays."""
    return not unwritable_reason("png", reader.shape, reader.dtype)


def write_descriptions(
    folder: Path,
    shard_records: Mapping[str, dict[str, Any]],
    shards: Sequence[Shard],
    splits: Mapping[str, ImageReader],
    *,
    version: str,
    metadata: dict[str, Any],
) -> None:
    """Writes TFDS's descriptions of a folder of shards, and checks that the data set can be read.

    Args:
        shard_records: for each shard's file, the result of `write_shard`.
        metadata: kept in the data set's metadata, with the number of levels.

    Raises:
        ValueError: if it cannot be read.
    """
    import tensorflow_datasets as tfds

    train, infos = splits["train"], []
    for split in splits:
        found = [shard_records[shard.file] for shard in shards if shard.split == split]
        lengths, size = [shard["examples"] for shard in found], sum(shard["bytes"] for shard in found)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size))
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=tfds_features(splits), split_infos=infos, version=version, check_data=False,
        description=f"Images of {train.name}, prepared by ddpm_jax.", disable_shuffling=True,
        metadata=tfds.core.MetadataDict({"ddpm_jax": {**metadata, "levels": train.levels}}),
    )  # fmt: skip
    builder = tfds.builder_from_directory(str(folder))
    for info in infos:
        split = tfds_reader.TfdsReader(builder, train.name, info.name, None)
        if len(split) != info.num_examples or split[0].shape != splits[info.name].shape:
            raise ValueError(f"{folder}: what was written cannot be read back; remove the folder and start again")
