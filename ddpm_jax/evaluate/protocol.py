"""A number together with all that it depends on: one line to read, the same as JSON.

Two lines that differ in one field are two different measurements; two that agree may be compared.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import data
from ddpm_jax.data import files

Protocol = Mapping[str, str | int | float | bool]
"""What a number depends on, by name, in the order in which the line says it."""

_BARE = ("data", "reference", "samples", "method", "variance", "decoder", "features", "weights")
"""Fields whose values speak for themselves."""


class Number(NamedTuple):
    """A measured number.

    Attributes:
        name: what it is, with its unit.
        value: the number.
        error: its standard error, nan where none is known.
        protocol: what it depends on.
    """

    name: str
    value: float
    error: float
    protocol: Protocol


def line(number: Number) -> str:
    """The number and its protocol: "bits/dim 3.750 ± 0.010 | n=10000 | exact T=1000 | ..."; each field is in it."""
    return " | ".join([f"{number.name} {said(number.value, number.error)}", *map(_field, number.protocol.items())])


def said(value: float, error: float = math.nan) -> str:
    """A value to five digits, or to the second digit of its error."""
    if not (math.isfinite(error) and error > 0 and math.isfinite(value)):
        return f"{value:.5g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 6:
        return f"{value:.2g} ± {error:.1g}"
    return f"{value:.{places}f} ± {error:.{places}f}"


def identity(protocol: Protocol) -> str:
    """Ten hexadecimal digits that name a protocol, for files."""
    return hashlib.sha256(json.dumps(dict(protocol)).encode()).hexdigest()[:10]


def write(path: pathlib.Path, numbers: Sequence[Number], made_with: Mapping[str, Any]) -> None:
    """Writes numbers as JSON: each with its line, its protocol field by field, and what it was made with."""
    rows = [
        {
            "name": n.name,
            "value": _finite(n.value),
            "error": _finite(n.error),
            "protocol": dict(n.protocol),
            "line": line(n),
        }
        for n in numbers
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(
        json.dumps({"numbers": rows, "made_with": dict(made_with)}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    part.replace(path)


def read(path: pathlib.Path) -> list[Number]:
    """The numbers that `write` wrote.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    nan = math.nan
    try:
        rows = json.loads(path.read_bytes())["numbers"]
        return [
            Number(r["name"], nan if r["value"] is None else r["value"], nan if r["error"] is None else r["error"],
                   r["protocol"])
            for r in rows
        ]  # fmt: skip
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({_said(error)}): remove it") from error


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file that an evaluation left.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is damaged.
    """
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                for name in archive.files:
                    shape, dtype = files.declared(archive, name)
                    files.check_room(f"{name} {shape}", math.prod(shape) * dtype.itemsize)
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # an archive may be damaged in any way
            raise ValueError(
                f"{path} is not an .npz file, or damaged ({_said(error)}): remove it, and what it held is made anew"
            ) from error


def data_hash(array: data.Pixels) -> str:
    """Twelve hexadecimal digits that name the content of an array: its type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for first in range(0, len(array), 1000):  # it may not be in memory
        digest.update(np.ascontiguousarray(array[first : first + 1000]).data)
    return digest.hexdigest()[:12]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def _field(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if name in _BARE:
        return str(value).replace("|", "\\|")
    value = value.replace("|", "\\|") if isinstance(value, str) else value
    return f"{name}={value:g}" if isinstance(value, float) and float(f"{value:g}") == value else f"{name}={value}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
