"""Snapshots: a tree of arrays in one file, FOLDER/STEP.npz, with a record of its content; written by one process."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax import process
from ddpm_jax.checkpoint import CheckpointError, records

_PART = "averages"


def steps(folder: pathlib.Path) -> list[int]:
    """The steps that have a snapshot, in ascending order."""
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdigit())


def save(folder: pathlib.Path, step: int, tree: Any, meta: Mapping[str, Any]) -> None:
    """Writes the snapshot of a step, or none, in place of one that is there: whole arrays of this host, JSON values."""
    tree = records.to_host(tree, _PART)
    record = json.dumps(records.make_record({_PART: tree}, meta))
    with process.atomic_file(folder / f"{step}.npz") as file:
        np.savez(file, record=np.array(record), **dict(records.named_leaves(tree)))


def remove_after(folder: pathlib.Path, step: int) -> None:
    """Removes the snapshots of later steps, which a continued run takes again."""
    for later in steps(folder):
        if later > step:
            (folder / f"{later}.npz").unlink(missing_ok=True)


def meta(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """The values saved with a snapshot, without reading its arrays; a CheckpointError if they cannot be read."""
    return _read(folder, step, _verified_record)["meta"]


def load(folder: pathlib.Path, step: int, target: Any) -> Any:
    """The tree of a snapshot as numpy arrays, verified, in the structure of a tree of arrays or shapes.

    Raises:
        CheckpointError: if it cannot be read.
        ValueError: if its shapes or dtypes are not the target's.
    """
    record = _read(folder, step, _verified_record)
    records.check_layout(record["parts"], {_PART: records.layout(target, _PART)}, step)
    paths = [path for path, _ in records.named_leaves(target)]
    leaves = _read(folder, step, lambda archive: [archive[path] for path in paths])
    tree = jax.tree.unflatten(jax.tree.structure(target), leaves)
    if records.fingerprint(tree) != record["parts"][_PART]["fingerprint"]:
        raise _unreadable(folder, step, "the fingerprint differs")
    return tree


def _verified_record(archive: Any) -> dict[str, Any]:
    record = json.loads(str(archive["record"]))
    if record["sha256"] != records.json_digest({name: record[name] for name in ("meta", "parts")}):
        raise ValueError("its record is not what was written")
    return record


def _read(folder: pathlib.Path, step: int, read: Any) -> Any:
    try:
        with (folder / f"{step}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return read(archive)
    except MemoryError:
        raise
    except Exception as error:  # an archive may be damaged in any way
        raise _unreadable(folder, step, process.first_line(error)) from error


def _unreadable(folder: pathlib.Path, step: int, why: str) -> CheckpointError:
    return CheckpointError(
        f"the snapshot {folder / f'{step}.npz'} cannot be read: {why}; without this file the others are used"
    )
