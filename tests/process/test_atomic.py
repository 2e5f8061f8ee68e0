"""Files and folders that are complete or not there."""

import os
import pathlib
import socket
import subprocess

import pytest

from ddpm_jax import process


def test_a_file_is_replaced_at_the_end_and_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / "deep" / "a.json"
    process.atomic_write_text(path, "old \N{GREEK SMALL LETTER EPSILON}")
    with pytest.raises(KeyError), process.atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text(encoding="utf-8") == "old \N{GREEK SMALL LETTER EPSILON}"
    assert os.listdir(path.parent) == ["a.json"]
    (path.parent / "a.json.part").write_text("what a killed process has left, longer than the new content")
    with process.atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text(encoding="utf-8") == "old \N{GREEK SMALL LETTER EPSILON}"
        assert (path.parent / "a.json.part").read_text() == "new"
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.json"]


def test_json_has_a_line_for_each_key(tmp_path):
    process.atomic_write_json(tmp_path / "a.json", {"seed": 0, "sha256": ["a", "\N{GREEK SMALL LETTER EPSILON}"]})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "seed": 0,\n  "sha256": ["a", "\\u03b5"]\n}\n'


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), process.atomic_folder(tmp_path / "deep" / "out") as part:
        (part / "half").write_text("...")
        raise KeyError
    assert os.listdir(tmp_path / "deep") == []
    with process.atomic_folder(tmp_path / "deep" / "out") as part:
        (part / "whole").write_text("...")
        assert not (tmp_path / "deep" / "out").exists()
    assert os.listdir(tmp_path / "deep") == ["out"] and os.listdir(tmp_path / "deep" / "out") == ["whole"]
    with (
        pytest.raises(ValueError, match="out exists: give a new folder"),
        process.atomic_folder(tmp_path / "deep" / "out"),
    ):
        pass
    (tmp_path / "empty").mkdir()
    with process.atomic_folder(tmp_path / "empty"):
        pass
    assert os.listdir(tmp_path) == ["deep", "empty"] or os.listdir(tmp_path) == ["empty", "deep"]


def test_what_a_killed_process_has_left_goes_with_the_next_one(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, alive = (tmp_path / f".out.{socket.gethostname()}.{number}.part" for number in (ended.pid, os.getppid()))
    for left in (dead, alive):
        (left / "checkpoints").mkdir(parents=True)
    with process.atomic_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "out"]


def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for here in (pathlib.Path("."), tmp_path):
        with pytest.raises(ValueError, match="exists: give a new folder"), process.atomic_folder(here):
            pass
    assert tmp_path.is_dir()
