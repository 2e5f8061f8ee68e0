"""Files and folders that appear under their names complete or not at all."""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from ddpm_jax.process.output import explain_write_errors


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` when the body ends without an error.

    Until then it is NAME.part, in the same folder, which is made if it is missing.  After an error it is removed; the
    next process overwrites what a killed one has left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def atomic_write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file's content by a text, in UTF-8."""
    with atomic_file(path) as file:
        file.write(text.encode())


def atomic_write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Replaces a file's content by a JSON object, with a line for each of its keys."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    atomic_write_text(path, f"{{\n{lines}\n}}\n")


@contextlib.contextmanager
def atomic_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which is renamed to `folder` when the body ends without an error, and removed after one.

    What a killed process has left is removed by the next one on the same machine.

    Raises:
        ValueError: on entering, if `folder` exists and is not an empty folder, or is the working folder.
        OSError: naming the folder, if it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) or folder.samefile(".")):
        raise ValueError(f"{folder} exists: give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{folder.name}.{socket.gethostname()}"  # in the same parent folder, so that renaming suffices
    for abandoned in folder.parent.glob(f"{glob.escape(stem)}.*.part"):
        if not _is_running(abandoned.suffixes[-2].removeprefix(".")):
            shutil.rmtree(abandoned, ignore_errors=True)
    part = folder.with_name(f"{stem}.{os.getpid()}.part")
    part.mkdir()
    try:
        with explain_write_errors(folder):
            yield part
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """True if a process of this number may be running on this machine, also where that cannot be found out."""
    if os.name != "posix" or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
