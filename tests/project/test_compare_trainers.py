"""Trainers that take turns: who runs when, how each ends, and the table of their results."""

import itertools
import sys

import pytest

from benchmarks import compare_trainers, evaluations

TICK = """
import pathlib, signal, sys, time
log, limit = pathlib.Path(sys.argv[1]), float(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: (log.with_suffix(".terminated").touch(), sys.exit(0)))
ticks, spent = 0, 0.0
while spent < limit:
    time.sleep(0.01)
    ticks, spent = ticks + 1, spent + 0.01
    with log.open("a") as file:
        file.write(f"{time.time()}\\n")
sys.exit(int(sys.argv[3]))
"""


def trainer_command(tmp_path, name: str, seconds: float, status: int = 0) -> list[str]:
    """One that says when it ran, ends by itself after so many seconds of work, or on SIGTERM."""
    return [sys.executable, "-c", TICK, str(tmp_path / f"{name}.ticks"), str(seconds), str(status)]


def test_one_runs_while_the_other_stands_still_and_both_end_in_good_order(tmp_path):
    commands = {"long": trainer_command(tmp_path, "long", 60), "short": trainer_command(tmp_path, "short", 0.4)}
    compare_trainers.run_in_turns(commands, tmp_path / "logs", seconds=6.0, turn=1.0)
    ran = {name: [float(line) for line in (tmp_path / f"{name}.ticks").read_text().split()] for name in commands}
    assert (tmp_path / "long.terminated").exists() and not (tmp_path / "short.terminated").exists()
    assert len(ran["short"]) == 40  # it has done all its work, though it had no second more
    ticks = sorted([(timestamp, name) for name in ran for timestamp in ran[name]])
    changes = sum(a != b for (_, a), (_, b) in itertools.pairwise(ticks))
    assert 1 <= changes < 20  # turns, not side by side


def test_a_trainer_that_fails_is_named_with_its_log(tmp_path):
    with pytest.raises(SystemExit, match=r"short ended with status 3: see .*short\.log"):
        compare_trainers.run_in_turns(
            {"short": trainer_command(tmp_path, "short", 0.05, status=3)}, tmp_path / "logs", 5.0, 5.0
        )


def test_what_was_trained_is_not_trained_again_and_nothing_else_is_taken_for_it(tmp_path):
    ticks, folder = tmp_path / "short.ticks", tmp_path / "runs"
    commands = {"short": trainer_command(tmp_path, "short", 0.05)}
    for _ in range(2):
        compare_trainers.train_unless_done(commands, folder, seconds=5.0, turn=5.0)
        assert len(ticks.read_text().split()) == 5
    with pytest.raises(SystemExit, match="runs holds other training"):
        compare_trainers.train_unless_done(commands, folder, seconds=6.0, turn=5.0)
    interrupted = {"short": trainer_command(tmp_path, "short", 0.05, status=3)}
    for expected in ("ended with status 3", "holds other training, or some that was interrupted"):
        with pytest.raises(SystemExit, match=expected):
            compare_trainers.train_unless_done(interrupted, tmp_path / "others", seconds=5.0, turn=5.0)


def test_a_row_for_each_trainer():
    numbers = {key: [1.0, 0.1] for key in evaluations.COLUMNS.values()}
    seeds = {
        seed: {
            "ours": {"made": {"commit": "abc" if seed == "2" else "abd"}, "steps": 10 + int(seed), **numbers},
            **({"another": {"made": {"commit": "abe"}, "steps": 7, **numbers}} if seed == "0" else {}),
        }
        for seed in "012"
    }
    lines = compare_trainers.baseline_table({"digits, 5 minutes": seeds})
    assert len(lines) == 4
    assert lines[2].startswith("| digits, 5 minutes | ours | 11.00 ± 0.58 | 1")
    assert lines[2].endswith("| 3 | abc, abd |")
    assert "| another | 7" in lines[3] and lines[3].endswith("| 1 | abe |")
    assert compare_trainers.baseline_table({}) == []
