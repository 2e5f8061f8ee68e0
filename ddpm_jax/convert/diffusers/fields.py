"""Fields of a configuration of diffusers: those that are read, and those that must have one value."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

ABOUT = (
    "_class_name", "_diffusers_version", "_name_or_path", "_use_default_values",
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
)  # fmt: skip
"""Fields that say nothing about what is computed: who wrote it, and how diffusers' own average was kept."""


class Only(NamedTuple):
    """A field that must have one of some values.

    Attributes:
        default: what diffusers takes where the field is missing.
        values: that can be had here.
        why: what they mean, for who has another.
    """

    default: Any
    values: tuple[Any, ...]
    why: str


def problems(given: Mapping[str, Any], read: Mapping[str, Any], only: Mapping[str, Only]) -> list[str]:
    """What of a configuration cannot be had here, a line for each field.

    Args:
        read: the fields that are read, with diffusers' defaults.
        only: the fields that must have a certain value.
    """
    unknown = [name for name in given if name not in read and name not in only and name not in ABOUT]
    found = [f"{name} = {given[name]!r} is a field that is not known here" for name in unknown]
    for name, field in only.items():
        value = given.get(name, field.default)
        if not any(_same(value, legal) for legal in field.values):
            said = f"{name} = {value!r}" if name in given else f"{name} is missing, which means {value!r}"
            found.append(f"{said}: only {' or '.join(map(repr, field.values))} can be had, {field.why}")
    return found


def mistyped(given: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> list[str]:
    """What of a configuration is not of the type that it must be, a line for each field."""
    return [
        f"{name} = {given[name]!r} is not {_named(kind)}"
        for name, kind in kinds.items()
        if name in given and not _is(given[name], kind)
    ]


def unlike(given: Mapping[str, Any], choices: Mapping[str, Collection[Any]]) -> list[str]:
    """The fields of a configuration that have none of the values that they may have, a line for each."""
    return [
        f"{name} = {given[name]!r}: only {' or '.join(map(repr, legal))} can be had"
        for name, legal in choices.items()
        if not any(_same(given[name], value) for value in legal)
    ]


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))  # which Python counts as integers


def _same(value: Any, legal: Any) -> bool:
    return value == legal and isinstance(value, bool) == isinstance(legal, bool)


def _named(kind: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
