"""Preparation of a data set in the format of TensorFlow Datasets (TFDS), without TensorFlow, for `tfds:NAME`.

Shards are written one after the other into OUT/NAME/1.0.0.part, with a record of them in prepare.json; after the last,
TFDS's own descriptions are written and the folder is renamed.  So a data set is complete or not there, and a
preparation interrupted at any moment continues after its last complete shard.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax import process
from ddpm_jax.config.flags import Prepare
from ddpm_jax.data import sources
from ddpm_jax.data.dataset import ImageReader, Pixels
from ddpm_jax.data.images import to_value_range
from ddpm_jax.data.tfds import checksums, shards
from ddpm_jax.data.tfds import reader as tfds_reader
from ddpm_jax.data.tfds.address import find_folder, parse_address
from ddpm_jax.data.tfds.checksums import RECORD_FILE
from ddpm_jax.data.tfds.shards import Shard

VERSION = "1.0.0"
SHARD_BYTES = 256 << 20  # approximate bytes of decoded images in a shard


def run(options: Prepare) -> int:
    """Makes the data set, or continues to; returns the exit status, 4 if it is interrupted.

    Raises:
        FileNotFoundError, ValueError: if the source, an option or the content of the folder is not as described.
    """
    target = target_folder(options)
    partial = target.with_name(VERSION + ".part")
    if target.exists():
        read_record(target, options)
        print(f"{target} exists, made by the same command")
        return 0
    partial.mkdir(parents=True, exist_ok=True)
    with process.FolderLock(target.parent):
        splits: dict[str, ImageReader] = dict(zip(("train", "test"), open_readers(options), strict=True))
        planned = plan_shards(options, splits)
        record = resume_record(partial, options, splits)
        with process.Interrupt() as interrupt:
            complete = write_shards(partial, record, planned, splits, options.skip_bad, lambda: interrupt.requested)
        num_written = sum(shard["examples"] for shard in record["shards"].values())
        if not complete:
            print(f"interrupted: {num_written} images are in {partial}; the same command continues")
            return 4
        (partial / "unfinished").unlink(missing_ok=True)
        shards.write_descriptions(
            partial, record["shards"], planned, splits, version=VERSION, metadata=record["request"]
        )
        _write_json(partial / RECORD_FILE, record | {"seal": checksums.folder_checksums(partial)})
        partial.rename(target)
    skipped = [line for shard in record["shards"].values() for line in shard["skipped"]]
    for line in skipped:
        print(f"left out: {line}")
    size = sum(shard["bytes"] for shard in record["shards"].values()) / 1e6
    print(f"{target}: {num_written} images in {len(planned)} shards, {size:.1f} MB; {len(skipped)} left out")
    print(f"read it as {shlex.quote(f'tfds:{options.name}@{options.out}')}")
    return 0


def target_folder(options: Prepare) -> Path:
    """The folder of the data set.

    Raises:
        ValueError: if the name is missing or invalid, or as `out_folder`.
    """
    if options.name is None:
        raise ValueError(f"--name is missing: {options.source} becomes a data set in OUT/NAME, read as tfds:NAME@OUT")
    if options.archives is not None:
        raise ValueError(f"--from is for mnist and cifar10; {options.source} is itself the source of the images")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
        raise ValueError(f"--name must be of lower-case letters, digits and _, a letter first, got {options.name!r}")
    return out_folder(options) / options.name / VERSION


def out_folder(options: Prepare) -> Path:
    """The folder of --out; a ValueError if it is in a home folder that does not exist."""
    try:
        return Path(options.out).expanduser()
    except RuntimeError as error:
        raise ValueError(f"--out {options.out}: {error}") from error


def read_record(folder: Path, options: Prepare) -> dict[str, Any]:
    """The record of a folder, if these options made it.

    Raises:
        ValueError: if other options, or another program, made it.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
        ours, theirs = _request(options), {"range": [], **record["request"]}
        _ = str(record["images"]), [shard["sha256"] for shard in record["shards"].values()]
    except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        hint = f"take another --name, or remove the folder if it is its {RECORD_FILE} that is missing or damaged"
        raise ValueError(f"{folder} holds a data set that something else made; {hint}") from None
    changed = [f"--{key.replace('_', '-')} was {theirs.get(key)}, is {ours[key]}" for key in ours]
    changed = [line for key, line in zip(ours, changed, strict=True) if theirs.get(key) != ours[key]]
    if changed:
        raise ValueError(f"{folder} was made by another command: {'; '.join(changed)}. Remove it, or change --name")
    return record


def open_readers(options: Prepare) -> tuple[ImageReader, ImageReader]:
    """The images to train on and those held out."""
    source, side, levels, held_out = options.source, options.resolution, options.levels, options.held_out
    kind = source.partition(":")[0]
    if kind == "folder":
        resolution = () if side is None else (side,)
        return sources.open_readers(
            source, held_out=held_out, levels=levels, value_range=options.range, resolution=resolution,
            skip_bad=options.skip_bad, report=print,
        )  # fmt: skip
    if kind == "tfds":
        checksums.verify(find_folder(parse_address(source)), shards=False)  # damaged images are reported one by one
        size = None if side is None else (side, side)
        return tfds_reader.open_readers(
            source, held_out=held_out, levels=levels, value_range=to_value_range(options.range), size=size
        )
    images = sources.load(source, held_out=held_out, levels=levels, value_range=options.range)
    sides = images.train.shape[1:-1]
    if side is not None and sides != (side, side):
        shown = "x".join(map(str, sides))
        raise ValueError(f"{source}: images {shown} are not resized; --resolution is for folder: and tfds:")

    def reader(pixels: Pixels, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> ImageReader:
        names, scale, shape = images.label_names, images.levels, pixels.shape[1:]
        count, read = len(pixels), pixels.__getitem__
        return ImageReader(source, shape, pixels.dtype, scale, labels, names, captions, "", count, read)

    return (
        reader(images.train, images.train_labels, images.train_captions),
        reader(images.test, images.test_labels, images.test_captions),
    )


def plan_shards(options: Prepare, splits: Mapping[str, ImageReader]) -> list[Shard]:
    """The shards of all splits, of about equal size.

    Raises:
        ValueError: if there are fewer images than shards.
    """
    train, planned = splits["train"], []
    one = math.prod(train.shape) * train.dtype.itemsize
    count = options.shards or math.ceil(len(train) * one / SHARD_BYTES)
    for split, reader in splits.items():
        files = max(1, round(count * len(reader) / len(train)))
        if files > len(reader):
            raise ValueError(f"--shards {count} are more than the {len(reader)} images of the split {split}")
        edges = [len(reader) * k // files for k in range(files + 1)]
        for k, (start, stop) in enumerate(itertools.pairwise(edges)):
            file = f"{options.name}-{split}.array_record-{k:05d}-of-{files:05d}"  # TFDS's pattern of names
            planned.append(Shard(split, start, stop, file))
    return planned


def resume_record(folder: Path, options: Prepare, splits: Mapping[str, ImageReader]) -> dict[str, Any]:
    """A new record, or the record of an interrupted preparation without its damaged shards.

    Raises:
        ValueError: if other options made the folder, or the images have changed.
    """
    images_fingerprint = fingerprint(splits)
    if not (folder / RECORD_FILE).exists():
        return {"request": _request(options), "images": images_fingerprint, "shards": {}}
    record = read_record(folder, options)
    if record["images"] != images_fingerprint:
        raise ValueError(f"{folder} was started with other images than {options.source} has now; remove the folder")
    for file, shard in list(record["shards"].items()):
        if not (folder / file).exists() or _sha256(folder / file) != shard["sha256"]:
            del record["shards"][file]
    return record


def write_shards(
    folder: Path,
    record: dict[str, Any],
    planned: Sequence[Shard],
    splits: Mapping[str, ImageReader],
    skip_bad: bool,
    should_stop: Callable[[], bool],
) -> bool:
    """Writes the shards that are missing in the record; False if it is stopped before the last."""
    remaining = [shard for shard in planned if shard.file not in record["shards"]]
    total, ahead = (sum(shard.stop - shard.start for shard in some) for some in (planned, remaining))
    every = 0.1 if sys.stderr.isatty() else 10.0
    examples, unfinished = shards.example_serializers(splits), folder / "unfinished"
    with tqdm(total=total, initial=total - ahead, unit=" images", mininterval=every) as bar:
        for shard in remaining:
            shard_record = shards.write_shard(
                unfinished, shard, examples[shard.split], skip_bad=skip_bad, should_stop=should_stop,
                on_images=bar.update,
            )  # fmt: skip
            if shard_record is None:
                return False
            unfinished.replace(folder / shard.file)
            record["shards"][shard.file] = {**shard_record, "sha256": _sha256(folder / shard.file)}
            _write_json(folder / RECORD_FILE, record)
    return True


def fingerprint(splits: Mapping[str, ImageReader]) -> str:
    """sha256 of the sizes, labels, captions and a few images of all splits."""
    digest = hashlib.sha256()
    for reader in splits.values():
        digest.update(repr((len(reader), reader.shape, str(reader.dtype), reader.levels, reader.captions)).encode())
        digest.update(b"" if reader.labels is None else reader.labels.tobytes())
        for i in range(0, len(reader), math.ceil(len(reader) / 16)):
            with contextlib.suppress(ValueError):
                digest.update(reader[i].tobytes())
    return digest.hexdigest()


def _request(options: Prepare) -> dict[str, Any]:
    """The options that determine the content of the data set, as read from JSON."""
    fields = dataclasses.asdict(options) | {"range": list(options.range)}
    return {key: value for key, value in sorted(fields.items()) if key not in ("name", "out", "archives")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    process.atomic_write_text(path, json.dumps(value, indent=1, sort_keys=True))
