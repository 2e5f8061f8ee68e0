"""TPU slices by name, and their devices as libtpu describes them to the compiler; no TPU is needed."""

import itertools
import os
import re
from typing import Any, NamedTuple

from ddpm_jax import process
from ddpm_jax.process import tpu

_GRIDS_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_SQUARE_GRIDS = {4: "2x2", 16: "4x4", 64: "8x8", 128: "8x16", 256: "16x16"}
_GRIDS_3D = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
}  # fmt: skip


class Generation(NamedTuple):
    """A generation of TPUs."""

    product: str  # the first part of its slices' product names, PRODUCT-NUMBER
    cores: int  # how many units of that number a chip is (products before v5e count cores)
    grids: dict[int, str]  # its slices, by the number of chips
    options: dict[str, Any]  # further options for libtpu


GENERATIONS = {
    "v2": Generation("v2", 2, _SQUARE_GRIDS, {}),
    "v3": Generation("v3", 2, _SQUARE_GRIDS, {}),
    # the two cores of a v4 chip are one device on a real machine, but not to libtpu without these options
    "v4": Generation("v4", 2, _GRIDS_3D, {"chip_config_name": "megacore"}),
    "v5e": Generation("v5litepod", 1, _GRIDS_2D, {}),
    "v5p": Generation("v5p", 2, _GRIDS_3D, {}),
    "v6e": Generation("v6e", 1, _GRIDS_2D, {}),
}

_SINGLE_HOST_GRIDS = {"1x1": [1, 1, 1], "2x4": [2, 4, 1]}
"""Grids of the v5e and v6e that are one host, which libtpu would not guess."""


class Slice(NamedTuple):
    """A slice of TPUs."""

    name: str  # as libtpu knows it, GENERATION:GRID
    product: str | None  # its product name; None if it has none
    options: dict[str, Any]  # further options for libtpu


def find_slice(name: str) -> Slice:
    """The slice of a name: a product such as v5litepod-16, v4-32 or v6e-4, or generation and grid, such as v5e:4x4.

    Raises:
        ValueError: if there is none of this name; the known ones are listed.
    """
    generation, colon, grid = name.partition(":")
    if not colon:
        generation, grid = _parse_product(name)
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", grid):
        raise ValueError(f"unknown topology {name!r}; known are {known_names()}")
    kind = GENERATIONS[generation]
    chips = {grid: chips for chips, grid in kind.grids.items()}.get(grid)
    options = dict(kind.options)
    if kind.grids is _GRIDS_2D and grid in _SINGLE_HOST_GRIDS:
        options["chips_per_host_bounds"] = _SINGLE_HOST_GRIDS[grid]
    return Slice(f"{generation}:{grid}", f"{kind.product}-{chips * kind.cores}" if chips else None, options)


def known_names() -> str:
    """The products, and how grids are named, as one line."""
    products = [
        f"{kind.product}-{'|'.join(str(chips * kind.cores) for chips in kind.grids)}" for kind in GENERATIONS.values()
    ]
    return ", ".join(products) + f"; or a grid of chips of {', '.join(GENERATIONS)}, such as v5e:4x4 or v4:2x2x4"


def set_environment() -> None:
    """Sets the environment, before JAX starts, so that JAX and libtpu search for no TPU; set variables stay.

    libtpu gets the same flags as in the programs.
    """
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    tpu.set_libtpu_flags()


def devices(tpu_slice: Slice) -> list[Any]:
    """The devices of a slice: programs can be compiled for them, and nothing can be put on them.

    Raises:
        ModuleNotFoundError: if libtpu is not installed.
        ValueError: if libtpu knows no such slice.
    """
    if tpu.libtpu_path() is None:
        raise ModuleNotFoundError(
            "compiling for a TPU needs its compiler, libtpu (no TPU, but Linux): pip install 'ddpm-jax[tpu]'"
        )
    import jax
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(tpu_slice.name, platform="tpu", **tpu_slice.options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = process.first_line(error)
        message = f"libtpu refuses the topology {tpu_slice.name!r}: {reason}; known are {known_names()}"
        raise ValueError(message) from error


def memory_limit(devices: list[Any]) -> int | None:
    """Bytes of memory that a program may use on each device, from the compiler; None if it reports none.

    A program that needs more than any device has is compiled: the error reports the available memory.
    """
    import jax
    import jax.numpy as jnp

    from ddpm_jax.preflight import compile_stats

    huge = jax.ShapeDtypeStruct((len(devices), 2**15, 2**30), jnp.float32)
    try:
        jax.pmap(lambda x: x + 1, devices=devices).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return compile_stats.parse_out_of_memory(str(error))[1]
    return None


def next_larger(tpu_slice: Slice) -> str | None:
    """The next larger slice of the same generation, by its product name; None if there is none."""
    generation, _, grid = tpu_slice.name.partition(":")
    kind = GENERATIONS[generation]
    for (_, smaller), (chips, _) in itertools.pairwise(kind.grids.items()):
        if smaller == grid:
            return f"{kind.product}-{chips * kind.cores}"
    return None


def _parse_product(name: str) -> tuple[str, str]:
    """Generation and grid of a product; empty, if there is no such product."""
    product, _, number = name.partition("-")
    for generation, kind in GENERATIONS.items():
        if product in (kind.product, generation) and number.isdecimal() and int(number) % kind.cores == 0:
            return generation, kind.grids.get(int(number) // kind.cores, "")
    return "", ""
