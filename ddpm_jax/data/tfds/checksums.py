"""What `prepare` says of the files of a finished data set, so that damage to them is told before they are used.

Records of images have checksums of their own; TFDS's descriptions and the names of labels have none, and a file that
has taken another's place is whole.  So the record of a data set seals each file: its size and content, or of one that
is large its ends, which are read in no time.
"""

import hashlib
import json
from pathlib import Path

RECORD_FILE = "prepare.json"
MAX_WHOLE_BYTES, END_BYTES = 1 << 20, 1 << 16  # bytes


def folder_checksums(folder: Path) -> dict[str, str]:
    """For each file of a folder but the record: sha256 of its size and of its content, or of its ends."""
    return {
        path.name: _file_checksum(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(RECORD_FILE)
    }


def verify(folder: Path) -> None:
    """Makes sure that the files of a data set are those that were sealed; without a record, or a seal in it, does not.

    Raises:
        ValueError: naming the file that is damaged or gone.
    """
    for name, expected in _recorded_checksums(folder).items():
        _verify_file(folder / name, expected)


def verify_descriptions(folder: Path) -> None:
    """The same of all files but those of the images, whose records can be read one by one and the damaged left out."""
    for name, expected in _recorded_checksums(folder).items():
        if ".array_record-" not in name:
            _verify_file(folder / name, expected)


def _recorded_checksums(folder: Path) -> dict[str, str]:
    record = folder / RECORD_FILE
    if not record.exists():
        return {}
    try:
        return dict(json.loads(record.read_bytes()).get("seal", {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{record}: damaged: {error}") from error


def _verify_file(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is not there: prepare the data set anew")
    if _file_checksum(path) != expected:
        raise ValueError(
            f"{path} is not what was prepared: it is damaged; prepare the data set anew, or of what is left of it, "
            "with --skip-bad"
        )


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
