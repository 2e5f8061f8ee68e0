"""Orbax's manager of a folder of checkpoints: its path, retention and log messages."""

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
    """A path for orbax: the folder's own or, if it has special characters, that of a link to it.

    Orbax takes brackets for a pattern, and then saves files that cannot be read, and interprets backslashes and "gs:".
    """
    if re.fullmatch(r"[\w./ ,=+@-]*", str(folder)):
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as home:
        link = pathlib.Path(home) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def make_manager(folder: pathlib.Path, keep: int, read_only: bool) -> Any:
    """Orbax's manager of a folder, an `orbax_safe_path`; see `Checkpoints`.

    A reader is this process's alone: at orbax's barriers, others would wait for one that cannot read.
    """
    import jax
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy

    logging.getLogger("absl").addFilter(_not_from_orbax)  # which a logger adds only once
    alone = ocp.options.MultiprocessingOptions(jax.process_index(), {jax.process_index()})
    options = ocp.CheckpointManagerOptions(
        multiprocessing_options=alone if read_only else ocp.options.MultiprocessingOptions(),
        create=not read_only,
        preservation_policy=preservation_policy.LatestN(keep),
        # of killed saves; a reader would delete those of a trainer's save in progress
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        # in the background, threads wait five minutes for a folder that cannot be created
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )
    return ocp.CheckpointManager(folder, options=options)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """A log filter against orbax's pages on errors that it also raises; at level INFO they are shown."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname or logging.getLogger("absl").isEnabledFor(logging.INFO)
