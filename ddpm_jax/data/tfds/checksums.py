"""Checksums of the files of a data set that `ddpm-jax prepare` made, verified before the data set is read.

Records of images have checksums of their own, but TFDS's descriptions and label names have none, and one file may have
replaced another.  So the record has a checksum of each file's size and content, or for a large file of its two ends.
"""

import hashlib
import json
from pathlib import Path

RECORD_FILE = "prepare.json"
MAX_WHOLE_BYTES, END_BYTES = 1 << 20, 1 << 16  # bytes


def folder_checksums(folder: Path) -> dict[str, str]:
    """sha256 of the size and content (or ends) of each file of a folder but the record."""
    return {
        path.name: _file_checksum(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(RECORD_FILE)
    }


def verify(folder: Path, *, shards: bool = True) -> None:
    """Verifies the files of a data set against the record's checksums, if it has any.

    Args:
        shards: False for all files but those of images, whose damaged records can be left out one by one.

    Raises:
        ValueError: naming the file that is damaged or missing.
    """
    record = folder / RECORD_FILE
    if not record.exists():
        return
    try:
        checksums = dict(json.loads(record.read_bytes()).get("seal", {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{record}: damaged: {error}") from error
    for name, expected in checksums.items():
        if not shards and ".array_record-" in name:
            continue
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: prepare the data set again")
        if _file_checksum(path) != expected:
            hint = "prepare the data set again, or another from its readable images with --skip-bad"
            raise ValueError(f"{path} is damaged: it is not what was prepared; {hint}")


def _file_checksum(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= MAX_WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(END_BYTES))
            file.seek(size - END_BYTES)
            digest.update(file.read(END_BYTES))
    return digest.hexdigest()
