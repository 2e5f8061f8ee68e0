"""Exclusive use of a folder by one process."""

import os
import pathlib
import socket
import sys
import time


class FolderLock:
    """Context manager that lets one process at a time use a folder.

    The kernel holds the lock (flock) and releases it when the process ends in any way, so no stale lock remains.  The
    file .lock names its owner.  A network file system locks between hosts if its server and mount options support it,
    and may keep the lock of a host that is gone; where they refuse, a warning is printed and nothing is locked.

    Raises, on entering:
        ValueError: if another process uses the folder.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: pathlib.Path):
        self.path = folder / ".lock"
        self._file: int | None = None

    def __enter__(self) -> "FolderLock":
        try:
            import fcntl
        except ImportError:  # not on Windows
            return self
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 500).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ValueError(f"{self.path.parent} is in use by {owner}; only one process can write to it") from None
        except OSError as error:
            os.close(file)
            print(f"warning: {self.path} cannot be locked here ({error.strerror}): make sure that no second process "
                  "uses this folder", file=sys.stderr)  # fmt: skip
            return self
        self._file = file
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n".encode())
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
