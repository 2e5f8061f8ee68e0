"""Experiments as frozen dataclasses: their fields, files and checks.

A file of `configs/` defines `config = Config(...)`; a variant is `dataclasses.replace`.  `train.py` shows every field
with its default and takes it from the command line.  The resolved config is written next to a run and into each of
its checkpoints, from which the other programs read it.

Reading a config imports nothing heavy; `ddpm_jax.model.build` builds what it describes.
"""

import contextlib
import dataclasses
import difflib
import importlib
import json
import pathlib
import re
import runpy
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from ddpm_jax.config.checks import check, check_trained
from ddpm_jax.config.fields import (
    CompatOptions,
    Condition,
    Config,
    Data,
    Evaluation,
    Loss,
    Net,
    Optim,
    Parallel,
    PatchTransformer,
    Sampling,
    Schedule,
    Text,
    flatten,
)
from ddpm_jax.config.old_names import current_names, former_names

__all__ = [
    "CompatOptions", "Condition", "Config", "Data", "Evaluation", "Loss", "Net", "Optim", "Parallel",
    "PatchTransformer", "Sampling", "Schedule", "Text", "check", "check_trained", "differences", "flatten",
    "former_names", "from_dict", "load", "read", "to_json",
]  # fmt: skip


def load(path: str | pathlib.Path) -> Config:
    """The `config` that a Python file defines; "FILE.py:NAME" is another one of its variables, a variant.

    A name without folder and ending, "digits" or "mnist:wide", is a config that comes with the library.  The file is a
    program and is run, and it can import modules that lie beside it: load no file that you would not run.

    Raises:
        FileNotFoundError: if there is no such file (the files beside it are named).
        ValueError: if it cannot be run, naming the line, or defines no such variable of type Config.
    """
    shipped = re.fullmatch(r"(\w+)(:\w+)?", str(path))
    if shipped and not pathlib.Path(path).is_file():
        package = pathlib.Path(__file__).parents[1]  # which has the configs if it was installed
        folder = package / "configs" if (package / "configs").is_dir() else package.with_name("configs")
        path = f"{folder / shipped[1]}.py{shipped[2] or ''}"
    file, _, name = str(path).partition(".py:")
    path, name = (pathlib.Path(f"{file}.py"), name) if name else (pathlib.Path(path), "config")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no config file {path}; {path.parent} holds: {', '.join(near) or 'no config'}")
    try:
        with _beside(path.parent.resolve()):
            # not by way of importlib, which takes a compiled copy beside the file for it where a second is between
            defined = runpy.run_path(str(path), run_name=f"config_{path.stem}")
    except Exception as error:  # it is a program: whatever can go wrong in one
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = f", line {line}" if line else ""
        raise ValueError(f"{path}{where}: {type(error).__name__}: {str(error)[:300]}") from error
    found = defined.get(name)
    if not isinstance(found, Config):
        known = ", ".join(n for n, value in defined.items() if isinstance(value, Config))
        raise ValueError(f"{path} must define `{name} = Config(...)`; it defines: {known or 'no Config'}")
    try:
        from_dict(dataclasses.asdict(found))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return found


@contextlib.contextmanager
def _beside(folder: pathlib.Path) -> Iterator[None]:
    """A context in which modules of a folder can be imported; nothing of them is cached, in memory or on disk."""
    writes, before = sys.dont_write_bytecode, set(sys.modules)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(folder))
        files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in set(sys.modules) - before}
        own = {n for n, file in files.items() if file in (f"{folder / n}.py", f"{folder / n / '__init__.py'}")}
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]


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
    """The config that `dataclasses.asdict` or `to_json` wrote, now or in an older version.

    Raises:
        ValueError: for a field that does not exist, naming the nearest one, one that is given by two names, or a value
            of another type.
    """
    if not isinstance(values, dict):
        name = where.removesuffix(".") or "a config"
        raise ValueError(f"{name} must be an object with fields, got {str(values)[:60]}")
    values = current_names(values, cls)
    hints = typing.get_type_hints(cls)
    unknown = [name for name in values if name not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, 1)
        raise ValueError(f"unknown field {where}{unknown[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return cls(**{name: _value(v, hints[name], f"{where}{name}") for name, v in values.items()})


def differences(old: Config, new: Config) -> list[str]:
    """One line "field: old -> new" for each field that differs."""
    flat_old, flat_new = flatten(old), flatten(new)
    return [f"{k}: {flat_old[k]!r} -> {flat_new[k]!r}" for k in flat_old if flat_old[k] != flat_new[k]]


def _value(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(value, typing.cast(type, hint), f"{where}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if type(value) is int and (hint is float or (origin is types.UnionType and float in options)):
        value = float(value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_value(v, options[0], where) for v in value)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, options))}, got {value!r}")
    elif type(value) not in (options or (hint,)):
        raise ValueError(f"{where} must be {hint if options else hint.__name__}, got {value!r}")
    return value
