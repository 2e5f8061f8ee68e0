"""Measurement protocols: a number with everything that it depends on, as a line of text and as JSON.

Two lines that differ in one field are two different measurements; two that agree may be compared.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import data, process
from ddpm_jax.data import image_files

Protocol = Mapping[str, str | int | float | bool]
"""The settings that a number depends on, by name, in the order of the line."""

_UNLABELLED_FIELDS = ("data", "reference", "samples", "method", "variance", "decoder", "features", "weights")
"""Fields that the line shows without their names."""


class Measurement(NamedTuple):
    """A measured number."""

    name: str  # of the quantity, with its unit
    value: float
    error: float  # the standard error; nan where none is known
    protocol: Protocol  # the settings that the number depends on


def measure_mean(name: str, values: np.ndarray, fields: Protocol) -> Measurement:
    """The mean of values [n] with its standard error, which a single value does not have."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Measurement(name, float(values.mean()), error, fields)


def format_line(measurement: Measurement) -> str:
    """The number and its protocol: "bits/dim 3.750 ± 0.010 | n=10000 | exact T=1000 | ..."; each field is in it."""
    number = f"{measurement.name} {format_value(measurement.value, measurement.error)}"
    return " | ".join([number, *map(_format_field, measurement.protocol.items())])


def format_value(value: float, error: float = math.nan) -> str:
    """A value to five digits, or to the second digit of its error."""
    if not (math.isfinite(error) and error > 0 and math.isfinite(value)):
        return f"{value:.5g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 6:
        return f"{value:.2g} ± {error:.1g}"
    return f"{value:.{places}f} ± {error:.{places}f}"


def to_json(measurements: Sequence[Measurement], made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for a JSON file: each with its line, its protocol field by field, and what it was made with."""
    rows = [
        {
            "name": n.name,
            "value": _finite_or_none(n.value),
            "error": _finite_or_none(n.error),
            "protocol": dict(n.protocol),
            "line": format_line(n),
        }
        for n in measurements
    ]
    return {"numbers": rows, "made_with": dict(made_with)}


def write_measurements(path: pathlib.Path, measurements: Sequence[Measurement], made_with: Mapping[str, Any]) -> None:
    """Writes numbers as JSON, as `to_json` has them."""
    content = to_json(measurements, made_with)
    process.atomic_write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_measurements(path: pathlib.Path) -> list[Measurement]:
    """The numbers that `write_measurements` wrote; a ValueError names a damaged file."""
    nan = math.nan
    try:
        rows = json.loads(path.read_bytes())["numbers"]
        return [
            Measurement(r["name"], nan if r["value"] is None else r["value"], nan if r["error"] is None else r["error"],
                   r["protocol"])
            for r in rows
        ]  # fmt: skip
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({process.first_line(error)}): remove it") from error


RECOMPUTED = ": remove it, and its content is computed again"
"""The hint for a damaged file that the evaluation wrote itself."""


def load_npz(path: pathlib.Path, hint: str = "") -> dict[str, np.ndarray]:
    """The arrays of an .npz file; a ValueError names a damaged file, and ends with the hint."""
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                for name in archive.files:
                    shape, dtype = image_files.read_array_header(archive, name)
                    image_files.check_memory(f"{name} {shape}", math.prod(shape) * dtype.itemsize)
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # an archive may be damaged in any way
            raise ValueError(f"{path} is not an .npz file, or damaged ({process.first_line(error)}){hint}") from error


def data_hash(array: data.Pixels) -> str:
    """Twelve hexadecimal digits of the hash of an array's type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for start in range(0, len(array), 1000):  # it may not be in memory
        digest.update(np.ascontiguousarray(array[start : start + 1000]).data)
    return digest.hexdigest()[:12]


def _format_field(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if name in _UNLABELLED_FIELDS:
        return str(value).replace("|", "\\|")
    value = value.replace("|", "\\|") if isinstance(value, str) else value
    return f"{name}={value:g}" if isinstance(value, float) and float(f"{value:g}") == value else f"{name}={value}"


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
