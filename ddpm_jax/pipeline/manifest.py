"""The manifest of images, manifest.json: the record from which they can be drawn again."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ddpm_jax.config import ranges

FIELD_TYPES = {
    "fingerprint": str, "step": int, "weights": str, "sampling": dict, "machine": dict, "seed": int, "start": int,
    "num": int, "sha256": list,
}  # fmt: skip


def read_manifest(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads and checks a manifest.json file.

    The result has the fields of `FIELD_TYPES` and "asked", the record of a `ConditionRequest`, which manifests written
    before there were conditions lack: these get an empty one.

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such file.
        ValueError: naming the file, if it is damaged or something else.
    """
    path = pathlib.Path(path)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of what JSON nests too deeply
        raise ValueError(f"{path} is not a manifest, or damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a manifest: expected an object with fields, got {str(found)[:60]}")
    for name, kind in FIELD_TYPES.items():
        if type(found.get(name)) is not kind:
            what = f"{name} must be {kind.__name__}, got {str(found.get(name))[:60]}"
            raise ValueError(f"{path} is not a manifest, or damaged: {what}")
    try:
        ranges.ema_length(found["weights"])
    except ValueError as error:
        raise ValueError(f"{path}, damaged: {error}") from error
    record = found.setdefault("asked", {"labels": [], "texts": []})
    kinds = {"labels": int, "texts": str}
    if type(record) is not dict or any(
        type(record.get(name)) is not list or any(type(one) is not kind for one in record[name])
        for name, kind in kinds.items()
    ):
        raise ValueError(f"{path}, damaged: asked must hold lists of labels and texts, got {str(record)[:60]}")
    images = record.get("images", [])
    if type(images) is not list or any(type(p) is not list or [*map(type, p)] != [str, str] for p in images):
        raise ValueError(f"{path}, damaged: asked must name images with their sha256, got {str(images)[:60]}")
    if found["start"] < 0 or not 1 <= found["num"] == len(found["sha256"]):
        hashes, num, start = len(found["sha256"]), found["num"], found["start"]
        raise ValueError(f"{path}, damaged: {hashes} hashes of {num} images from {start} on")
    return found


def output_name(made: Mapping[str, Any]) -> str:
    """A folder's name that no other call has: checkpoint, seed, sampler, and a hash of all that decides the images."""
    decides = {name: value for name, value in made.items() if name not in ("machine", "versions")}
    how = made["sampling"]
    return f"{made['step']}-seed{made['seed']}-{how['sampler']}-{how['steps']}-{short_hash(decides)}"


def short_hash(record: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of a record's hash, for file names."""
    return hashlib.sha256(json.dumps(dict(record)).encode()).hexdigest()[:10]
