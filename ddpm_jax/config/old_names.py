"""Former names of fields: configs, manifests and checkpoints of older versions are read by them."""

from typing import Any

OLD_NAMES: dict[str, dict[str, str]] = {
    "Net": {
        "multipliers": "channel_multipliers",
        "blocks": "num_res_blocks",
        "attention_at": "attention_resolutions",
        "time_joins": "time_conditioning",
        "resample_by": "resample",
        "conventions": "compat",
    },
    "Condition": {"drop": "dropout", "coarse": "super_resolution_factor"},
    "Sampling": {"mix": "variance_mix"},
    "EditOptions": {"init": "init_image", "between": "interpolate", "correct": "cg_steps"},
}
"""For each class of fields: the name that a field had, and the one that it has."""


def current_names(values: dict[str, Any], cls: type) -> dict[str, Any]:
    """Values by the present names of the fields of a class of `config.fields` or `config.flags`.

    Raises:
        ValueError: if a value is given by both of a field's names.
    """
    renamed = OLD_NAMES.get(cls.__name__, {})
    for old, new in renamed.items():
        if old in values and new in values:
            raise ValueError(f"{old!r} is the former name of {new!r}, and both are given")
    return {renamed.get(name, name): value for name, value in values.items()}


def former_names(values: dict[str, Any], cls: type) -> dict[str, Any]:
    """The same values by the former names, for files whose bytes stay."""
    former = {new: old for old, new in OLD_NAMES.get(cls.__name__, {}).items()}
    return {former.get(name, name): value for name, value in values.items()}
