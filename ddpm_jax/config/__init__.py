"""Experiments as frozen dataclasses: their fields, files and checks.

A file of `configs/` defines `config = Config(...)`; a variant is `dataclasses.replace`.  `train.py` shows every field
with its default and takes it from the command line.  The resolved config is written next to a run and into each of
its checkpoints, so that no other program has to be told.

Reading a config imports nothing heavy; `ddpm_jax.config.objects` builds what it says.
"""

import dataclasses
import difflib
import json
import math
import pathlib
import traceback
import types
import typing
from typing import Any, Literal

from ddpm_jax.config.fields import (
    Condition,
    Config,
    Data,
    Evaluation,
    Loss,
    Net,
    Optim,
    Sampling,
    Schedule,
    Text,
)

__all__ = [
    "Condition", "Config", "Data", "Evaluation", "Loss", "Net", "Optim", "Sampling", "Schedule", "Text",
    "check", "differences", "from_dict", "load", "read", "to_json",
]  # fmt: skip


def load(path: str | pathlib.Path) -> Config:
    """The `config` that a Python file defines; "FILE.py:NAME" is another one of its variables, a variant.

    Raises:
        FileNotFoundError: if there is no such file (the files beside it are named).
        ValueError: if it cannot be run, naming the line, or defines no such variable of type Config.
    """
    file, _, name = str(path).partition(".py:")
    path, name = (pathlib.Path(f"{file}.py"), name) if name else (pathlib.Path(path), "config")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no config file {path}; {path.parent} holds: {', '.join(near) or 'no config'}")
    module = types.ModuleType(f"config_{path.stem}")
    module.__file__ = str(path)
    try:
        # not by way of importlib, whose compiled copy beside the file is taken for it where only a second is between
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:  # it is a program: whatever can go wrong in one
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = f", line {line}" if line else ""
        raise ValueError(f"{path}{where}: {type(error).__name__}: {str(error)[:300]}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Config):
        known = ", ".join(n for n, value in vars(module).items() if isinstance(value, Config))
        raise ValueError(f"{path} must define `{name} = Config(...)`; it defines: {known or 'no Config'}")
    return found


def to_json(config: Config) -> str:
    """The whole config as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read(path: str | pathlib.Path) -> Config:
    """The config in a file that `to_json` made.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is damaged or of fields that do not exist.
    """
    try:
        return from_dict(json.loads(pathlib.Path(path).read_bytes()))
    except (ValueError, RecursionError) as error:  # of what JSON nests too deeply
        raise ValueError(f"{path} is not a config, or damaged: {error}") from error


def from_dict(values: dict[str, Any], cls: type = Config, where: str = "") -> Any:
    """The config that `dataclasses.asdict` or `to_json` wrote.

    Raises:
        ValueError: for a field that does not exist, naming the nearest one, or a value of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a config must be an object with fields, got {str(values)[:60]}")
    hints = typing.get_type_hints(cls)
    unknown = [name for name in values if name not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, 1)
        raise ValueError(f"unknown field {where}{unknown[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return cls(**{name: _value(v, hints[name], f"{where}{name}") for name, v in values.items()})


def differences(old: Config, new: Config) -> list[str]:
    """One line "field: old -> new" for each field that differs."""
    flat_old, flat_new = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return [f"{k}: {flat_old[k]!r} -> {flat_new[k]!r}" for k in flat_old if flat_old[k] != flat_new[k]]


def check(config: Config) -> None:
    """Refuses what cannot be trained, before anything is compiled.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    for name in ("steps", "batch", "log_every", "save_every", "keep"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.sample_every < 0:
        raise ValueError(f"sample_every must be 0 (only at the end) or more, got {config.sample_every}")
    if config.loss.learned_variance and config.loss.kind == "simple":
        raise ValueError("loss.learned_variance needs loss.kind 'hybrid' or 'variational': L_simple cannot train it")
    if config.loss.weight != "none" and config.loss.kind == "variational":
        raise ValueError(f"loss.weight {config.loss.weight!r} has no meaning for loss.kind 'variational'")
    if not 0 <= config.sampling.mix <= 1 or not 0 <= config.sampling.eta <= 1:
        raise ValueError(f"sampling.mix and eta must lie in [0, 1], got {config.sampling.mix}, {config.sampling.eta}")
    if config.sampling.order not in (1, 2, 3):
        raise ValueError(f"sampling.order must be 1, 2 or 3, got {config.sampling.order}")
    if not 0 <= config.sampling.threshold <= 100:
        raise ValueError(f"sampling.threshold must lie in [0, 100], a percentile, got {config.sampling.threshold}")
    if not config.sampling.eps_scale > 0:
        raise ValueError(f"sampling.eps_scale must be positive, got {config.sampling.eps_scale}")
    _check_condition(config)
    if not 0 <= config.optim.ema_decay < 1:
        raise ValueError(f"optim.ema_decay must lie in [0, 1), got {config.optim.ema_decay}")
    if config.sampling.tile < 1 or config.sampling.num < 1:
        raise ValueError("sampling.tile and sampling.num must be at least 1")
    from ddpm_jax.config import objects  # which imports JAX: a program's --help must not

    signal_T = float(objects.noise_schedule(config).signal[-1])
    if config.sampling.eps_scale != 1 and not signal_T > 0:
        raise ValueError(
            f"sampling.eps_scale {config.sampling.eps_scale} needs some signal at t = T, schedule.kind "
            f"{config.schedule.kind!r} leaves none: an x_0 cannot be had from the noise there"
        )
    if config.loss.predicts == "eps" and not signal_T > 0:
        raise ValueError(
            f"loss.predicts 'eps' needs some signal at t = T, schedule.kind {config.schedule.kind!r} leaves none: "
            "an x_0 cannot be had from the noise there; predict 'v' or 'x0'"
        )
    objects.times(config)


def _check_condition(config: Config) -> None:
    net, text, c, sampling = config.net, config.text, config.condition, config.sampling
    if net.num_classes < 0 or text.layers < 0:
        raise ValueError(
            f"net.num_classes and text.layers must be 0 (none) or more, got {net.num_classes}, {text.layers}"
        )
    if min(text.width, text.heads, text.length) < 1 or text.width % text.heads:
        raise ValueError(
            f"text.width must be a multiple of text.heads, and text.length at least 1, got {text.width}, {text.heads}, "
            f"{text.length}"
        )
    if not 0 <= c.drop < 1:
        raise ValueError(f"condition.drop must lie in [0, 1), got {c.drop}")
    if c.templates and not text.layers:
        raise ValueError("condition.templates are texts, and text.layers 0 reads none; --text.layers 2 does")
    if not math.isfinite(sampling.guidance):
        raise ValueError(f"sampling.guidance must be a finite number, got {sampling.guidance}")
    if sampling.guidance != 1 and not (net.num_classes or text.layers):
        raise ValueError(f"sampling.guidance {sampling.guidance:g} needs a network that is told labels or texts")
    if sampling.guidance != 1 and not c.drop:
        raise ValueError(
            f"sampling.guidance {sampling.guidance:g} compares with a network that is told nothing, which "
            "condition.drop 0 did not train"
        )
    interval = sampling.guidance_interval
    if interval and (len(interval) != 2 or not 1 <= interval[0] <= interval[1] <= config.schedule.T):
        raise ValueError(
            f"sampling.guidance_interval must be two times, 1 <= first <= last <= T = {config.schedule.T}, got "
            f"{interval}"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def _value(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object with fields, got {value!r}")
        return from_dict(value, typing.cast(type, hint), f"{where}.")
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_value(v, typing.get_args(hint)[0], where) for v in value)
    if origin is Literal:
        legal = typing.get_args(hint)
    elif origin is types.UnionType:
        legal = None
        if not any(a is type(value) for a in typing.get_args(hint)):
            raise ValueError(f"{where} must be {hint}, got {value!r}")
    else:
        legal = None
        if hint is float and type(value) is int:
            value = float(value)
        if type(value) is not hint:
            raise ValueError(f"{where} must be {hint.__name__}, got {value!r}")
    if legal is not None and value not in legal:
        raise ValueError(f"{where} must be one of {', '.join(map(repr, legal))}, got {value!r}")
    return value
