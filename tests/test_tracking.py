"""metrics.jsonl has every step once, and progress is readable with and without a terminal."""

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import tracking


def test_lines_come_back_and_every_line_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = tracking.MetricsLog(path)
    file.write({"step": 1, "loss": 0.25, "name": "a\nb", "none": None, "yes": True})
    assert tracking.read_metrics(path) == [
        {"step": 1, "loss": 0.25, "name": "a\nb", "none": None, "yes": True}
    ]  # nothing is held back
    file.write(
        {"step": np.int32(2), "loss": jnp.float32(0.5), "row": np.array([1.0, np.nan]), "in": {"x": [np.inf, (1,)]}}
    )
    file.write({"step": 3, "loss": math.nan, "other": -math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert rows == tracking.read_metrics(path)
    assert rows[1:] == [
        {"step": 2, "loss": 0.5, "row": [1.0, None], "in": {"x": [None, [1]]}},
        {"step": 3, "loss": None, "other": None},
    ]


def test_floats_come_back_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=100) * 10.0 ** np.arange(-50, 50)
    tracking.MetricsLog(tmp_path / "m").write({"x": values})
    assert tracking.read_metrics(tmp_path / "m")[0]["x"] == values.tolist()


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = tracking.MetricsLog(path, 0)
    for step in (10, 20, 30, 40):
        log.write({"step": step, "run": 1})
    log.write({"note": "no step"})
    again = tracking.MetricsLog(path, 20)
    again.write({"step": 30, "run": 2})
    want = [{"step": 10, "run": 1}, {"step": 20, "run": 1}, {"note": "no step"}, {"step": 30, "run": 2}]
    assert tracking.read_metrics(path) == want
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    tracking.MetricsLog(path)
    assert tracking.read_metrics(path) == want
    tracking.MetricsLog(path, 0)
    assert tracking.read_metrics(path) == [{"note": "no step"}]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert tracking.read_metrics(path) == [{"step": 1}]
    tracking.MetricsLog(path).write({"step": 2})
    assert tracking.read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_only_the_end_of_a_long_file_is_read(tmp_path, monkeypatch):
    """Whatever the blocks that it is read by: the beginning, which nobody could read, stays as it is."""
    path = tmp_path / "metrics.jsonl"
    unreadable = b"?" * 1000 + b"\n"
    steps = [b'{"step": %d, "loss": %d}\n' % (step, 10**step) for step in range(30)]
    noted = [b'{"step": 20, "held_out_loss": 1}\n', b'{"note": "none"}\n']
    monkeypatch.setattr(json, "loads", (json_loads := mock.Mock(side_effect=json.loads)))
    for block in (1, 7, 100, 1 << 16):
        monkeypatch.setattr(tracking, "_BLOCK", block)
        path.write_bytes(unreadable + b"".join(steps[:21] + noted + steps[21:]) + b'{"st')
        json_loads.reset_mock()
        again = tracking.MetricsLog(path, 20)
        assert path.read_bytes() == unreadable + b"".join(steps[:21] + noted)
        assert [sorted(row) for row in again.start_rows] == [["held_out_loss", "step"], ["loss", "step"]]
        assert json_loads.call_count == 9 + 2 + 2  # the steps above 20, the two notes, and 20 and 19
        tracking.MetricsLog(path)
        assert path.read_bytes() == unreadable + b"".join(steps[:21] + noted)


def test_another_bad_line_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for bad in ('{"step', "[1]"):
        path.write_text('{"step": 1}\n' + bad + '\n{"step": 3}\n')
        with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a JSON object: '(\{\"step|\[1\])'"):
            tracking.MetricsLog(path, 1)
        assert path.read_text().count("\n") == 3
    path.write_bytes(b'{"step": 1}\n\xff\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a JSON object: '\\\\xff'"):
        tracking.MetricsLog(path, 1)
    path.write_text('{"step": "1"}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: its step is not a number: '\{\"step\": \"1\"\}'"):
        tracking.MetricsLog(path, 1)
    with pytest.raises(FileNotFoundError):
        tracking.read_metrics(tmp_path / "none")


def test_an_inactive_log_touches_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 9}\n')
    tracking.MetricsLog(path, 1, active=False).write({"step": 2})
    assert tracking.read_metrics(path) == [{"step": 1}, {"step": 9}]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"), (41.6, "42 s"), (59.6, "1 min 00 s"), (425, "7 min 05 s"), (3599.6, "1 h 00 min"),
        (3780, "1 h 03 min"), (86369, "23 h 59 min"),
        (86399, "1 d 00 h"), (2 * 86400 + 5 * 3600, "2 d 05 h"), (2 * 86400 - 1, "2 d 00 h"),
    ],
)  # fmt: skip
def test_durations_can_be_read(seconds, text):
    assert tracking.format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf])
def test_durations_that_are_none(seconds):
    with pytest.raises(ValueError, match=f"seconds must be finite and not negative, got {seconds}"):
        tracking.format_duration(seconds)


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(tracking.time, "monotonic", lambda: self.now)


def test_plain_lines_come_now_and_then_with_rate_and_time_left(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = tracking.Progress(1000, start=100, stream=stream)
    clock.now += 50  # compiling
    progress.update(110, 0.5)
    for done in range(120, 1001, 10):
        clock.now += 5
        progress.update(done, np.float32(0.125))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "110 of 1000 steps, loss 0.5000, 0.2 steps/s, 1 h 14 min left"
    assert lines[1] == "130 of 1000 steps, loss 0.1250, 2 steps/s, 7 min 15 s left"
    assert lines[-1] == "1000 of 1000 steps, loss 0.1250, 2 steps/s"
    assert len(lines) == 2 + 43 + 1


def test_a_program_without_loss_counts_what_it_counts(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = tracking.Progress(64, unit="images", stream=stream)
    progress.update(0)
    clock.now += 4
    progress.update(64)
    assert stream.getvalue() == "0 of 64 images\n64 of 64 images, 16 images/s\n"


def test_stages_follow_each_other_and_short_ones_are_silent(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    update = tracking.stage_progress(stream=stream)
    for done in range(1, 5):
        update("checked", done, 4)
        clock.now += 1
    update("loaded", 1, 2)
    update("loaded", 2, 2)
    assert stream.getvalue() == "3 of 4 images checked\n4 of 4 images checked, 1 images checked/s\n"


def test_inactive_progress_is_silent():
    for stream in (io.StringIO(), Terminal()):
        progress = tracking.Progress(2, stream=stream, active=False)
        progress.update(2, 1.0)
        progress.close()
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    progress = tracking.Progress(10, start=2, stream=stream)
    progress.update(10, 0.25)
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "10/10" in last and "loss 0.2500" in last and "steps/s" in last and last.endswith("\n")
    assert "2/10" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def quick(monkeypatch):
    """Seconds are hundredths: what refreshes each second does so each 0.01 s."""
    for name in ("_WAIT_SECONDS", "_REFRESH_SECONDS", "_STAGE_SECONDS"):
        monkeypatch.setattr(tracking, name, getattr(tracking, name) / 100)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_an_activity_is_shown_on_a_terminal_and_leaves_one_line(quick):
    stream = Terminal()
    with tracking.Activity("compiling", stream=stream) as shown:
        wait_for(lambda: stream.getvalue().count("\r\x1b[Kcompiling: 0 s") >= 2)
        shown.text = "drawing"
        wait_for(lambda: stream.getvalue().endswith("\r\x1b[Kdrawing: 0 s"))
    assert stream.getvalue().endswith("\r\x1b[Kcompiling took 0 s\n")


def test_an_activity_is_shown_on_plain_output_every_15_seconds(quick):
    stream, started = io.StringIO(), time.monotonic()
    with tracking.Activity("compiling", stream=stream):
        wait_for(lambda: stream.getvalue().count("compiling: 0 s\n") == 2)
    assert time.monotonic() - started >= 0.3 and stream.getvalue().endswith("s\ncompiling took 0 s\n")


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_short_or_inactive_activity_is_silent(quick, monkeypatch, stream):
    with tracking.Activity("compiling", stream=stream, active=False):
        time.sleep(0.05)
    assert stream.getvalue() == ""
    monkeypatch.setattr(tracking, "_STAGE_SECONDS", 60)
    with tracking.Activity("compiling", stream=stream):
        time.sleep(0.05)
    assert stream.getvalue() in ("", "\r\x1b[K")


def test_an_activity_that_fails_leaves_a_clear_line_and_no_thread(quick):
    stream, before = Terminal(), threading.active_count()
    with pytest.raises(KeyboardInterrupt), tracking.Activity("compiling", stream=stream):
        wait_for(lambda: "compiling: 0 s" in stream.getvalue())
        raise KeyboardInterrupt
    written = stream.getvalue()
    assert written.endswith("\r\x1b[K") and "took" not in written
    assert threading.active_count() == before and tracking._open == []
    time.sleep(0.05)
    assert stream.getvalue() == written


def test_progress_shows_that_it_waits(quick):
    bar, plain = Terminal(), io.StringIO()
    with tracking.Progress(10, stream=bar):
        drawn = bar.getvalue().count("0/10")
        wait_for(lambda: bar.getvalue().count("0/10") >= drawn + 2)
    with tracking.Progress(10, stream=plain) as progress:
        progress.update(3, 0.5)
        wait_for(lambda: plain.getvalue().count("\n") >= 3)
    first, *others = plain.getvalue().splitlines()
    assert first.startswith("3 of 10 steps, loss 0.5000") and set(others) == {
        "3 of 10 steps, the next in progress for 0 s"
    }
    assert tracking._open == []


def test_progress_and_an_activity_show_how_much_of_the_next_units_is_done(monkeypatch):
    clock, plain, bar, line = Clock(monkeypatch), io.StringIO(), Terminal(), Terminal()
    with tracking.Progress(128, unit="images", stream=plain) as progress:
        for done in (0, 64):
            progress.update(done)
            for i in range(2):
                clock.now += 10
                tracking.show_part((i + 1) / 5, 64)
    assert plain.getvalue().splitlines() == [
        "0 of 128 images", "12.8 of 128 images, 1.28 images/s, 1 min 30 s left",
        "25.6 of 128 images, 1.28 images/s, 1 min 20 s left", "76.8 of 128 images, 3.2 images/s, 16 s left",
        "89.6 of 128 images, 2.56 images/s, 15 s left",
    ]  # fmt: skip
    with tracking.Progress(128, start=64, unit="images", stream=bar) as progress:
        tracking.show_part(0.2, 64)
        progress.bar.refresh()
        progress.update(128)
    assert "76.8/128" in bar.getvalue() and "128/128" in bar.getvalue().split("\r")[-1]
    with tracking.Activity("drawing", stream=line) as activity:
        tracking.show_part(0.25, 64)
        clock.now += 3
        activity.refresh()
    assert "\r\x1b[Kdrawing, 25% of the next 64: 3 s" in line.getvalue()
    tracking.show_part(0.5, 64)  # nothing is open


def test_only_the_innermost_is_refreshed(quick):
    outer, inner = Terminal(), Terminal()
    with tracking.Progress(10, stream=outer):
        with tracking.Activity("compiling", stream=inner):
            time.sleep(0.02)  # a refresh of the bar that had begun
            written = outer.getvalue()
            wait_for(lambda: inner.getvalue().count("compiling") >= 4)
            assert outer.getvalue() == written
        wait_for(lambda: outer.getvalue() != written)


def test_the_first_call_is_shown_within_a_program_only(quick, capsys):
    def slow(x):
        time.sleep(0.05)
        return x + 1

    assert tracking.show_first_call("compiling", slow)(1) == 2
    assert capsys.readouterr().err == ""
    shown = tracking.show_first_call("compiling", slow)
    with tracking.Progress(10, stream=io.StringIO()):
        assert [shown(1), shown(2)] == [2, 3]
    assert capsys.readouterr().err == "compiling took 0 s\n"


def test_the_last_loss_stays_in_the_bar():
    stream = Terminal()
    progress = tracking.Progress(10, stream=stream)
    progress.update(2, 0.25)
    progress.update(10)
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "10/10" in last and "loss 0.2500" in last


def test_standard_error_is_the_default(capsys):
    progress = tracking.Progress(1)
    progress.update(1)
    captured = capsys.readouterr()
    assert captured.err.startswith("1 of 1 steps") and captured.out == ""


def test_importing_is_cheap():
    code = "import sys, ddpm_jax.tracking; print(sorted({'jax', 'numpy', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"
