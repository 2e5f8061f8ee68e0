"""Orbax's manager of a folder of checkpoints: its path, what it keeps, and its log messages."""

import contextlib
import logging
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def orbax_safe_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder's path as orbax can take it: a link to it where there is more in its name than letters and the like.

    Brackets are a pattern to orbax, which then saves what nothing can read; a backslash and "gs:" are not taken as they
    are either.
    """
    if re.fullmatch(r"[\w./ ,=+@-]*", str(folder)):
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as home:
        link = pathlib.Path(home) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def make_manager(folder: pathlib.Path, keep: int, keep_every: int | None, read_only: bool) -> Any:
    """The manager of a folder's checkpoints, see `Checkpoints`; the folder's path is a `orbax_safe_path`."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

    absl = logging.getLogger("absl")
    if _not_from_orbax not in absl.filters:
        absl.addFilter(_not_from_orbax)
    keepers: list[Any] = [policies.LatestN(keep)]
    if keep_every is not None:
        keepers.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keepers),
        # what a killed save left behind; a reader would delete what a trainer is just writing
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        # made in the background, a folder that cannot be made leaves threads waiting for it for five minutes
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )
    return ocp.CheckpointManager(folder, options=options)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """A log filter: orbax logs pages about errors that it also raises.  A user who asks for INFO gets them."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname or logging.getLogger("absl").isEnabledFor(logging.INFO)
