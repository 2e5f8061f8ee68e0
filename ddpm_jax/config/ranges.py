"""Ranges of numbers: one for each field of a config, and for each flag of a program.

"[" and "]" include an end, "(" and ")" leave it out; NaN is nowhere, infinity only where an end is "inf]".  What two
fields must have in common is in `checks`, what depends on a run or its data where these are read, and which seeds
and images there are in `ddpm_jax.keys`.
"""

import contextlib
import dataclasses
from typing import Any

from ddpm_jax.config.fields import Config

_COUNT, _NONE_OR_COUNT = "[1, 2147483647]", "[0, 2147483647]"  # what int32 counts
_FINITE = "[-1e38, 1e38]"  # what float32 holds

EMA_LENGTHS = "(0, 0.2886]"
"""Relative lengths of power-function averages; 12^(-1/2) is that of the uniform average."""

RANGES = {
    "steps": _COUNT,
    "batch": "[1, 1048576]",
    "steps_per_call": "[1, 10000]",
    "log_every": _COUNT,
    "sample_every": _NONE_OR_COUNT,
    "save_every": _COUNT,
    "keep": _COUNT,
    "snapshot_every": _COUNT,
    "data.held_out": "(0, 1)",
    "data.levels": "[2, 65536]",
    "data.range": _FINITE,
    "data.resolution": "[1, 65536]",
    "schedule.T": "[1, 1000000]",
    "schedule.beta_1": "(0, 1]",
    "schedule.beta_T": "(0, 1]",
    "schedule.offset": "[0, 10]",
    "schedule.max_beta": "(0, 1]",
    "net.channels": "[1, 65536]",
    "net.channel_multipliers": "[1, 1024]",
    "net.num_res_blocks": "[1, 1024]",
    "net.attention_resolutions": "[0, 65536]",
    "net.heads": "[1, 65536]",
    "net.head_channels": "[0, 65536]",
    "net.dropout": "[0, 1)",
    "net.groups": "[1, 65536]",
    "net.num_classes": "[0, 1000000]",
    "net.compat.eps": "(0, 1]",
    "net.compat.time_shift": "[0, 1]",
    "net.compat.time_scale": "(0, 1e6]",
    "net.compat.time_dim": "[0, 65536]",
    "text.layers": "[0, 1024]",
    "text.width": "[1, 65536]",
    "text.heads": "[1, 65536]",
    "text.length": "[1, 65536]",
    "condition.dropout": "[0, 1)",
    "condition.super_resolution_factor": "[0, 65536]",
    "condition.paired_channels": "[0, 65536]",
    "loss.min_snr_gamma": "(0, 1e38]",
    "loss.p2_gamma": "[0, 1000]",
    "loss.vlb_scale": "[0, 1e38]",
    "optim.learning_rate": "[0, 1e38]",
    "optim.warmup": _NONE_OR_COUNT,
    "optim.decay": _NONE_OR_COUNT,
    "optim.clip": "(0, inf]",
    "optim.b1": "[0, 1)",
    "optim.b2": "[0, 1)",
    "optim.eps": "(0, 1e38]",
    "optim.ema_decay": "[0, 1)",
    "optim.ema_lengths": EMA_LENGTHS,
    "optim.accumulate": "[1, 1048576]",
    "optim.max_skipped": _COUNT,
    "sampling.steps": "[1, 1000000]",
    "sampling.variance_mix": "[0, 1]",
    "sampling.eta": "[0, 1]",
    "sampling.order": "[1, 3]",
    "sampling.threshold": "[0, 100]",
    "sampling.eps_scale": "(0, 1000]",
    "sampling.guidance": "[-1e6, 1e6]",
    "sampling.guidance_interval": "[1, 1000000]",
    "sampling.tile": "[0, 65536]",
    "sampling.num": "[1, 1048576]",
    "evaluation.images": _COUNT,
    "evaluation.strata": "[1, 1000000]",
}
"""Of a config's fields that are numbers, or tuples of numbers."""

FLAGS = {
    "ancestral": RANGES["sampling.steps"],
    "batch": "[1, 1048576]",
    "checkpoint": _NONE_OR_COUNT,
    "columns": "[2, 65536]",
    "continuations": "[2, 65536]",
    "cg_steps": "[0, 1000000]",
    "ddim": RANGES["sampling.steps"],
    "devices": "[1, 65536]",
    "dpm_solver_pp": RANGES["sampling.steps"],
    "effort": "[-1, 1]",
    "estimate": RANGES["evaluation.strata"],
    "frames": "[2, 1000000]",
    "heartbeat": "[5, 1000000]",
    "held_out": RANGES["data.held_out"],
    "images": _COUNT,
    "init_checkpoint": _NONE_OR_COUNT,
    "jump": RANGES["sampling.steps"],
    "k": _COUNT,
    "lengths": EMA_LENGTHS,
    "levels": RANGES["data.levels"],
    "noise": "[0, 1000]",
    "num": "[1, 4294967280]",
    "num_classes": RANGES["net.num_classes"],
    "pairs": _COUNT,
    "process": _NONE_OR_COUNT,
    "processes": _COUNT,
    "quality": _NONE_OR_COUNT,
    "range": _FINITE,
    "resample": "[1, 1000000]",
    "resolution": "[1, 65536]",
    "rows": _COUNT,
    "sets": _COUNT,
    "shape": "[1, 65536]",
    "shards": "[1, 99999]",
    "step": _NONE_OR_COUNT,
    "strength": "(0, 1]",
    "t": RANGES["schedule.T"],
    "times": RANGES["schedule.T"],
    "unipc": RANGES["sampling.steps"],
}
"""Ranges of the programs' flags, without those that replace a config's sampling."""


def check(values: Any, where: str = "") -> None:
    """Refuses a config's numbers that lie outside their range, and texts that are empty where none may be.

    Args:
        values: a config, or a part of one.
        where: what the part is called, as "sampling.".

    Raises:
        ValueError: naming the field, its value and its range.
    """
    for field in dataclasses.fields(values):
        name, value = where + field.name, getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        else:
            if "" in (value, *(value if isinstance(value, tuple) else ())) and field.default != "":
                raise ValueError(f"{name} is empty: give a value, or leave it out")
            _check(name, value, RANGES.get(name))


def ema_length(weights: str) -> float | None:
    """The relative length in the name of weights "ema:LENGTH"; None for "ema" and "raw".

    Raises:
        ValueError: if it is no name of weights.
    """
    if weights in ("ema", "raw"):
        return None
    with contextlib.suppress(ValueError):
        length = float(weights.removeprefix("ema:"))
        if weights.startswith("ema:") and _within(length, EMA_LENGTHS):
            return length
    raise ValueError(
        f"weights must be 'ema', 'raw', or 'ema:' and a relative length in {EMA_LENGTHS}, as 'ema:0.05', got "
        f"{weights!r}"
    )


def check_flags(values: Any) -> None:
    """Refuses a program's numbers that lie outside their range, but for those of a whole config, which `check` checks.

    Raises:
        ValueError: naming the flag, its value and its range.
    """
    for field in dataclasses.fields(values):
        name, value = field.name, getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            if not isinstance(value, Config):
                check_flags(value)
        else:
            _check(f"--{name.replace('_', '-')}", value, FLAGS.get(name) or RANGES.get(f"sampling.{name}"))


def _check(name: str, value: Any, interval: str | None) -> None:
    for each in value if isinstance(value, tuple | list) else (value,):
        if interval and isinstance(each, int | float) and not _within(each, interval):
            raise ValueError(f"{name} must lie in {interval}, got {value}")


def _within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    above = value > low if interval[0] == "(" else value >= low
    return above and (value < high if interval[-1] == ")" else value <= high)
