"""Digests of the training images, which a resumed run compares; quick for many images."""

import hashlib
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.data.dataset import Pixels
from ddpm_jax.data.folder_report import printable

MAX_DIGESTED = 100  # images

_DIGEST_NAMES = {
    "pixels": "their pixels",
    "labels": "labels of single images",
    "texts": "texts",
    "beside": "the conditioning images",
}


def digests(pixels: Pixels) -> dict[str, str]:
    """Digests of images [N, H, W, C].

    Returns:
        "some": sha256 of shape, type and up to 100 images, evenly spaced from the first to the last, whether images are
        in memory or not.  "all", of images in memory: sha256 of the whole, which takes a second or two per GB.
    """
    some = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    for i in np.linspace(0, len(pixels) - 1, min(len(pixels), MAX_DIGESTED)).astype(int):
        some.update(_bytes(pixels[int(i)]))
    result = {"some": some.hexdigest()}
    return result | {"all": digest(pixels)} if isinstance(pixels, np.ndarray) else result


def digest(*arrays: np.ndarray) -> str:
    """sha256 of arrays, one after the other."""
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(_bytes(array))
    return hasher.hexdigest()


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Descriptions of how images differ from those that a checkpoint was trained on.

    Args:
        saved: the checkpoint's record, with "image" and "data" as `trainer.Run` makes them.  Fields that it lacks, as
            in records of earlier versions, are not compared.
        current: the record of the present images.
    """
    before, after = ({**record.get("image", {}), **record.get("data", {})} for record in (saved, current))
    lines = [
        f"{what} then {before[field]}, now {after[field]}"
        for field, what in (("shape", "shape"), ("dtype", "type"), ("levels", "levels"), ("images", "number"))
        if field in before and before[field] != after[field]
    ]
    same_shape = not lines
    names, others = ([unicodedata.normalize("NFC", n) for n in d.get("label_names", ())] for d in (before, after))
    if names != list(map(str, range(len(names)))) and names != others:  # numbers are not names
        i = next(i for i in range(len(names) + 1) if names[i : i + 1] != others[i : i + 1])
        saved_name, current_name = (printable(some[i]) if i < len(some) else "none" for some in (names, others))
        lines.append(f"{len(names)} labels then, {len(others)} now, number {i} was {saved_name} and is {current_name}")
    for field, what in _DIGEST_NAMES.items():
        then, now = before.get(field, {}), after.get(field, {})
        changed = any(then[name] != now[name] for name in then if name in now)  # some lack "all"
        if changed and (same_shape or field != "pixels"):
            lines.append(f"{what} have changed")
    return lines


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
