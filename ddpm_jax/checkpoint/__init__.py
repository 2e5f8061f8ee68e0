"""Checkpoints: the only package that uses orbax.

A run's state goes to `FOLDER/STEP`, one folder per named part (params, ema, opt_state, ...) and a JSON record `meta`.
The record holds the caller's values, shape and dtype of every array and a fingerprint of every part, which tell a wrong
configuration from a damaged file.  Arrays are stored whole, as one host has them, so a checkpoint does not depend on
the number of devices.
"""

import contextlib
import errno
import operator
import os
import pathlib
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ddpm_jax import process
from ddpm_jax.checkpoint import manager, records
from ddpm_jax.checkpoint.records import fingerprint

__all__ = ["CheckpointError", "CheckpointWarning", "Checkpoints", "Restored", "fingerprint"]

_T = TypeVar("_T")
_MAX_TRIES = 20
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


class CheckpointError(ValueError):
    """A checkpoint cannot be read: a file is missing, cut short, or not what was written."""


class CheckpointWarning(UserWarning):
    """The newest checkpoint cannot be read, and an older one was taken."""


class Restored(NamedTuple):
    """The contents of a checkpoint; `meta` is the values saved with it, and "fingerprint": {part: its fingerprint}."""

    step: int
    tree: Any  # numpy arrays in the structure of the target
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder; a context manager, which waits for the last save at its end.

    With several processes, all of them make one and call the same methods.  At most one program may have it open for
    writing; any number may read meanwhile, and if a step is removed while it is read, the newest is read instead.

    Args:
        folder: parent of the steps' folders; created if necessary.
        keep: number of the newest steps to keep.
        read_only: change nothing; there must be a checkpoint.

    Raises:
        ValueError: if keep is below 1.
        FileNotFoundError: if read_only and there is no checkpoint.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 3, read_only: bool = False) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        # orbax takes a relative path, reports success, and saves nothing
        self.folder = pathlib.Path(os.path.abspath(folder))
        self.read_only = read_only
        if read_only and not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder of checkpoints {self.folder}")
        self._has_saved, self._unverified = False, None  # the first save, until it has been read back
        with contextlib.ExitStack() as opened:
            path = opened.enter_context(manager.orbax_safe_path(self.folder))
            self._manager = self._retry_if_removed(lambda: manager.make_manager(path, keep, read_only))
            opened.callback(self._manager.close)
            self._reader = self._manager if read_only else manager.make_manager(path, keep, read_only=True)
            opened.callback(self._reader.close)
            if read_only and not self.steps():
                raise FileNotFoundError(f"{self.folder} holds no checkpoint")
            if not read_only:
                process.check_equal_across_processes({f"checkpoints in {self.folder}": self.steps()})
            self._resources = opened.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OSError as failed:
            if error is None:
                raise
            error.add_note(str(failed))

    def steps(self) -> list[int]:
        """The steps with complete checkpoints, in ascending order; waits for a save in progress."""
        self.wait()
        self._retry_if_removed(self._manager.reload)
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest of `steps`; None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint and returns when it has a copy of the state, which may then be donated.

        The folder of the step appears when it is complete.  An error while writing is raised by the next call of a
        method, or at the end of the context.  The first save is read back when it is complete, by the first process.

        Args:
            step: above every step saved before.
            state: a NamedTuple or dict of named parts, each a tree of arrays: whole on this host, or replicated.
            meta: JSON values, without the name "fingerprint"; a "step" must be this one.

        Raises:
            ValueError: if the folder is read-only, the step is not above the latest one or not meta's, a leaf is not an
                array of numbers with elements (None, text, PRNG key), or meta is not JSON.
            OSError: if the save before this one failed, or the first cannot be read back.
        """
        import orbax.checkpoint as ocp

        step, latest = operator.index(step), self._manager.latest_step()
        if self.read_only:
            raise ValueError(f"{self.folder} is open for reading only")
        if step < 0:
            raise ValueError(f"a step must not be negative, got {step}")
        if latest is not None and step <= latest:
            raise ValueError(f"cannot save step {step}: {self.folder} already holds step {latest}, and steps only rise")
        if meta.get("step", step) != step:
            raise ValueError(f"cannot save step {step} with the metadata of step {meta['step']}")
        if self._unverified is not None:
            self.wait()
        parts = {name: records.to_host(part, name) for name, part in records.named_parts(state).items()}
        items: dict[str, Any] = {name: ocp.args.StandardSave(p) for name, p in parts.items() if jax.tree.leaves(p)}
        items["meta"] = ocp.args.JsonSave(records.make_record(parts, meta))
        with self._explain_save_errors():
            saved = self._manager.save(step, args=ocp.args.Composite(**items))
        if not saved:
            raise OSError(f"orbax did not save step {step} to {self.folder}")
        if not self._has_saved:
            self._has_saved, self._unverified = True, (step, jax.tree.map(_placeholder, parts))

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The values saved with a step (None: the newest that can be read), without reading any array.

        Raises:
            FileNotFoundError, CheckpointError: as `restore`.
        """
        return self._read_step(step, lambda step: records.public_meta(self._read_record(step)))

    def restore(self, target: Any, *, step: int | None = None) -> Restored:
        """The whole state of a step.

        Without a step, if the newest cannot be read, an older one is taken with a `CheckpointWarning`, and the
        unreadable one is renamed to STEP.unreadable, unless the folder is open for reading only.

        Args:
            target: the state's structure, of arrays or `jax.ShapeDtypeStruct`s.
            step: None is the newest that can be read.

        Raises:
            FileNotFoundError: if there is no such step, or it is removed while it is read.
            CheckpointError: if it, or without a step every one, cannot be read.
            ValueError: if structure, shapes or dtypes differ from the target's; older steps are not tried.
        """

        def read(step: int) -> Restored:
            record, parts = self._read_record(step), records.named_parts(target)
            expected = {name: records.layout(part, name) for name, part in parts.items()}
            records.check_layout(record["parts"], expected, step)
            read_parts = {name: self._read_part(step, name, part, record) for name, part in parts.items()}
            tree = read_parts if isinstance(target, Mapping) else type(target)(**read_parts)
            return Restored(step, tree, records.public_meta(record))

        return self._read_step(step, read, set_aside=not self.read_only)

    def restore_part(self, name: str, target: Any, *, step: int | None = None) -> Restored:
        """One part of the state, such as "ema", without opening the files of the others.  Otherwise as `restore`."""

        def read(step: int) -> Restored:
            record = self._read_record(step)
            if name not in record["parts"]:
                raise ValueError(f"checkpoint {step} has no part {name!r}; it has {', '.join(record['parts'])}")
            records.check_layout({name: record["parts"][name]}, {name: records.layout(target, name)}, step)
            return Restored(step, self._read_part(step, name, target, record), records.public_meta(record))

        return self._read_step(step, read)

    def check(self) -> None:
        """Raises an OSError if the last save has failed, without waiting for it."""
        with self._explain_save_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
            OSError: if it failed, or the first cannot be read back.
        """
        with self._explain_save_errors():
            self._manager.wait_until_finished()
        # Once per run, at its start, to find a file system that loses data.
        unread, self._unverified = self._unverified, None
        if unread is None:
            return
        step, parts = unread

        def read_back(step: int) -> None:
            if jax.process_index() != 0:  # one reader is enough, and others may see the folder later
                return
            record = self._read_record(step)
            for name, part in parts.items():
                self._read_part(step, name, part, record)

        try:
            self._read_together(step, read_back)
        except CheckpointError as error:
            raise OSError(f"the save cannot be read back: {error} (renamed to {self._set_aside(step)})") from error

    def close(self) -> None:
        """As `wait`; also releases the manager's threads, after which no method may be called."""
        try:
            self.wait()
        finally:
            with self._explain_save_errors():
                self._resources.close()

    @contextlib.contextmanager
    def _explain_save_errors(self) -> Iterator[None]:
        """Turns any error of the body, that of a failed save, into an OSError; incomplete folders are removed."""
        try:
            yield
        except Exception as error:
            if not self.read_only and jax.process_index() == 0:
                for _ in range(10):  # another part of the checkpoint may still be written
                    left = list(self.folder.glob("*.orbax-checkpoint-tmp*")) if self.folder.is_dir() else []
                    for path in left:
                        shutil.rmtree(path, ignore_errors=True)
                    if not left:
                        break
                    time.sleep(0.1)
            text = str(error)  # of many lines, the system's message among them
            reasons = [os.strerror(number) for number in _DISK_ERRNOS if os.strerror(number) in text]
            reason = reasons[0] if reasons else process.first_line(error)
            raise OSError(f"saving to {self.folder} failed: {reason}") from error

    def _retry_if_removed(self, scan: Callable[[], _T]) -> _T:
        """scan(), which lists the folder; a reader tries again if a step is removed meanwhile."""
        for _ in range(_MAX_TRIES if self.read_only else 0):
            try:
                return scan()
            except (FileNotFoundError, NotADirectoryError):  # the latter if orbax finds a path that is then removed
                continue
        return scan()

    def _read_step(self, step: int | None, read: Callable[[int], _T], set_aside: bool = False) -> _T:
        """read(step), or read of the newest step for which it raises no CheckpointError."""
        for _ in range(_MAX_TRIES):
            result = self._try_read_step(step, read, set_aside)
            if result is not None:
                return result
        raise FileNotFoundError(
            f"the newest checkpoint in {self.folder} was removed {_MAX_TRIES} times while it was read"
        )

    def _try_read_step(self, step: int | None, read: Callable[[int], _T], set_aside: bool) -> _T | None:
        """As `_read_step`; None if a trainer, which keeps few steps, has removed the newest meanwhile."""
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint")
        if step is not None:
            if step not in steps:
                raise FileNotFoundError(
                    f"{self.folder} holds no checkpoint {step}; it holds {', '.join(map(str, steps))}"
                )
            steps = [step]
        unreadable: dict[int, CheckpointError] = {}
        for each in reversed(steps):
            try:
                result = self._read_together(each, read)
            except CheckpointError as error:
                if not self.read_only or (self.folder / str(each)).exists():
                    unreadable[each] = error
                    continue
                if step is None:
                    return None
                removed = f"checkpoint {each} in {self.folder} was removed while it was read"
                raise FileNotFoundError(f"{removed}; without a step the newest is read") from error
            for other, error in unreadable.items():
                aside = f" (renamed to {self._set_aside(other)})" if set_aside else ""
                warnings.warn(f"{error}; step {each} is taken instead{aside}", CheckpointWarning, stacklevel=4)
            return result
        raise CheckpointError("; ".join(map(str, unreadable.values())))

    def _read_together(self, step: int, read: Callable[[int], _T]) -> _T:
        """read(step); of several processes that train, all raise a CheckpointError if one does."""
        try:
            result = read(step)
        except CheckpointError:
            if not self.read_only:
                process.any_process(True)
            raise
        if not self.read_only and process.any_process(False):
            raise self._unreadable_error(step, "another process says why")
        return result

    def _set_aside(self, step: int) -> str:
        """Renames an unreadable step's folder, so that its step can be saved again; returns the new name."""
        taken = int(process.broadcast(np.int32(len(list(self.folder.glob(f"{step}.unreadable*"))))))
        name = f"{step}.unreadable" + (f"-{taken + 1}" if taken else "")
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(self.folder / name)
        process.any_process(False)  # the others wait for the renaming
        self._manager.reload()
        return name

    def _read_record(self, step: int) -> dict[str, Any]:
        """The JSON record of a step, verified."""
        import orbax.checkpoint as ocp

        try:
            record = self._reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            intact = record["sha256"] == records.json_digest({name: record[name] for name in ("meta", "parts")})
            recorded_step = record["meta"].get("step", step)
        except Exception as error:
            raise self._unreadable_error(step, f"its record meta: {process.first_line(error)}") from error
        if not intact:
            raise self._unreadable_error(step, "its record meta is not what was written")
        if recorded_step != step:
            raise self._unreadable_error(step, f"its record meta is that of step {recorded_step}")
        return record

    def _read_part(self, step: int, name: str, target: Any, record: dict[str, Any]) -> Any:
        """One part of a step, verified, in the structure of its target."""
        import orbax.checkpoint as ocp

        tree = target
        if jax.tree.leaves(target):
            shapes = jax.tree.map(_placeholder, target)
            try:
                args = ocp.args.Composite(**{name: ocp.args.StandardRestore(shapes)})
                tree = self._reader.restore(step, args=args)[name]
            except MemoryError:
                raise
            except Exception as error:
                raise self._unreadable_error(step, f"its part {name!r}: {process.first_line(error)}") from error
        if fingerprint(tree) != record["parts"][name]["fingerprint"]:
            raise self._unreadable_error(step, f"its part {name!r} is not what was written: the fingerprint differs")
        return tree

    def _unreadable_error(self, step: int, why: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {step} in {self.folder} cannot be read: {why}")


def _placeholder(leaf: Any) -> np.ndarray:
    """A numpy array without memory of its own, for which orbax restores a numpy array."""
    return np.broadcast_to(np.zeros((), records.dtype_of(leaf)), np.shape(leaf))
