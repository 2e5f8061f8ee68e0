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
from typing import Any, BinaryIO, Self, TextIO

_BLOCK = 1 << 16  # bytes
_LINE_SECONDS = 10.0  # between two plain lines of progress
_WAIT_SECONDS = 15.0  # without progress, until a plain line says so
_REFRESH_SECONDS = 1.0  # between two refreshes of a terminal
_STAGE_SECONDS = 2.0  # before a stage or an activity is shown at all
_CLEAR = "\r\x1b[K"  # of a terminal's line


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


class _Shown:
    """A display during the body of a `with`, refreshed each second unless another was opened within."""

    def __init__(self, stream: TextIO | None, active: bool) -> None:
        self.stream, self.active = sys.stderr if stream is None else stream, active
        self.is_terminal, self.ended = active and self.stream.isatty(), threading.Event()
        self.thread = threading.Thread(target=self._refresh_often, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self.active:
            _open.append(self)
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.ended.set()
        if self in _open:
            _open.remove(self)
            self.thread.join()

    def _refresh_often(self) -> None:
        while not self.ended.wait(_REFRESH_SECONDS):
            if _open[-1:] == [self]:
                self.refresh()

    def refresh(self) -> None:
        """Shows that time passes."""
        raise NotImplementedError

    def show_part(self, fraction: float, size: int) -> None:
        """Shows how much of the next `size` units is done."""
        raise NotImplementedError

    def _write(self, text: str, end: str = "\n") -> None:
        if self.active:
            print(text, end=end, file=self.stream, flush=True)


_open: list[_Shown] = []  # the innermost last


class Progress(_Shown):
    """Progress of a loop: a bar on a terminal, otherwise a plain line every 10 seconds and at both ends.

    The rate is counted from the first units on, as the time before them is mostly compilation.  As a context manager it
    also shows that it waits: the bar's clock moves each second, and a plain line comes after 15 seconds without one.

    Args:
        total, start: last and first count of the loop.
        unit: name of what is counted.
        stream: where to write; None is sys.stderr.
        active: whether to write at all.
    """

    def __init__(
        self, total: int, *, start: int = 0, unit: str = "steps", stream: TextIO | None = None, active: bool = True
    ) -> None:
        super().__init__(stream, active)
        self.total, self.unit, self.counted, self.loss = total, unit, start, ""
        self.done, self.done_time = start, time.monotonic()
        self.started, self.last_printed, self.bar = None, -math.inf, None
        if self.is_terminal:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit=f" {unit}", file=self.stream, dynamic_ncols=True)

    def update(self, done: int, loss: float | None = None) -> None:
        """Shows that `done` of the total are done, and the last loss that was not None."""
        if loss is not None:
            self.loss = f"loss {loss:.4f}"
        self.counted = done
        self._show(done)

    def show_part(self, fraction: float, size: int) -> None:
        done = self.counted + round(fraction * size, 1)
        self._show(int(done) if done.is_integer() else done)

    def _show(self, done: float) -> None:
        now, (start_done, start_time) = time.monotonic(), self.started or (self.done, self.done_time)
        rate = (done - start_done) / (now - start_time) if now > start_time else 0.0
        if done > self.done:
            self.started = self.started or (done, now)
            self.done, self.done_time = done, now
        if self.bar is not None:
            self.bar.set_postfix_str(self.loss, refresh=False)
            self.bar.n = done
            self.bar.update(0)
        elif done >= self.total or now - self.last_printed >= _LINE_SECONDS:
            shown = [self.loss] if self.loss else []
            if rate > 0:
                shown.append(f"{rate:.3g} {self.unit}/s")
            if rate > 0 and done < self.total:
                shown.append(f"{format_duration((self.total - done) / rate)} left")
            self._print(shown)

    def refresh(self) -> None:
        now = time.monotonic()
        if self.bar is not None:
            self.bar.refresh()
        elif now - max(self.last_printed, self.done_time) >= _WAIT_SECONDS:
            self._print([f"the next in progress for {format_duration(now - self.done_time)}"])

    def _print(self, shown: list[str]) -> None:
        self.last_printed = time.monotonic()
        self._write(", ".join([f"{self.done} of {self.total} {self.unit}", *shown]))

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if self.bar is not None:
            self.bar.close()

    def close(self) -> None:
        """Leaves the bar as it is and the cursor below it."""
        self.__exit__(None)


class Activity(_Shown):
    """Title and duration of the body of a `with`, shown from two seconds on; at the end, the time that it took.

    On a terminal a line is refreshed each second; otherwise there is a line every 15 seconds.

    Args:
        title: what is done.
        stream, active: as of `Progress`.

    Attributes:
        text: shown in place of the title while it lasts.
    """

    def __init__(self, title: str, *, stream: TextIO | None = None, active: bool = True) -> None:
        super().__init__(stream, active)
        self.title = self.text = title
        self.part = ""
        self.started = self.printed = time.monotonic()

    def show_part(self, fraction: float, size: int) -> None:
        self.part = f", {fraction:.0%} of the next {size}"

    def refresh(self) -> None:
        now = time.monotonic()
        text = f"{self.text}{self.part}: {format_duration(now - self.started)}"
        if self.is_terminal and now - self.started >= _STAGE_SECONDS:
            self._write(_CLEAR + text, end="")
        elif not self.is_terminal and now - self.printed >= _WAIT_SECONDS:
            self.printed = now
            self._write(text)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if self.is_terminal:
            self._write(_CLEAR, end="")
        seconds = time.monotonic() - self.started
        if kind is None and seconds >= _STAGE_SECONDS:
            self._write(f"{self.title} took {format_duration(seconds)}")


def show_part(fraction: float, size: int) -> None:
    """Shows how much of the next `size` units is done, in the innermost open `Progress` or `Activity`, if any."""
    for shown in _open[-1:]:
        shown.show_part(fraction, size)


def show_first_call(title: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first call, which compiles it, is an `Activity`.

    It is shown only within a `Progress` or `Activity` of a program: a library writes nothing.
    """
    called = False

    def call(*args: Any) -> Any:
        nonlocal called
        first, called = not called, True
        with Activity(title, active=bool(_open)) if first else contextlib.nullcontext():
            return function(*args)

    return call


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
            shown[stage].update(done)
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
