"""Fields of a configuration of diffusers: those that are read, and those that must have one value."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

IGNORED = (
    "_class_name", "_diffusers_version", "_name_or_path", "_use_default_values",
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
)  # fmt: skip
"""Fields without effect on the computation: author, and diffusers' own average."""


class Supported(NamedTuple):
    """A field that must have one of some values."""

    values: tuple[Any, ...]  # those that are supported; the first is diffusers' own for a missing field
    meaning: str  # of the supported values, for the error


def field_errors(
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    supported: Mapping[str, Supported],
    types: Mapping[str, type | tuple[type, ...]],
    choices: Mapping[str, Collection[Any]],
) -> list[str]:
    """Errors for the fields of a configuration, one for each that is unsupported or of a wrong type.

    Args:
        known: the fields that are read, with diffusers' defaults.
        supported: the fields that must have a certain value.
        types: of fields that are read.
        choices: the values of fields that are read, where only some are supported.
    """
    unknown = [name for name in config if name not in known and name not in supported and name not in IGNORED]
    messages = [f"{name} = {config[name]!r} is a field that is not known here" for name in unknown]
    for name, field in supported.items():
        value = config.get(name, field.values[0])
        if not any(_equal(value, legal) for legal in field.values):
            legal = " or ".join(map(repr, field.values))
            messages.append(f"{name} = {value!r}: only {legal} is supported, {field.meaning}")
    for name, kind in types.items():
        value = config.get(name, known[name])
        # Python counts booleans as integers
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            messages.append(f"{name} = {value!r} is not {' or '.join(one.__name__ for one in kinds)}")
    for name, legal in choices.items():
        value = config.get(name, known[name])
        if not any(_equal(value, one) for one in legal):
            messages.append(f"{name} = {value!r}: only {' or '.join(map(repr, legal))} is supported")
    return messages


def _equal(value: Any, legal: Any) -> bool:
    return value == legal and isinstance(value, bool) == isinstance(legal, bool)
