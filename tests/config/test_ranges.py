"""Every number of a config and of the programs' flags has a range, and what lies outside is refused by its name."""

import dataclasses
import math
import typing

import pytest
from run_programs import run

from ddpm_jax import config as configs
from ddpm_jax.config import ranges
from ddpm_jax.config.flags import Prepare
from ddpm_jax.model import optimizer
from ddpm_jax.programs import sample, train
from ddpm_jax.programs.convert import COMMANDS as CONVERT
from ddpm_jax.programs.evaluate import COMMANDS as EVALUATE
from ddpm_jax.programs.preflight import Arguments as Preflight

PROGRAMS = [
    sample.Arguments, train.Arguments, Preflight, Prepare, *(of for of, _ in EVALUATE.values()), *CONVERT.values(),
]  # fmt: skip
IN_KEYS = {"seed", "start", "first", "second"}  # which are asked whether there are such seeds and images


def fields(cls, path=()):
    """(path, type with its range) of each field of a dataclass and of those in it."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        hint = hint.__origin__ if dataclasses.is_dataclass(getattr(hint, "__origin__", None)) else hint
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, (*path, name))
        else:
            yield (*path, name), hint


def numeric(hint) -> bool:
    return hint in (int, float) or any(map(numeric, typing.get_args(hint)))


def changed(values, path, value):
    """The dataclass with another value at a path, in a tuple if there is one."""
    name, *rest = path
    if rest:
        return dataclasses.replace(values, **{name: changed(getattr(values, name), rest, value)})
    in_tuple = "tuple" in str(typing.get_type_hints(type(values))[name])
    return dataclasses.replace(values, **{name: (value,) if in_tuple else value})


def outside(interval: str) -> list[float]:
    """Numbers below, at open ends, above, and none."""
    low, high = map(float, interval[1:-1].split(", "))
    ends = [end for end, open_ in ((low, interval[0] == "("), (high, interval[-1] == ")")) if open_]
    over = [] if high == math.inf else [high + max(1, abs(high) * 1e-3), 10**400, math.inf]
    return [low - max(1, abs(low) * 1e-3), -(10**400), -math.inf, math.nan, *ends, *over]


def inside(interval: str) -> list[float]:
    low, high = map(float, interval[1:-1].split(", "))
    return [end for end, closed in ((low, interval[0] == "["), (high, interval[-1] == "]")) if closed]


CONFIG = [(path, hint) for path, hint in fields(configs.Config) if numeric(hint) and path[-1] not in IN_KEYS]


@pytest.mark.parametrize(("path", "hint"), CONFIG, ids=[".".join(path) for path, _ in CONFIG])
def test_a_config_with_a_number_outside_its_range_is_refused_by_name(path, hint):
    name, interval = ".".join(path), ranges.interval_of(hint)
    for value in outside(interval):
        with pytest.raises(ValueError, match=rf"^{name} must lie in .*, got "):
            configs.check(changed(configs.Config(), path, value))
    for value in inside(interval):
        ranges.check(changed(configs.Config(), path, value))


def test_a_config_without_a_source_is_refused():
    with pytest.raises(ValueError, match=r"^data\.source is empty: give a value, or leave it out"):
        configs.check(configs.from_dict({"data": {"source": ""}}))


def flags(cls):
    """The programs' own numbers: what a config's fields say is checked as those."""
    hints = typing.get_type_hints(cls)
    for path, hint in fields(cls):
        if numeric(hint) and hints[path[0]] is not configs.Config and path[-1] not in IN_KEYS:
            yield path, ranges.interval_of(hint)


@pytest.mark.parametrize("cls", PROGRAMS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_flag_outside_its_range_is_refused_by_name(cls):
    hints, required = (
        typing.get_type_hints(cls),
        [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING],
    )
    some = {configs.Config: configs.Config(), str: "given"}
    values = cls(**{field.name: some.get(hints[field.name], (8, 8, 1)) for field in required})
    ranges.check_flags(values)
    for path, interval in flags(cls):
        flag = f"--{path[-1].replace('_', '-')}"
        for value in outside(interval):
            with pytest.raises(ValueError, match=rf"^{flag} must lie in .*, got "):
                ranges.check_flags(changed(values, path, value))
        for value in inside(interval):
            ranges.check_flags(changed(values, path, value))


def test_infinity_never_clips():
    config = configs.from_dict({"optim": {"clip": math.inf}})
    assert config.optim.clip is None
    assert configs.from_dict(dataclasses.asdict(config)) == config
    assert optimizer(config).init({}) is not None


def test_a_file_with_numbers_of_another_type_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from ddpm_jax.config import Config, Optim\nconfig = Config(batch=64.0)\n")
    with pytest.raises(ValueError, match=r"mine\.py: batch must be int, got 64\.0"):
        configs.load(path)
    path.write_text("from ddpm_jax.config import Config, Optim\nconfig = Config(optim=Optim(clip=2))\n")
    assert configs.from_dict(dataclasses.asdict(configs.load(path))).optim.clip == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train.py", "configs/digits.py", "--workdir", "x", "--optim.clip", "nan"), "optim.clip must lie in (0, inf]"),
        (("-m", "ddpm_jax", "evaluate", "x", "samples", "--num", 0), "--num must lie in [1, 4294967280], got 0"),
        (("-m", "ddpm_jax", "preflight", "configs/digits.py", "--images", 0), "--images must lie in [1, "),
    ],
)
def test_the_programs_refuse_it_before_anything_is_done(args, message):
    shown = run(*args, status=2)
    assert message in shown.stderr and "Traceback" not in shown.stderr
