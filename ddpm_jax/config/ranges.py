"""Ranges of numbers: the type of a field of a config, or of a program's flag, names the range of its numbers.

"[" and "]" include an end, "(" and ")" leave it out; NaN is nowhere, infinity only where an end is "inf]".  What two
fields must have in common is in `checks`, what depends on a run or its data where these are read, and which seeds
and images there are in `ddpm_jax.keys`.
"""

import contextlib
import dataclasses
import typing
from typing import Annotated, Any

Count = Annotated[int, "[1, 2147483647]"]  # what int32 counts
CountOrZero = Annotated[int, "[0, 2147483647]"]
NumImages = Annotated[int, "[1, 4294967280]"]  # of a seed, see `keys.check_images`
Steps = Annotated[int, "[1, 1000000]"]
Devices = Annotated[int, "[1, 65536]"]
EmaLength = Annotated[float, "(0, 0.2886]"]
"""A relative length of power-function averages; 12^(-1/2) is that of the uniform average."""


def interval_of(hint: Any) -> str:
    """The range in a field's type, as in `Annotated[int, "[1, 10]"]` or a tuple of these; "" if there is none."""
    own = [text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)]
    return next(filter(None, [*own, *map(interval_of, typing.get_args(hint))]), "")


def check(values: Any, where: str = "") -> None:
    """Refuses a config's numbers that lie outside their range, and texts that are empty where none may be.

    Args:
        values: a config, or a part of one.
        where: what the part is called, as "sampling.".

    Raises:
        ValueError: naming the field, its value and its range.
    """
    hints = typing.get_type_hints(type(values), include_extras=True)
    for field in dataclasses.fields(values):
        name, value = where + field.name, getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        else:
            if "" in (value, *(value if isinstance(value, tuple) else ())) and field.default != "":
                raise ValueError(f"{name} is empty: give a value, or leave it out")
            _check(name, value, interval_of(hints[field.name]))


def ema_length(weights: str) -> float | None:
    """The relative length in the name of weights "ema:LENGTH"; None for "ema" and "raw".

    Raises:
        ValueError: if it is no name of weights.
    """
    interval = interval_of(EmaLength)
    if weights in ("ema", "raw"):
        return None
    with contextlib.suppress(ValueError):
        length = float(weights.removeprefix("ema:"))
        if weights.startswith("ema:") and _within(length, interval):
            return length
    raise ValueError(
        f"weights must be 'ema', 'raw', or 'ema:' and a relative length in {interval}, as 'ema:0.05', got {weights!r}"
    )


def check_flags(values: Any) -> None:
    """Refuses a program's numbers that lie outside their range, but for those of a whole config, which `check` checks.

    Raises:
        ValueError: naming the flag, its value and its range.
    """
    from ddpm_jax.config.fields import Config  # whose types this module has

    hints = typing.get_type_hints(type(values), include_extras=True)
    for field in dataclasses.fields(values):
        name, value = field.name, getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            if not isinstance(value, Config):
                check_flags(value)
        else:
            _check(f"--{name.replace('_', '-')}", value, interval_of(hints[name]))


def _check(name: str, value: Any, interval: str) -> None:
    for each in value if isinstance(value, tuple | list) else (value,):
        if interval and isinstance(each, int | float) and not _within(each, interval):
            raise ValueError(f"{name} must lie in {interval}, got {value}")


def _within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)
