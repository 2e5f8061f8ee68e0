"""Output of a program: streams that never fail, errors that name the folder, the first line of an error."""

import contextlib
import errno
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

_SILENCE_SECONDS = 8.0


class SafeStream(io.TextIOWrapper):
    """A text stream of the console that never fails.

    A character that its encoding lacks is written as an escape, `\\xb1`.  From the first error on, output is discarded:
    silently if a pipe has no reader any more, otherwise, as on a full disk, with a message on standard error.
    """

    last_write = time.monotonic()
    """When one of these streams was last written to."""

    def __init__(self, stream: io.TextIOWrapper, title: str):
        self._title = title
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors="backslashreplace",
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip

    def write(self, text: str, /) -> int:
        SafeStream.last_write = time.monotonic()
        try:
            return super().write(text)
        except OSError as error:
            self._redirect_to_null(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._redirect_to_null(error)

    def _redirect_to_null(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a closed terminal
            print(f"{self._title} cannot be written ({error.strerror}): going on without it", file=sys.stderr)


@contextlib.contextmanager
def explain_write_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager around code that writes into a folder.

    Raises:
        OSError: naming the folder, if the error of the body names no file, as numpy's for a full disk.
    """
    try:
        yield
    except OSError as error:
        of_a_write = error.errno is not None or "written" in str(error)
        if error.filename is not None or not of_a_write:
            raise
        raise OSError(f"{os.fspath(folder)} cannot be written: {error}") from error


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, cut at 300 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def run_main(main: Callable[[list[str]], int]) -> NoReturn:
    """Runs a program on the command line and ends the process with the status that it returns, 130 after Ctrl-C."""
    for name, title in {"stdout": "standard output", "stderr": "standard error"}.items():
        stream = getattr(sys, name)
        if stream is None:  # the process was started without it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, SafeStream(stream, title))
    threading.Thread(target=_break_silence, name="silence", daemon=True).start()
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)  # a normal exit while XLA compiles ends in a segmentation fault
    sys.exit(status)


def _break_silence() -> None:
    """Prints a line whenever nothing was printed for 8 seconds, or 20 where standard output is no terminal."""
    while True:
        time.sleep(_SILENCE_SECONDS / 8)
        silent = time.monotonic() - SafeStream.last_write
        # of several processes, all but the first have another standard output
        if isinstance(sys.stdout, SafeStream) and silent > _SILENCE_SECONDS * (1 if sys.stdout.isatty() else 2.5):
            print(f"still running; nothing to show for {silent:.0f} s", file=sys.stderr, flush=True)
