"""Flags of libtpu, the TPU's compiler and driver, which it reads when it is loaded."""

import importlib.util
import mmap
import os
import pathlib

DISABLED_FLAGS = ("xla_tpu_run_space_to_batch", "xla_tpu_run_space_to_batch_on_new_platforms")
"""Flags set to false.  For fewer than 8 images a chip the compiler otherwise cuts every image into strips, as a larger
batch, and recomputes their edges between any two convolutions: up to three times the step (docs/performance.md).
"""


def set_libtpu_flags() -> None:
    """Adds `DISABLED_FLAGS` to LIBTPU_INIT_ARGS, except those already set there.

    libtpu ends a process that names an unknown flag, so only flags that its file contains are added.
    """
    current = os.environ.get("LIBTPU_INIT_ARGS", "")
    missing = [flag for flag in DISABLED_FLAGS if f"--{flag}" not in current.replace("=", " ").split()]
    path = libtpu_path()
    if path is None or not missing:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        added = [f"--{flag}=false" for flag in missing if content.find(flag.encode() + b"\0") >= 0]
    if added:
        os.environ["LIBTPU_INIT_ARGS"] = " ".join([current, *added]).strip()


def libtpu_path() -> pathlib.Path | None:
    """The path of libtpu's file, found as JAX does; None if there is none."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    if named and pathlib.Path(named).is_file():
        return pathlib.Path(named)
    spec = importlib.util.find_spec("libtpu")
    found = [pathlib.Path(folder, "libtpu.so") for folder in (spec and spec.submodule_search_locations) or ()]
    return next((path for path in found if path.is_file()), None)
