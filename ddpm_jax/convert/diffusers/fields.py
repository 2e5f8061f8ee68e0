"""Fields of a configuration of diffusers: those that are read, and those that must have one value."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

IGNORED = (
    "_class_name", "_diffusers_version", "_name_or_path", "_use_default_values",
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
)  # fmt: skip
"""Fields without effect on the computation: author, and diffusers' own average."""


class Supported(NamedTuple):
    """A field that must have one of some values.

    Attributes:
        default: diffusers' value of a missing field.
        values: those that are supported.
        meaning: of the supported values, for the error.
    """

    default: Any
    values: tuple[Any, ...]
    meaning: str


def unsupported(given: Mapping[str, Any], known: Mapping[str, Any], supported: Mapping[str, Supported]) -> list[str]:
    """Errors for the unsupported fields of a configuration, one for each.

    Args:
        known: the fields that are read, with diffusers' defaults.
        supported: the fields that must have a certain value.
    """
    unknown = [name for name in given if name not in known and name not in supported and name not in IGNORED]
    errors = [f"{name} = {given[name]!r} is a field that is not known here" for name in unknown]
    for name, field in supported.items():
        value = given.get(name, field.default)
        if not any(_equal(value, legal) for legal in field.values):
            text = f"{name} = {value!r}" if name in given else f"{name} is missing, which means {value!r}"
            errors.append(f"{text}: only {' or '.join(map(repr, field.values))} is supported, {field.meaning}")
    return errors


def mistyped(given: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]) -> list[str]:
    """Errors for the fields of a wrong type, one for each."""
    return [
        f"{name} = {given[name]!r} is not {_type_names(kind)}"
        for name, kind in types.items()
        if name in given and not _has_type(given[name], kind)
    ]


def outside_choices(given: Mapping[str, Any], choices: Mapping[str, Collection[Any]]) -> list[str]:
    """Errors for the fields with a value outside their choices, one for each."""
    return [
        f"{name} = {given[name]!r}: only {' or '.join(map(repr, legal))} is supported"
        for name, legal in choices.items()
        if not any(_equal(given[name], value) for value in legal)
    ]


def _has_type(value: Any, types: type | tuple[type, ...]) -> bool:
    return isinstance(value, types) and (
        types is bool or not isinstance(value, bool)
    )  # which Python counts as integers


def _equal(value: Any, legal: Any) -> bool:
    return value == legal and isinstance(value, bool) == isinstance(legal, bool)


def _type_names(types: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in (types if isinstance(types, tuple) else (types,)))
