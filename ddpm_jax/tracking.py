"""Tracking of a run: metrics.jsonl and a progress bar."""

import contextlib
import json
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TextIO

_BLOCK = 1 << 16  # bytes
_LINE_SECONDS = 10.0  # between two plain lines of progress
_WAIT_SECONDS = 20.0  # without progress, until a plain line says so
_REFRESH_SECONDS = 1.0  # between two refreshes of a terminal
_STAGE_SECONDS = 2.0  # before a stage or an activity is shown at all
_CLEAR = "\r\x1b[K"  # of a terminal's line

_refreshed: list[Callable[[], None]] = []  # of the open progress and activities, the innermost last: it alone is called


class MetricsLog:
    """A file of metrics, one strict JSON object per line.

    NaN and infinities, which strict JSON does not have, are written as null.  A line is flushed when `write` returns;
    an incomplete last line of a killed process is dropped.  Of an existing file only the end is read, from the last
    line back to the first of the step `start`, as steps rise.

    Args:
        path: the file; made at the first line.
        start: the step from which a run is resumed: lines of later steps, which it will write again, are dropped.
            None keeps them all.
        active: whether to use the file at all: of several processes, only the main one does.

    Attributes:
        start_rows: the lines of the step `start`, the last one first.
        followers: functions that are called with each line after it is written, as `read_metrics` returns it.

    Raises:
        ValueError: if one of the lines read is not a JSON object.
    """

    def __init__(self, path: str | os.PathLike[str], start: int | None = None, *, active: bool = True) -> None:
        self.path, self.active = pathlib.Path(path), active
        self.start_rows: list[dict[str, Any]] = []
        self.followers: list[Callable[[dict[str, Any]], None]] = []
        if not active or not self.path.exists():
            return
        stays, apart = 0, b""  # the end of what is kept, and later lines without a step, kept too
        with self.path.open("r+b") as file:
            for offset, line in _lines_from_end(file):
                row = _parse_row(line, lambda offset=offset: f"{path}, line {_line_number(file, offset)}")
                after = offset + len(line) + 1
                step = row.get("step", start)
                if start is None or step < start:
                    stays = stays or after
                    break
                if "step" not in row and not stays:
                    apart = line + b"\n" + apart
                elif step == start:
                    stays = stays or after
                    self.start_rows.append(row)
            if stays + len(apart) != file.seek(0, os.SEEK_END):
                file.truncate(stays)
                file.seek(stays)
                file.write(apart)

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends a line: names with numbers, text, None, numpy or jax arrays, or dicts and lists of these."""
        if self.active:
            row = _to_json_value(values)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            for follow in tuple(self.followers):  # one may remove itself
                follow(row)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics file; an incomplete last one is left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the first other line that is not a JSON object, or whose step is not a number.
    """
    with pathlib.Path(path).open("rb") as file:
        return [
            _parse_row(line[:-1], lambda number=number: f"{path}, line {number}")
            for number, line in enumerate(file, 1)
            if line.endswith(b"\n")
        ]


class Progress:
    """Progress of a loop: a bar on a terminal, otherwise a plain line every 10 seconds and at both ends.

    The rate is counted from the first update on, as the time before it is mostly compilation.  As a context manager it
    also shows that it waits: the bar's clock moves each second, and a plain line comes after 20 seconds without one.

    Args:
        total, start: last and first count of the loop.
        unit: name of what is counted.
        stream: where to write; None is sys.stderr.
        active: whether to write at all.
    """

    def __init__(
        self, total: int, *, start: int = 0, unit: str = "steps", stream: TextIO | None = None, active: bool = True
    ) -> None:
        self.total, self.unit, self.active = total, unit, active
        self.stream = sys.stderr if stream is None else stream
        self.started, self.last_printed, self.bar = (start, time.monotonic()), -math.inf, None
        self.done, self.done_time, self.loss = *self.started, ""
        self.updates, self.refreshing = 0, contextlib.ExitStack()
        if active and self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit=f" {unit}", file=self.stream, dynamic_ncols=True)

    def update(self, done: int, values: Mapping[str, Any]) -> None:
        """Shows that `done` of the total are done, and the last "loss" of any values."""
        if values.get("loss") is not None:
            self.loss = f"loss {float(values['loss']):.4f}"
        now, (start_done, start_time) = time.monotonic(), self.started
        rate = (done - start_done) / (now - start_time) if now > start_time else 0.0
        self.updates += 1
        if self.updates == 1:
            self.started = done, now
        if done > self.done:
            self.done, self.done_time = done, now
        if self.bar is not None:
            self.bar.set_postfix_str(self.loss, refresh=False)
            self.bar.update(done - self.bar.n)
        elif done >= self.total or now - self.last_printed >= _LINE_SECONDS:
            shown = [self.loss] if self.loss else []
            if rate > 0:
                shown.append(f"{rate:.3g} {self.unit}/s")
            if rate > 0 and done < self.total:
                shown.append(f"{format_duration((self.total - done) / rate)} left")
            self._print(shown)

    def __enter__(self) -> "Progress":
        if self.active:
            self.refreshing.enter_context(_refresh_often(self._show_waiting))
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is and the cursor below it."""
        self.refreshing.close()
        if self.bar is not None:
            self.bar.close()

    def _show_waiting(self) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.bar.refresh()
        elif now - max(self.last_printed, self.started[1]) >= _WAIT_SECONDS:
            self._print([f"the next in progress for {format_duration(now - self.done_time)}"])

    def _print(self, shown: list[str]) -> None:
        self.last_printed = time.monotonic()
        if self.active:
            print(", ".join([f"{self.done} of {self.total} {self.unit}", *shown]), file=self.stream, flush=True)


@contextlib.contextmanager
def activity(what: str, *, stream: TextIO | None = None, active: bool = True) -> Iterator[Callable[[str], None]]:
    """Shows what the body does and for how long, if that is over two seconds, and at last how long it took.

    On a terminal a line is refreshed each second; otherwise there is a line every 20 seconds.  What is yielded sets
    another text.  Stream and active are as of `Progress`.
    """
    stream, started = sys.stderr if stream is None else stream, time.monotonic()
    is_terminal, text, printed = active and stream.isatty(), what, started

    def set_text(new: str) -> None:
        nonlocal text
        text = new

    def refresh() -> None:
        nonlocal printed
        now = time.monotonic()
        if is_terminal and now - started >= _STAGE_SECONDS:
            print(f"{_CLEAR}{text}: {format_duration(now - started)}", end="", file=stream, flush=True)
        elif not is_terminal and now - printed >= _WAIT_SECONDS:
            printed = now
            print(f"{text}: {format_duration(now - started)}", file=stream, flush=True)

    try:
        with _refresh_often(refresh) if active else contextlib.nullcontext():
            yield set_text
    finally:
        if is_terminal:
            print(_CLEAR, end="", file=stream, flush=True)
    seconds = time.monotonic() - started
    if active and seconds >= _STAGE_SECONDS:
        print(f"{what} took {format_duration(seconds)}", file=stream, flush=True)


def show_first_call(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first call, which compiles it, is an `activity` of this name.

    It is shown only within a `Progress` or an activity of a program: a library writes nothing.
    """
    called = False

    def call(*args: Any) -> Any:
        nonlocal called
        first, called = not called, True
        with activity(what, active=bool(_refreshed)) if first else contextlib.nullcontext():
            return function(*args)

    return call


@contextlib.contextmanager
def _refresh_often(refresh: Callable[[], None]) -> Iterator[None]:
    """Calls a function each second, in a thread, until the body ends; not while another context like this is open."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_REFRESH_SECONDS):
            if _refreshed[-1:] == [refresh]:
                refresh()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    _refreshed.append(refresh)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        _refreshed.remove(refresh)
        thread.join()


def stage_progress(*, stream: TextIO | None = None, active: bool = True) -> Callable[[str, int, int], None]:
    """A function (stage, done, total) that shows a `Progress` for each stage, as of images "checked", then "loaded".

    A stage of less than two seconds is not shown; stream and active are as of `Progress`.
    """
    start_times: dict[str, float] = {}
    shown: dict[str, Progress] = {}

    def update(stage: str, done: int, total: int) -> None:
        started = start_times.setdefault(stage, time.monotonic())
        if stage not in shown and done < total and time.monotonic() - started >= _STAGE_SECONDS:
            shown[stage] = Progress(total, unit=f"images {stage}", stream=stream, active=active)
        if stage in shown:
            shown[stage].update(done, {})
            if done == total:
                shown[stage].close()

    return update


def format_duration(seconds: float) -> str:
    """A duration as text: "42 s", "7 min 05 s", "1 h 03 min", "2 d 05 h".

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be finite and not negative, got {seconds}")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def _lines_from_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a file from the last to the first, each with its offset."""
    offset, held = file.seek(0, os.SEEK_END), b""
    while offset:
        size = min(_BLOCK, offset)
        offset -= size
        file.seek(offset)
        held = file.read(size) + held
        *lines, _ = held.split(b"\n")  # what follows the last newline is empty or incomplete
        whole, line_start = lines[1:] if offset else lines, offset + sum(len(line) + 1 for line in lines)
        for line in reversed(whole):
            line_start -= len(line) + 1
            yield line_start, line
        held = lines[0] + b"\n" if lines else held


def _line_number(file: BinaryIO, offset: int) -> int:
    """The number of the line at an offset of a file."""
    file.seek(0)
    return file.read(offset).count(b"\n") + 1


def _parse_row(line: bytes, where: Callable[[], str]) -> dict[str, Any]:
    """The object in a line.

    Raises:
        ValueError: naming where it is, if it holds none, or its step is not a number.
    """
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        row = None
    text = line[:60].decode(errors="backslashreplace")
    if not isinstance(row, dict):
        raise ValueError(f"{where()}: not a JSON object: {text!r}")
    if not isinstance(row.get("step", 0), int):
        raise ValueError(f"{where()}: its step is not a number: {text!r}")
    return row


def _to_json_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and jax, without importing either
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _to_json_value(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
